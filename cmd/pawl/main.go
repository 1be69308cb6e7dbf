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
	"syscall"

	"github.com/alecthomas/kong"
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
		kong.Vars{"version": version},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.UsageOnError(),
	)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "pawl:", err)
		return 2
	}
	parsed, err := parser.Parse(args)
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
		_, _ = fmt.Fprintln(stderr, "pawl:", err)
		return 2
	default:
		_, _ = fmt.Fprintln(stderr, "pawl:", err)
		return 1
	}
}

// errSaid fails a command that has said why already.
var errSaid = errors.New("failed")

// trouble is why a command could not answer whose exit code 1 is an answer.
type trouble struct{ error }

func (t trouble) Unwrap() error { return t.error }
