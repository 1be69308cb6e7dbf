package db

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A Privilege is a set of least privileges that a role can be granted.
type Privilege string

const (
	// Service is what `pawl serve` needs: to call the engine and to read. It can
	// neither write a table nor make one.
	Service Privilege = "service"
	// Caller is what an application needs that moves instances in its own
	// transactions: create_one, fire_one and nothing to read.
	Caller Privilege = "caller"
)

// functions lists what each privilege may execute; everything else in the schema is
// the owner's alone.
var functions = map[Privilege][]string{
	Service: {
		"pawl.fire", "pawl.create", "pawl.preview", "pawl.simulate", "pawl.create_one", "pawl.fire_one", "pawl.guard_holds",
		"pawl.register_workflow", "pawl.validate_workflow", "pawl.jsonpath_error", "pawl.now", "pawl.uuid_v7_floor",
		"pawl.purge_keys", "pawl.final_instances", "pawl.remove_instances", "pawl.fire_timers", "pawl.put_off_timer",
		"pawl.retire_workflow", "pawl.migrate_instances", "pawl.backtest",
		"pawl.add_consumer", "pawl.lead", "pawl.resign", "pawl.renew", "pawl.look", "pawl.read_events", "pawl.advance", "pawl.outbox_status",
		"pawl.moved", "pawl.stream_steps", "pawl.stream_past", "pawl.can_resume",
		"pawl.route", "pawl.due_deliveries", "pawl.events_of", "pawl.endpoints_of", "pawl.settle_deliveries", "pawl.replay_deliveries",
		"pawl.purge_deliveries", "pawl.create_subscription", "pawl.update_subscription", "pawl.delete_subscription",
		"pawl.rotate_secret", "pawl.test_subscription",
	},
	Caller: {"pawl.create_one", "pawl.fire_one"},
}

// Grants returns the SQL that gives a role a privilege.
func Grants(role string, p Privilege) (string, error) {
	granted, known := functions[p]
	if !known {
		return "", fmt.Errorf("grants: unknown privilege %q: want %q or %q", p, Service, Caller)
	}
	name := pgx.Identifier{role}.Sanitize()
	var b strings.Builder
	fmt.Fprintf(&b, "grant usage on schema pawl to %s;\n", name)
	if p == Service {
		fmt.Fprintf(&b, "grant select on all tables in schema pawl to %s;\n", name)
	}
	for _, f := range granted {
		fmt.Fprintf(&b, "grant execute on function %s to %s;\n", f, name)
	}
	return b.String(), nil
}

// Grant applies what [Grants] returns, as the schema's owner.
func Grant(ctx context.Context, dsn, role string, p Privilege) error {
	sql, err := Grants(role, p)
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("grant: %w", err)
	}
	return nil
}
