package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// benchmark is one run.
type benchmark struct {
	Config
	end      context.CancelCauseFunc // Ends the run with the reason why it cannot go on.
	dsn      string
	conn     *pgx.Conn // As the owner of the database.
	meter    *meter
	service  service
	token    string   // The bearer token of calls that are not part of a load; empty for none.
	deployer string   // The token of a caller of the deployment, while there are tenants.
	ids      []string // Of the instances, in the order of pawl_bench.instance.
	pgbench  *pgbench // Nil if the program is missing.
	report   report
	run      string // The prefix of all idempotency keys of this run.
	runs     int    // The number of loads so far; each has keys of its own.
	undo     []func(context.Context) error
}

// cleanUpWithin bounds what a run does when it ends.
const cleanUpWithin = time.Minute

// Run makes the measurements of a configuration, one after the other, and returns when all are
// made, when the context ends, or when the service or the database fails. It returns the faults of
// the figures joined into one error, or the cause of an early end. What it started is stopped and
// what it made in the database is taken back before it returns. Config.Validate says which
// configurations are refused.
func Run(ctx context.Context, config Config) (err error) {
	if err := config.Validate(); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	if config, err = config.withDefaults(); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	b := &benchmark{
		Config: config, run: strconv.FormatInt(time.Now().UnixNano(), 36), service: newService(),
		report: report{Measurements: []*measurement{}, References: []*reference{}, Targets: []headline{}, Remarks: []string{}},
	}
	running, end := context.WithCancelCause(ctx)
	b.end = end
	defer func() {
		cleaning, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpWithin)
		defer cancel()
		if err != nil && running.Err() != nil { // Whatever failed, failed because the run had ended.
			err = fmt.Errorf("bench: %w", context.Cause(running))
		}
		for _, undo := range slices.Backward(b.undo) {
			err = errors.Join(err, undo(cleaning))
		}
		end(nil)
	}()
	return b.all(running)
}

func (b *benchmark) all(ctx context.Context) error {
	began := time.Now()
	for _, prepare := range []func(context.Context) error{b.openDatabase, b.runService, b.describe, b.createInstances} {
		if err := prepare(ctx); err != nil {
			return err
		}
	}
	b.header()
	faults := b.measureAll(ctx)
	if ctx.Err() != nil {
		return faults
	}
	faults = errors.Join(faults, b.check(ctx))
	if n, first := b.service.log.faults(); n > 0 {
		b.remark("The service logged %d errors, the first: %s", n, first)
	}
	if err := b.summary(); err != nil {
		return errors.Join(faults, err)
	}
	b.printf("\nThe run took %s.\n", time.Since(began).Round(time.Second))
	if b.Figures != nil {
		faults = errors.Join(faults, b.report.write(b.Figures))
	}
	return faults
}

// printf writes to the output. If that fails, nobody reads it, and the run goes on.
func (b *benchmark) printf(format string, args ...any) { _, _ = fmt.Fprintf(b.Output, format, args...) }
