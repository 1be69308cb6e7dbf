package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/finding"
	"github.com/pawl-fsm/pawl/internal/telemetry"
	"github.com/pawl-fsm/pawl/outbox"
)

// telemetryFlags are the flags of serve and dev for metrics. What is pushed to a collector is said by the variables OTEL_*.
type telemetryFlags struct {
	MetricsListen  string   `env:"PAWL_METRICS_LISTEN" placeholder:"ADDRESS" help:"Serve /metrics at this address too, to whoever reaches it, and also with --no-api. At the address of the API only tokens of the tenant * with the scope read may have them."`
	MetricsTenants []string `name:"metrics-tenant" env:"PAWL_METRICS_TENANTS" placeholder:"TENANT" help:"Count requests and commands of this tenant by themselves. May be repeated. Without it metrics do not tell tenants apart."`
}

// maxMetricsTenants bounds the series that the flag can make.
const maxMetricsTenants = 50

// Validate refuses more tenants than metrics have room for.
func (f *telemetryFlags) Validate() error {
	if len(f.MetricsTenants) > maxMetricsTenants {
		return fmt.Errorf("--metrics-tenant can be given at most %d times", maxMetricsTenants)
	}
	return nil
}

// telemetry returns what measures the process.
func (f *telemetryFlags) telemetry(c *console) (*telemetry.Telemetry, error) {
	return telemetry.New(c, telemetry.Config{Version: version, Tenants: f.MetricsTenants, Getenv: os.Getenv, Logger: c.log})
}

// measure shows what waits in a service and what its pools do, and has the spans of its commands linked.
func measure(t *telemetry.Telemetry, service *fsm.Service, pools telemetry.Pools) error {
	t.LinkBy(service.PreviousTraces)
	return errors.Join(t.Queues(service.Waiting), t.Show(pools))
}

// backlogOf returns what measures the deployment: what it has not done yet, and what is wrong with its instances.
func backlogOf(pool *pgxpool.Pool, service *fsm.Service) func(context.Context) ([]outbox.Measure, error) {
	findings := finding.New(service)
	return func(ctx context.Context) ([]outbox.Measure, error) {
		measures, err := outbox.Backlog(ctx, pool)
		if err != nil {
			return nil, err
		}
		counts, err := findings.Counts(ctx)
		if err != nil {
			return nil, err
		}
		for kind, n := range counts {
			measures = append(measures, outbox.Measure{Name: "findings", Label: string(kind), Value: float64(n)})
		}
		return measures, nil
	}
}

// serveMetrics adds the listener for metrics alone to the group, if there is to be one. It ends with the context.
func (f *telemetryFlags) serveMetrics(ctx context.Context, c *console, t *telemetry.Telemetry, group *errgroup.Group) error {
	if f.MetricsListen == "" {
		return nil
	}
	listener, err := net.Listen("tcp", f.MetricsListen)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", t.Handler())
	server := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10}
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve metrics: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	c.log.Info("serving metrics", "address", listener.Addr().String())
	return nil
}
