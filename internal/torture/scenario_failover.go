package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
)

// promote kills the server and promotes the standby, which has missed what was written in the last moments: as long
// as lag.
func promote(ctx context.Context, w *world, lag time.Duration) error {
	if lag > 0 {
		w.record.note(fmt.Sprintf("replication lags for %v", lag))
		if err := w.cluster.replication.swallow(); err != nil {
			return err
		}
		sleep(ctx, lag)
	}
	w.record.note("promote")
	if err := w.cluster.writer().Kill(); err != nil {
		return err
	}
	begin := time.Now()
	if lag > 0 {
		w.cluster.replication.cut() // What was swallowed never arrives.
	}
	w.pause(ctx, 1, 500)
	err := w.cluster.promote(ctx)
	w.record.loss(begin, !w.scenario.lossy)
	return err
}

// standbyAway takes the synchronous standby away twice. The second time the server dies meanwhile, and the standby
// comes back as the new primary: what was answered as done must be there.
func standbyAway(ctx context.Context, w *world) error {
	standby := w.cluster.servers[1]
	away := func(least, most int) error {
		w.record.note("stop the standby")
		if err := standby.Kill(); err != nil {
			return err
		}
		w.pause(ctx, least, most)
		return nil
	}
	if err := away(1000, 3000); err != nil {
		return err
	}
	if err := standby.Restart(ctx); err != nil {
		return err
	}
	if err := w.cluster.untilStreaming(ctx); err != nil {
		return err
	}
	w.pause(ctx, 500, 1500)
	if err := away(3000, 6000); err != nil {
		return err
	}
	w.record.note("promote")
	if err := w.cluster.writer().Kill(); err != nil {
		return err
	}
	begin := time.Now()
	w.cluster.replication.cut()
	if err := standby.Restart(ctx); err != nil {
		return err
	}
	err := w.cluster.promote(ctx)
	w.record.loss(begin, true)
	return err
}

// recoverToPoint replaces the server by one that was recovered from a base backup and the archive, to a point after
// which clients have gone on.
func recoverToPoint(ctx context.Context, w *world) error {
	c := w.cluster
	if err := c.copyPrimary(ctx, "recovered"); err != nil {
		return err
	}
	w.pause(ctx, 500, 1500)
	segment, err := ask[string](ctx, c.writer().DSN(), "select pg_walfile_name(pg_create_restore_point('torture'))")
	if err != nil {
		return err
	}
	w.record.note("the point of the recovery")
	if err := c.exec(ctx, "select pg_switch_wal()"); err != nil {
		return err
	}
	w.pause(ctx, 500, 4000)
	err = until(ctx, time.Minute, "the archive", func(context.Context) (bool, error) {
		_, err := os.Stat(filepath.Join(c.archive, segment))
		return err == nil, err
	})
	if err != nil {
		return err
	}
	w.record.note("recover")
	old := c.writer()
	if err := errors.Join(old.Kill(), old.Stop(ctx)); err != nil {
		return err
	}
	begin := time.Now()
	if err := c.touch("recovered", "recovery.signal"); err != nil {
		return err
	}
	// The archive is read only, so that no segment of another timeline gets in the way.
	recovered, err := c.start(ctx, "recovered", old.port, map[string]string{
		"restore_command": "cp " + c.archive + "/%f %p", "archive_mode": "off",
		"recovery_target_name": "torture", "recovery_target_action": "promote",
	})
	if err != nil {
		return err
	}
	c.servers[0] = recovered
	err = until(ctx, time.Minute, "the end of the recovery", func(ctx context.Context) (bool, error) {
		return ask[bool](ctx, recovered.DSN(), "select not pg_is_in_recovery()")
	})
	w.record.loss(begin, false)
	return err
}

// burn raises the transaction counter of a server to a value.
func burn(ctx context.Context, dsn string, to int64) error {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "set synchronous_commit = off"); err != nil {
		return err
	}
	_, err = conn.Exec(ctx, fmt.Sprintf(`do $$
		begin
			while pg_current_xact_id()::text::bigint < %d loop
				commit;
			end loop;
		end $$`, to))
	return err
}

// restore replaces the server by a new one with a dump of it, after which clients have gone on. The counter of the new
// server is a little ahead of the old one's at the dump, so that the ids that were given out since are used again; or it
// is far behind or ahead.
func restore(ctx context.Context, w *world, near bool) error {
	c, old := w.cluster, w.cluster.writer()
	counter := func() (int64, error) {
		return ask[int64](ctx, old.DSN(), "select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
	}
	ahead := !near && w.faults.IntN(2) == 0
	if !near && !ahead {
		if err := burn(ctx, old.DSN(), 100_000); err != nil {
			return err
		}
	}
	at, err := counter()
	if err != nil {
		return err
	}
	dump := filepath.Join(c.dir, "dump")
	w.record.note("dump")
	if err := os.Mkdir(dump, 0o777); err != nil {
		return err
	}
	if err := c.handOver(dump); err != nil {
		return err
	}
	file := filepath.Join(dump, "pawl")
	if err := c.program(ctx, "pg_dump", "-Fc", "-f", file, old.DSN()); err != nil {
		return err
	}
	w.pause(ctx, 500, 4000)
	w.record.note("restore")
	if err := errors.Join(old.Kill(), old.Stop(ctx)); err != nil {
		return err
	}
	begin := time.Now()
	// The new server is prepared on another port, so that no replica sees it half restored.
	port, err := freePort()
	if err != nil {
		return err
	}
	made, err := c.start(ctx, "restored", port, nil)
	if err != nil {
		return err
	}
	if err := c.makeRoles(ctx, made); err != nil {
		return err
	}
	if err := c.program(ctx, "pg_restore", "--single-transaction", "-d", made.DSN(), file); err != nil {
		return err
	}
	switch {
	case near:
		err = burn(ctx, made.DSN(), at-int64(w.faults.IntN(30)))
	case ahead:
		err = burn(ctx, made.DSN(), at+100_000)
	}
	if err != nil {
		return err
	}
	if err := made.Stop(ctx); err != nil {
		return err
	}
	if c.servers[0], err = c.start(ctx, "restored", old.port, nil); err != nil {
		return err
	}
	w.record.loss(begin, false)
	return nil
}
