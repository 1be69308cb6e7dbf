// Package db owns the database: its schema and migrations, the privileges that roles get, and the
// pool that the rest of the program connects through.
//
// # The schema
//
// Its source is db/schema, SQL in modules; db/migrations is generated from it, as plain goose files
// that the goose command runs as well as [Up] does. Typed access is generated into db/queries by
// sqlc. db/schema.sql is a dump of the schema, written from the catalogs, so that a reviewer sees
// what a change comes to. Tests compare all of these with one another. The engine is in
// db/schema/20_instance, whose tables.sql explains it.
//
// goose notes the applied migrations in [VersionTable], in schema pawl, so that an application may use
// goose in the same database. goose makes that table before the first migration, and deletes from it
// after the last Down: so the first Up finds the schema made, and its Down keeps the table. The schema
// tells its version itself, by pawl.schema_version, whichever tool has made it.
//
// # When things fail
//
// Each migration runs in a transaction of its own, so a failed one leaves the schema as it was. Two
// processes that migrate at the same time are kept apart by a session advisory lock, which needs a
// direct connection rather than a transaction pooler.
//
// # What it may import
//
// pgx, goose and its own folders, of which db/session says how sessions and poolers are dealt with;
// nothing of pawl above it.
package db
