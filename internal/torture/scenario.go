package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// A scenario is a kind of fault, and the deployment that it happens to.
type scenario struct {
	name, about string
	cluster     clusterConfig
	pooler      string // "session" or "transaction": replicas reach the server through a PgBouncer.
	tmpfs       string // The size of the file system that the cluster is on, such as "200m".
	// lossy: steps may be lost that were acknowledged with synchronous_commit on.
	lossy bool
	// restores: the database becomes a restored copy, which a replica must say.
	restores bool
	// quiet: there is one client, which is slow.
	quiet bool
	// tasks: there are orders too, whose tasks call a provider and are packed by workers. lies: the provider lies half of the time.
	tasks, lies bool
	// undoes: there are trips too, which undo what they did if they cannot end.
	undoes bool
	// inject makes the faults. When it returns they are over.
	inject func(ctx context.Context, w *world) error
}

func scenarios() []scenario {
	return []scenario{
		{name: "kill-replica", about: "kill -9 of replicas", inject: killReplicas},
		{name: "kill-backend", about: "kill -9 and termination of single backends", inject: killBackends},
		{name: "kill-postgres", about: "kill -9 of the whole server, early and late in a page of the sink, busy and quiet", inject: killPostgres},
		{name: "pause-replica", about: "SIGSTOP of each replica past its leases", inject: pauseReplicas},
		{name: "cut", about: "connections are cut, to the database and to the replicas", inject: cut},
		{name: "latency", about: "up to 300 ms on each way", inject: latency},
		{name: "black-hole", about: "connections stay open and pass nothing on", inject: blackHole},
		{name: "locks-held", about: "another application locks rows and tables", inject: holdLocks},
		{name: "connections-used-up", about: "others take all connections of the server", inject: useUpConnections},
		{
			name: "disk-full", about: "the server's disk is full", inject: fillDisk, tmpfs: "400m",
			cluster: clusterConfig{settings: map[string]string{"max_wal_size": "64MB", "min_wal_size": "32MB"}},
		},
		{name: "rolling-restart", about: "SIGTERM and a new start of each replica, one after the other", inject: rollingRestart},
		{
			name: "promote-async", about: "the server dies, and its asynchronous standby is promoted", lossy: true,
			cluster: clusterConfig{standby: true}, inject: func(ctx context.Context, w *world) error { return promote(ctx, w, 0) },
		},
		{
			name: "promote-async-lagging", about: "the same, with a standby that is seconds behind", lossy: true,
			cluster: clusterConfig{standby: true}, inject: func(ctx context.Context, w *world) error {
				return promote(ctx, w, time.Duration(500+w.faults.IntN(2500))*time.Millisecond)
			},
		},
		{
			name: "promote-sync", about: "the server dies, and its synchronous standby is promoted",
			cluster: clusterConfig{standby: true, synchronous: true}, inject: func(ctx context.Context, w *world) error { return promote(ctx, w, 0) },
		},
		{
			name: "sync-standby-away", about: "the synchronous standby is away, comes back, is away again and is promoted",
			cluster: clusterConfig{standby: true, synchronous: true}, inject: standbyAway,
		},
		{
			name: "pitr", about: "the server is replaced by its backup, recovered to a point in the past", lossy: true,
			cluster: clusterConfig{archive: true}, inject: recoverToPoint,
		},
		{
			name: "restore-near", about: "the server is replaced by a new one with a dump, whose transaction counter is near", lossy: true, restores: true,
			inject: func(ctx context.Context, w *world) error { return restore(ctx, w, true) },
		},
		{
			name: "restore-far", about: "the same, with a counter that is far behind or ahead", lossy: true, restores: true,
			inject: func(ctx context.Context, w *world) error { return restore(ctx, w, false) },
		},
		{name: "pgbouncer-session", about: "killed backends, cuts and a crash, behind a PgBouncer that pools sessions", pooler: "session", inject: behindPooler},
		{name: "pgbouncer-transaction", about: "the same, with one that pools transactions", pooler: "transaction", inject: behindPooler},
		{
			name: "all", about: "all that loses nothing, mixed; at the end a synchronous standby is promoted",
			cluster: clusterConfig{standby: true, synchronous: true}, inject: all,
		},
		{name: "tasks-kill", about: "kill -9 of all replicas, while calls of tasks are under way and at any time", tasks: true, inject: killCallers},
		{name: "tasks-crash", about: "kill -9 of the whole server while tasks are carried out", tasks: true, inject: killPostgres},
		{name: "tasks-pause", about: "SIGSTOP of each replica past the leases of its calls", tasks: true, inject: pauseReplicas},
		{name: "tasks-lies", about: "a provider that charges and does not say so, or denies it, and workers that come back too late", tasks: true, lies: true, inject: letLie},
		{name: "tasks-undo", about: "kill -9 of all replicas or of the server between the steps of undoing, with a provider that fails half of the time", tasks: true, lies: true, undoes: true, inject: killUndoing},
		{name: "quiet", about: "kill -9 of the server while hardly anything is committed", quiet: true, inject: killQuietPostgres},
	}
}

