package main

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/invoke"
)

// connectionFlags are the flags of serve and dev for connections.
type connectionFlags struct {
	ConnectionEnv fsm.Variables `default:"default:PAWL_CONNECTION_*" env:"PAWL_CONNECTION_ENV" placeholder:"TENANT:NAME" help:"Environment variables that the connections of a tenant may take their secrets from, such as acme:ACME_TOKEN or acme:ACME_*; * as the tenant stands for all tenants. A variable of pawl's own, PAWL_…, is allowed only if it begins with PAWL_CONNECTION_."`
}

// invokeFlags are the flags of serve and dev for the calls that tasks make.
type invokeFlags struct {
	Invoke            bool `default:"true" negatable:"" env:"PAWL_INVOKE" help:"Call services for tasks, as one of the background workers. At least one process must call them."`
	InvokeConcurrency int  `default:"256" env:"PAWL_INVOKE_CONCURRENCY" help:"Largest number of calls of this process at a time. Tenants share them, and one tenant gets at most half; a connection has a limit of its own beside."`
}

// Validate refuses a number with which nothing could be called.
func (i *invokeFlags) Validate() error {
	if i.InvokeConcurrency < 1 {
		return errors.New("--invoke-concurrency must be at least 1: --no-invoke calls nothing")
	}
	return nil
}

// invokeConns is how many connections to the database the calls take: to claim, to settle and to sweep.
const invokeConns = 3

// call adds the worker that calls services to the group. The worker runs until the context ends.
func (i *invokeFlags) call(
	ctx context.Context, c *console, pool *pgxpool.Pool, policy fsm.WebhookPolicy, keys fsm.SecretKeys, variables fsm.Variables, hub *live.Hub, trace outbox.Trace, group *errgroup.Group,
) {
	invoker := invoke.New(pool, invoke.Config{
		Policy: policy, Keys: keys, Variables: variables, Concurrency: i.InvokeConcurrency, Trace: trace, Logger: c.log,
		Wake: func() (<-chan struct{}, func()) { return hub.WakeTasks("http") },
	})
	group.Go(func() error { return invoker.Run(ctx) })
}
