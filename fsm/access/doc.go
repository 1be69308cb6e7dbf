// Package access reads and changes who may call the service: tokens, roles and tenants.
//
// A token's text is pawl_<id>_<secret>. The database keeps its SHA-256 digest alone. The id has no underscore, so that the
// text can be taken apart.
package access