// rounds calls a fault some times, with a random pause before each.
func (w *world) rounds(ctx context.Context, n int, fault func(round int) error) error {
	for i := range min(n, w.size.most) {
		if !w.pause(ctx, 200, 1200) {
			return ctx.Err()
		}
		if err := fault(i); err != nil {
			return err
		}
	}
	return nil
}

// pause waits for a random time in milliseconds.
func (w *world) pause(ctx context.Context, least, most int) bool {
	return sleep(ctx, time.Duration(least+w.faults.IntN(most-least))*time.Millisecond)
}

func (w *world) anyReplica() *replica { return w.replicas[w.faults.IntN(len(w.replicas))] }

// oneOf makes a fault that is one of several, drawn each time.
func oneOf(rng *rand.Rand, faults ...func() error) error { return faults[rng.IntN(len(faults))]() }

func killReplicas(ctx context.Context, w *world) error {
	return w.rounds(ctx, 6, func(int) error { return killReplica(ctx, w) })
}

func killReplica(ctx context.Context, w *world) error {
	r := w.anyReplica()
	w.record.note("kill " + r.name)
	if err := r.end(syscall.SIGKILL); err != nil {
		return err
	}
	w.pause(ctx, 1, 2000)
	return r.start()
}

func killBackends(ctx context.Context, w *world) error {
	return w.rounds(ctx, 8, func(int) error { return killBackend(ctx, w) })
}

// killBackend kills a backend of the service, upon which the server restarts all of them, or ends one in order.
func killBackend(ctx context.Context, w *world) error {
	draw := w.faults.IntN(1000)
	hard := w.faults.IntN(2) == 0
	pids, err := list[int](ctx, w.cluster.writer().DSN(), "select pid from pg_stat_activity where usename = 'pawl' order by backend_start")
	if err != nil || len(pids) == 0 {
		return err
	}
	pid := pids[draw%len(pids)]
	if !hard {
		w.record.note("terminate a backend")
		return w.cluster.exec(ctx, fmt.Sprintf("select pg_terminate_backend(%d)", pid))
	}
	w.record.note("kill a backend")
	begin := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	sleep(ctx, 200*time.Millisecond) // Until the server has seen it.
	err = until(ctx, time.Minute, "the server to recover", func(ctx context.Context) (bool, error) {
		return ask[bool](ctx, w.cluster.writer().DSN(), "select true")
	})
	w.record.loss(begin, true)
	return err
}

// killPostgres kills the server ten times: at the beginning of a page of the sink, within one that takes over a
// second since nobody reads the sink, after some quiet, and at any time.
func killPostgres(ctx context.Context, w *world) error {
	return w.rounds(ctx, 10, func(round int) error {
		switch round % 4 {
		case 0:
			w.untilSunk(ctx)
			return crash(ctx, w)
		case 1:
			w.stalled.Lock()
			w.pause(ctx, 1000, 2500)
			err := crash(ctx, w)
			w.stalled.Unlock()
			return err
		case 2:
			w.hushed.Store(true)
			defer w.hushed.Store(false)
			w.pause(ctx, 500, 1500)
			return crash(ctx, w)
		default:
			return crash(ctx, w)
		}
	})
}

func killQuietPostgres(ctx context.Context, w *world) error {
	return w.rounds(ctx, 4, func(int) error {
		w.pause(ctx, 2000, 6000)
		return crash(ctx, w)
	})
}

