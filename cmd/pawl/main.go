package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/pawl-fsm/pawl/internal/bench"
)

// version is set by the linker.
var version = "dev"

// cli is the command line.
type cli struct {
	LogLevel  slog.Level       `default:"info" env:"PAWL_LOG_LEVEL" help:"Lowest level that is logged: debug, info, warn or error."`
	LogFormat string           `default:"" enum:"text,json," env:"PAWL_LOG_FORMAT" help:"Format of log lines: text or json. Default: json for serve, text for the other commands."`
	Version   kong.VersionFlag `help:"Print the version and exit."`

	Dev          devCommand          `cmd:"" help:"Run everything on this machine: a private Postgres (or DATABASE_URL), the schema, the service and the flight-booking example."`
	Serve        serveCommand        `cmd:"" help:"Run the service on a migrated database: the HTTP API and the background workers. PAWL_SECRET_KEY has the keys that seal stored secrets."`
	Migrate      migrateCommand      `cmd:"" help:"Deploy the database schema and its settings."`
	Workflow     workflowCommand     `cmd:"" help:"Check, register and read workflows."`
	Schema       schemaCommand       `cmd:"" help:"Register and read the JSON Schemas that definitions share."`
	Instance     instanceCommand     `cmd:"" help:"Create, move, read, migrate and archive instances."`
	Task         taskCommand         `cmd:"" help:"List tasks, and help those that ended badly."`
	Work         workCommand         `cmd:"" help:"Claim and end tasks, for workers that are shell scripts."`
	Bulk         bulkCommand         `cmd:"" help:"Do one thing with many instances, in the background."`
	Connection   connectionCommand   `cmd:"" help:"Say how to reach the services that tasks call."`
	Subscription subscriptionCommand `cmd:"" help:"Subscribe endpoints to messages, by webhook."`
	Token        tokenCommand        `cmd:"" help:"Make, list and revoke tokens, on the database."`
	Role         roleCommand         `cmd:"" help:"Make, list and delete roles, on the database."`
	Tenant       tenantCommand       `cmd:"" help:"Make, limit and disable tenants, on the database."`
	Audit        auditCommand        `cmd:"" help:"Read who did what with power and who was refused, and delete old rows."`
	Outbox       outboxCommand       `cmd:"" help:"Show what has been published and delivered, and what is still to come."`
	Secret       secretCommand       `cmd:"" help:"Make and rotate the keys that seal stored secrets, and show what signs callbacks."`
	Bench        benchCommand        `cmd:"" help:"Measure the service on an empty database, beside pgbench on the same server."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// exit is the panic by which --help and --version leave kong. It holds the exit code.
type exit int

// run is the program. It returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	defer func() {
		if e, ok := recover().(exit); ok {
			code = int(e)
		}
	}()
	var c cli
	con := newConsole(ctx, stdin, stdout, stderr)
	parser, err := kong.New(&c,
		kong.Name("pawl"),
		kong.Description("A finite-state-machine service whose only dependency is PostgreSQL."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exit(code)) }),
		kong.Vars{"version": version, "measurements": strings.Join(bench.Names(), ", ")},
		kong.NamedMapper("secret", kong.MapperFunc(secret)),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.UsageOnError(),
	)
	if err != nil {
		con.fail(err.Error())
		return 2
	}
	parsed, err := parser.Parse(args)
	if err == nil {
		err = checkArguments(parsed, args)
	}
	if err != nil {
		con.fail(err.Error() + " (see pawl --help)")
		return 2
	}
	options := &slog.HandlerOptions{Level: c.LogLevel}
	var handler slog.Handler = slog.NewTextHandler(con.err, options)
	if c.LogFormat == "json" || c.LogFormat == "" && parsed.Command() == "serve" {
		handler = slog.NewJSONHandler(con.err, options)
	}
	con.log = slog.New(handler)
	switch err := parsed.Run(con); {
	case err == nil:
		return 0
	case errors.Is(err, errReported):
		return 1
	case errors.As(err, new(undecided)):
		con.fail(explain(err))
		return 2
	default:
		con.fail(explain(err))
		return 1
	}
}
