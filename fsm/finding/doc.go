// Package finding shows what is wrong with instances: those that are stuck, and tasks and deliveries that came to a bad end.
//
// Findings are opened and closed in the database, by the looks of a worker and by the steps of instances; see module
// finding in db/schema. This package only reads them.
//
// It may import fsm, its internal packages and the queries. It knows nothing of HTTP.
package finding