// untilSunk waits for the sink to get a message, for some seconds at most.
func (w *world) untilSunk(ctx context.Context) {
	sunk := func() time.Time {
		w.record.mu.Lock()
		defer w.record.mu.Unlock()
		return w.record.last["sink"]
	}
	for before, i := sunk(), 0; i < 3000 && sunk().Equal(before); i++ {
		if !sleep(ctx, time.Millisecond) {
			return
		}
	}
}

// crash kills the server and starts it again after a moment.
func crash(ctx context.Context, w *world) error {
	w.record.note("kill Postgres")
	if err := w.cluster.writer().Kill(); err != nil {
		return err
	}
	begin := time.Now()
	w.pause(ctx, 1, 500)
	err := w.cluster.writer().Restart(ctx)
	w.record.loss(begin, true)
	return err
}

// leasesEnd is longer than the lease of a leader.
const leasesEnd = 12 * time.Second

func pauseReplicas(ctx context.Context, w *world) error {
	return w.rounds(ctx, len(w.replicas), func(round int) error { return pauseReplica(ctx, w, w.replicas[round]) })
}

func pauseReplica(ctx context.Context, w *world, r *replica) error {
	w.record.note("pause " + r.name)
	if err := r.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	sleep(ctx, leasesEnd+time.Duration(w.faults.IntN(2000))*time.Millisecond)
	return r.signal(syscall.SIGCONT)
}

// links are all ways of the deployment: to the replicas, and from these to the servers.
func (w *world) links() (all []*link) {
	for _, r := range w.replicas {
		all = append(append(all, r.front), r.back...)
	}
	return all
}

func cut(ctx context.Context, w *world) error {
	return w.rounds(ctx, 10, func(int) error { return cutLink(ctx, w) })
}

func cutLink(ctx context.Context, w *world) error {
	links := w.links()
	l := links[w.faults.IntN(len(links))]
	w.record.note("cut " + l.name)
	if w.faults.IntN(2) == 0 {
		return l.drop()
	}
	l.cut()
	w.pause(ctx, 100, 3000)
	return l.mend(ctx)
}

func latency(ctx context.Context, w *world) error {
	return w.rounds(ctx, 3, func(int) error { return slowLinks(ctx, w) })
}

func slowLinks(ctx context.Context, w *world) (err error) {
	w.record.note("latency")
	for _, l := range w.links() {
		if w.faults.IntN(2) == 0 {
			err = errors.Join(err, l.slow(20+w.faults.IntN(200), w.faults.IntN(80)))
		}
	}
	w.pause(ctx, 2000, 5000)
	return errors.Join(err, w.mendLinks(ctx))
}

func (w *world) mendLinks(ctx context.Context) (err error) {
	for _, l := range w.links() {
		err = errors.Join(err, l.mend(ctx))
	}
	return err
}

func blackHole(ctx context.Context, w *world) error {
	return w.rounds(ctx, 3, func(int) error { return swallow(ctx, w) })
}

func swallow(ctx context.Context, w *world) error {
	r := w.anyReplica()
	l := r.front
	if w.faults.IntN(3) > 0 {
		l = r.back[w.faults.IntN(len(r.back))]
	}
	w.record.note("black hole on " + l.name)
	if err := l.swallow(); err != nil {
		return err
	}
	w.pause(ctx, 3000, 13000)
	return l.mend(ctx)
}

func holdLocks(ctx context.Context, w *world) error {
	return w.rounds(ctx, 4, func(int) error { return holdLock(ctx, w) })
}

func holdLock(ctx context.Context, w *world) error {
	return oneOf(w.faults,
		func() error { return w.hold(ctx, "select from pawl.instance order by id limit 20 for update") },
		func() error { return w.hold(ctx, "lock table pawl.instance in share mode") },
		func() error { return w.hold(ctx, "lock table pawl.history in access exclusive mode") },
		func() error { return w.hold(ctx, "lock table pawl.consumer in share row exclusive mode") },
	)
}

