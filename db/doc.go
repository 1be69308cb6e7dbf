// Package db owns the schema: its migrations, how they are applied, the privileges
// they leave to others, and the pool that the rest of the program talks through.
//
// The engine itself is SQL, in migrations/00002_engine.sql, whose opening comment
// explains it. The migrations are plain goose files: the goose command line runs them
// as well as [Up] does. Typed access to the functions and the reads is generated into
// db/queries by sqlc; db/schema.sql is a normalised dump that a test keeps true, for
// people to read and for reviews to see what a migration changes.
//
// What fails, and how: a migration runs in a transaction of its own, so a failed one
// leaves the schema as it was before it. Two processes that migrate at once are kept
// apart by a session advisory lock, which needs a direct connection rather than a
// transaction pooler.
package db
