package httpapi_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/httpapi"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A counted counts the statements of a pool.
type counted struct{ n atomic.Int64 }

func (c *counted) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.n.Add(1)
	return ctx
}

func (c *counted) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// The benchmark measures the cost of 5,000 requests that each wait for one instance, the time
// until one of them is answered after its instance moved, and the time until all are answered.
func BenchmarkIdleWaiters(b *testing.B) {
	const waiters = 5000
	pool := dbtest.New(b)
	config, err := pgxpool.ParseConfig(dbtest.DSN(pool))
	if err != nil {
		b.Fatal(err)
	}
	statements := &counted{}
	config.ConnConfig.Tracer = statements
	own, err := pgxpool.NewWithConfig(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	defer own.Close()
	hub := live.NewHub(own, live.HubConfig{})
	notifier := live.NewNotifier(own, hub)
	defer notifier.Close()
	service := fsm.New(own, fsm.Config{Moved: notifier.Moved})
	defer service.Close()
	defer bounded.Run(b, "the hub", hub.Run)()
	a := serveHandler(b, httpapi.ServicesOf(service, hub), setup{})
	a.pool = pool
	a.register(counter)
	bounded.Exec(b, pool, `select pawl.create_one('counter', '{"sum": 0}') from generate_series(1, 5000)`)
	ids := bounded.Column[string](b, pool, "select id::text from pawl.instance")
	memory := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	for b.Loop() {
		goroutines, bytes, asked := runtime.NumGoroutine(), memory(), statements.n.Load()
		conns := make([]net.Conn, waiters)
		for i := range conns {
			if conns[i], err = net.Dial("tcp", strings.TrimPrefix(a.url, "http://")); err != nil {
				b.Fatal(err)
			}
			_, err = fmt.Fprintf(conns[i], "GET /v1/instances/%s?until=final HTTP/1.1\r\nHost: pawl.test\r\nPrefer: wait=60\r\n\r\n", ids[i])
			if err != nil {
				b.Fatal(err)
			}
		}
		// Each request reads its instance once, and waits.
		bounded.Until(b, "all requests to wait", statements.n.Load, func(n int64) bool { return n >= asked+waiters })
		before := statements.n.Load()
		time.Sleep(5 * time.Second) // bounded: the time that is measured
		b.ReportMetric(float64(statements.n.Load()-before)/5, "statements/s")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/waiters, "goroutines/waiter")
		b.ReportMetric(float64(memory()-bytes)/waiters, "B/waiter")
		start := time.Now()
		a.fire(ids[0], "stop", "").want(http.StatusOK)
		answered(b, conns[0])
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/answer")
		bounded.Exec(b, pool, "select pawl.fire_one(id, 'stop') from pawl.instance where state = 'ON'")
		start = time.Now()
		for _, conn := range conns[1:] {
			answered(b, conn)
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms/all")
	}
}

func answered(b *testing.B, conn net.Conn) {
	b.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	text := make([]byte, 12)
	if _, err := io.ReadFull(conn, text); err != nil || string(text) != "HTTP/1.1 200" {
		b.Fatalf("%v: %s", err, text)
	}
	_ = conn.Close()
}