// hold runs a statement in a transaction, and keeps its locks for some seconds.
func (w *world) hold(ctx context.Context, sql string) error {
	w.record.note(sql)
	conn, err := pgx.Connect(ctx, w.cluster.writer().DSN())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // This ends the transaction.
	if _, err := conn.Exec(ctx, "begin; "+sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	w.pause(ctx, 1000, 5000)
	return nil
}

func useUpConnections(ctx context.Context, w *world) error {
	return w.rounds(ctx, 2, func(int) error { return useUp(ctx, w) })
}

// useUp takes all connections that are left to ordinary roles, and ends some of the service's, which it must then
// do without.
func useUp(ctx context.Context, w *world) error {
	w.record.note("use up the connections")
	var taken []*pgx.Conn
	defer func() {
		for _, conn := range taken {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	dsn := w.cluster.url("app", nil)
	take := func() {
		for len(taken) < 300 {
			conn, err := pgx.Connect(ctx, dsn)
			if err != nil {
				return // None is left.
			}
			taken = append(taken, conn)
		}
	}
	take()
	for range 5 {
		end := fmt.Sprintf("select pg_terminate_backend(pid) from (select pid from pg_stat_activity where usename = 'pawl' order by backend_start offset %d limit 10) a", w.faults.IntN(10))
		// Even the superuser's places are taken at times, by clients that are about to be refused.
		err := until(ctx, time.Minute, "a connection", func(ctx context.Context) (bool, error) {
			err := w.cluster.exec(ctx, end)
			return err == nil, err
		})
		if err != nil {
			return err
		}
		take()
		w.pause(ctx, 300, 1000)
	}
	return nil
}

// fillDisk fills the file system of the cluster, and makes room again. The server may end by itself meanwhile.
func fillDisk(ctx context.Context, w *world) error {
	return w.rounds(ctx, 2, func(int) error {
		w.record.note("fill the disk")
		ballast := filepath.Join(w.cluster.dir, "ballast")
		if err := fill(ballast); err != nil {
			return err
		}
		w.pause(ctx, 4000, 8000)
		if err := os.Remove(ballast); err != nil {
			return err
		}
		begin := time.Now()
		select {
		case <-w.cluster.writer().Done():
			w.record.note("restart Postgres")
			if err := w.cluster.writer().Restart(ctx); err != nil {
				return err
			}
		default:
		}
		err := until(ctx, time.Minute, "the server to recover", func(ctx context.Context) (bool, error) {
			return ask[bool](ctx, w.cluster.writer().DSN(), "select true")
		})
		w.record.loss(begin, true)
		return err
	})
}

// fill writes a file until there is no room.
func fill(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, size := range []int{1 << 20, 4 << 10} {
		for block := make([]byte, size); err == nil; {
			_, err = file.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		err = nil
	}
	return nil
}

func rollingRestart(ctx context.Context, w *world) error {
	return w.rounds(ctx, 3*len(w.replicas), func(round int) error { return restart(ctx, w, w.replicas[round%len(w.replicas)]) })
}

func restart(ctx context.Context, w *world, r *replica) error {
	w.record.note("restart " + r.name)
	if err := r.end(syscall.SIGTERM); err != nil {
		return err
	}
	if err := r.start(); err != nil {
		return err
	}
	return r.ready(ctx, time.Minute)
}

func behindPooler(ctx context.Context, w *world) error {
	return w.rounds(ctx, 6, func(round int) error {
		if round == 3 {
			return crash(ctx, w)
		}
		return oneOf(w.faults,
			func() error { return killBackend(ctx, w) },
			func() error { return cutLink(ctx, w) },
			func() error { return killReplica(ctx, w) },
		)
	})
}

func all(ctx context.Context, w *world) error {
	err := w.rounds(ctx, 12, func(int) error {
		return oneOf(w.faults,
			func() error { return killReplica(ctx, w) },
			func() error { return killBackend(ctx, w) },
			func() error { return crash(ctx, w) },
			func() error { return pauseReplica(ctx, w, w.anyReplica()) },
			func() error { return cutLink(ctx, w) },
			func() error { return slowLinks(ctx, w) },
			func() error { return swallow(ctx, w) },
			func() error { return holdLock(ctx, w) },
			func() error { return useUp(ctx, w) },
			func() error { return restart(ctx, w, w.anyReplica()) },
		)
	})
	if err != nil {
		return err
	}
	if err := w.cluster.untilStreaming(ctx); err != nil {
		return err
	}
	return promote(ctx, w, 0)
}

// list returns the one column of a query, over a connection of its own.
func list[T any](ctx context.Context, dsn, sql string) ([]T, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[T])
}

// local is an address of this machine.
func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
