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
// goose in the same database. goose makes that table before the first migration. So schema pawl exists
// before the first Up makes the rest of it. goose deletes a row from the table after each Down, so the
// Down of the first migration keeps the table. The schema itself tells its version, by
// pawl.schema_version, whichever tool has applied the migrations.
//
// # When things fail
//
// Each migration runs in a transaction of its own, so a failed one leaves the schema as it was. Two
// processes that migrate at the same time are kept apart by a session advisory lock, which needs a
// connection without a pooler.
//
// # What it may import
//
// pgx, goose, and its own folders. It imports no package of pawl outside db. Package db/session
// explains sessions and poolers.
package db
