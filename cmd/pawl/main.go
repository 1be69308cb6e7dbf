// Command pawl is a finite-state-machine service whose only dependency is PostgreSQL.
//
// `pawl dev` is the whole of it with a private Postgres; `pawl serve` is a replica;
// `pawl migrate` deploys the schema; `pawl workflow` and `pawl instance` are clients of
// the API. Flags and environment are read in this package only.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/internal/bench"
)

// version is set by the linker.
var version = "dev"

// cli is the command line. Every flag has an environment variable, and both are shown by
// --help.
type cli struct {
	LogLevel  slog.Level       `default:"info" env:"PAWL_LOG_LEVEL" help:"Least level that is logged: debug, info, warn or error."`
	LogFormat string           `default:"text" enum:"text,json" env:"PAWL_LOG_FORMAT" help:"Form of log lines: text or json."`
	Version   kong.VersionFlag `help:"Print the version and exit."`

	Dev          devCommand          `cmd:"" help:"Run everything here and now: a private Postgres (or DATABASE_URL), migrated, with the flight-booking example."`
	Serve        serveCommand        `cmd:"" help:"Serve the API, and work in the background, on a migrated database."`
	Migrate      migrateCommand      `cmd:"" help:"Deploy the schema."`
	Workflow     workflowCommand     `cmd:"" help:"Check, register and read workflows."`
	Instance     instanceCommand     `cmd:"" help:"Create, move and read instances."`
	Subscription subscriptionCommand `cmd:"" help:"Subscribe endpoints to steps: webhooks."`
	Outbox       outboxCommand       `cmd:"" help:"See what the world has been told, and what not yet."`
	Bench        benchCommand        `cmd:"" help:"Measure the service on an empty database, beside pgbench on the same server."`
}

// console is what a command talks to.
type console struct {
	context.Context
	in       io.Reader
	out, err io.Writer
	log      *slog.Logger
}

func (c *console) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(c.out, format, args...) // Nobody is left to tell if it fails.
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// exit carries the code of --help and --version out of kong.
type exit int

// run is the program. It returns the exit code: 0, 1 if the command failed, 2 if it was
// not understood or, where 1 is an answer, failed.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	defer func() {
		if e, ok := recover().(exit); ok {
			code = int(e)
		}
	}()
	var c cli
	parser, err := kong.New(&c,
		kong.Name("pawl"),
		kong.Description("A finite-state-machine service whose only dependency is PostgreSQL."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.Vars{"version": version, "measurements": strings.Join(bench.Names(), ", ")},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.UsageOnError(),
	)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "pawl:", err)
		return 2
	}
	parsed, err := parser.Parse(args)
	if err == nil {
		err = refuseEmpty(parsed, args)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "pawl: %v (see pawl --help)\n", err)
		return 2
	}
	options := &slog.HandlerOptions{Level: c.LogLevel}
	var handler slog.Handler = slog.NewTextHandler(stderr, options)
	if c.LogFormat == "json" {
		handler = slog.NewJSONHandler(stderr, options)
	}
	con := &console{Context: ctx, in: stdin, out: stdout, err: stderr, log: slog.New(handler)}
	switch err := parsed.Run(con); {
	case err == nil:
		return 0
	case errors.Is(err, errSaid):
		return 1
	case errors.As(err, new(trouble)):
		_, _ = fmt.Fprintln(stderr, "pawl:", explain(err))
		return 2
	default:
		_, _ = fmt.Fprintln(stderr, "pawl:", explain(err))
		return 1
	}
}

// refuseEmpty refuses an argument that is given but empty, and a list with such an element: as a
// rule a script's variable is not set, and without the argument the command would do more than
// was meant. A variable of the environment that is set to nothing is not given.
func refuseEmpty(parsed *kong.Context, args []string) error {
	flags := map[string]*kong.Flag{}
	for _, p := range parsed.Path {
		switch {
		case p.Flag != nil:
			flags["--"+p.Flag.Name] = p.Flag
		case p.Positional != nil && parsed.Value(p).IsZero() && parsed.Value(p).Kind() == reflect.String:
			return fmt.Errorf("<%s> must not be empty", p.Positional.Name)
		}
	}
	// Of a list, what was parsed no longer has all that was empty.
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		if !joined && i+1 < len(args) {
			value = args[i+1]
		}
		switch flag := flags[name]; {
		case flag == nil || flag.IsBool():
		case value == "":
			return fmt.Errorf("%s must not be empty", name)
		case flag.IsSlice() && slices.Contains(strings.Split(value, string(flag.Tag.Sep)), ""):
			return fmt.Errorf("%s must have no empty element", name)
		}
	}
	return nil
}

// explain words an error for whoever typed the command, in one line as a rule.
func explain(err error) string {
	pg, refused := errors.AsType[*pgconn.PgError](err)
	if _, away := errors.AsType[*pgconn.ConnectError](err); away || !refused {
		return db.OneLine(err)
	}
	advise := func(advice string) string { return strings.Replace(err.Error(), pg.Error(), pg.Message+": "+advice, 1) }
	switch {
	case strings.HasPrefix(pg.Code, "PW"): // The engine's own are written for people.
		return pg.Message
	case pg.Code == insufficientPrivilege:
		return advise("the role needs what 'pawl migrate grants' grants")
	case slices.Contains(missing, pg.Code) && strings.Contains(pg.Message, "pawl"):
		return advise("run 'pawl migrate up'")
	}
	return err.Error()
}

const insufficientPrivilege = "42501"

// missing are the SQLSTATEs of a schema, a table and a function that are not there.
var missing = []string{"3F000", "42P01", "42883"}

// errSaid fails a command that has said why already.
var errSaid = errors.New("failed")

// trouble is why a command was not understood, or why one could not answer whose exit code 1 is
// an answer.
type trouble struct{ error }

func (t trouble) Unwrap() error { return t.error }
