// The plain goose command, with only its PostgreSQL driver (see goose_tags in
// the Makefile): it proves that the migrations need nothing of pawl to run. It
// is a module of its own because goose's other drivers would pull their
// libraries into the versions of every other tool.
module github.com/pawl-fsm/pawl/tools/goose

go 1.26.0

tool github.com/pressly/goose/v3/cmd/goose

require (
	github.com/pressly/goose/v3 v3.29.0 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/jackc/pgx/v5 v5.11.0 // indirect
	github.com/jackc/puddle/v2 v2.2.3 // indirect
	github.com/joho/godotenv v1.5.1 // indirect
	github.com/mfridman/interpolate v0.0.2 // indirect
	github.com/mfridman/xflag v0.1.0 // indirect
	github.com/sethvargo/go-retry v0.5.0 // indirect
	go.uber.org/multierr v1.11.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)
