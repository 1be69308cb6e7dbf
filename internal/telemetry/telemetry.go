package telemetry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"golang.org/x/time/rate"

	"github.com/pawl-fsm/pawl/fsm"
)

// Config configures a Telemetry. Its zero value works.
type Config struct {
	// Version is that of the program.
	Version string
	// Tenants are those that requests and commands are counted for. Others are counted as one, Other. Default none: no
	// series has a tenant.
	Tenants []string
	// Getenv reads the variables OTEL_*, besides what OpenTelemetry itself reads from the process. Default: they are
	// not set.
	Getenv func(string) string
	// Logger gets failures to push, at most once a minute. Default: nothing is logged.
	Logger *slog.Logger
}

// Telemetry has the instruments of a process. Its methods may be used by several goroutines at once.
type Telemetry struct {
	config   Config
	registry *prometheus.Registry
	meters   *sdk.MeterProvider
	meter    metric.Meter
	spans    *sdktrace.TracerProvider
	// steps are the spans of steps that no request has made; nil if no spans are exported.
	steps    *sdktrace.TracerProvider
	previous atomic.Pointer[func(context.Context, []fsm.TracedStep) ([]string, error)]

	requests, commands, keys *family
	routes                   routes
	took, waited, called     metric.Float64Histogram
	batches                  metric.Int64Histogram
	ages                     metric.Float64Histogram
	database                 metric.Float64Histogram
}

// Buckets of durations, in seconds.
var (
	durations = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}
	ages      = []float64{.1, 1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600}
)

// The budgets of the families that callers and definitions can make grow, in bytes. See doc.go.
const (
	requestBudget = 110_000
	routeBudget   = 250_000
	commandBudget = 420_000
)

// New returns a Telemetry that pushes if the variables say so.
//
// # Errors
//
// It fails if OTEL_EXPORTER_OTLP_PROTOCOL, or that of metrics or traces, asks for another protocol than http/protobuf, and if
// OTEL_EXPORTER_OTLP_ENDPOINT, or that of either, is no URL.
func New(ctx context.Context, config Config) (*Telemetry, error) {
	if config.Getenv == nil {
		config.Getenv = func(string) string { return "" }
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Telemetry{config: config, registry: prometheus.NewRegistry()}
	t.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	scrape, err := exporter.New(exporter.WithRegisterer(t.registry), exporter.WithoutScopeInfo(), exporter.WithoutTargetInfo())
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	about := resource.NewSchemaless(
		attribute.String("service.name", cmp.Or(config.Getenv("OTEL_SERVICE_NAME"), "pawl")), attribute.String("service.version", config.Version))
	if merged, err := resource.Merge(about, resource.Environment()); err == nil {
		about = merged
	}
	otel.SetLogger(logr.New(quiet{config.Logger}))
	// The families have limits of their own.
	options := []sdk.Option{sdk.WithReader(scrape), sdk.WithResource(about), sdk.WithCardinalityLimit(0)}
	pushes, err := t.pushes("METRICS")
	if err != nil {
		return nil, err
	}
	if pushes {
		push, err := otlpmetrichttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("telemetry: %w", err)
		}
		options = append(options, sdk.WithReader(sdk.NewPeriodicReader(push)))
	}
	sometimes := rate.Sometimes{First: 1, Interval: time.Minute}
	// OpenTelemetry tells of its failures in one place for the whole process.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		sometimes.Do(func() { config.Logger.Warn("telemetry is not delivered", "error", err) })
	}))
	if err := t.tracing(ctx, about); err != nil {
		return nil, err
	}
	t.meters = sdk.NewMeterProvider(options...)
	t.meter = t.meters.Meter("pawl")
	return t, t.instruments()
}

// pushes reports whether a signal, METRICS or TRACES, is pushed by OTLP: if it has an endpoint, or the exporter is named.
func (t *Telemetry) pushes(signal string) (bool, error) {
	set := func(rest string) (name, value string) {
		for _, name = range []string{"OTEL_EXPORTER_OTLP_" + signal + rest, "OTEL_EXPORTER_OTLP" + rest} {
			if value = t.config.Getenv(name); value != "" {
				break
			}
		}
		return name, value
	}
	wish := t.config.Getenv("OTEL_" + signal + "_EXPORTER")
	place, endpoint := set("_ENDPOINT")
	if disabled, _ := strconv.ParseBool(t.config.Getenv("OTEL_SDK_DISABLED")); disabled || wish != "otlp" && (wish != "" || endpoint == "") {
		return false, nil
	}
	if name, protocol := set("_PROTOCOL"); protocol != "" && protocol != "http/protobuf" {
		return false, fmt.Errorf("telemetry: %s is %s: only http/protobuf is supported", name, protocol)
	}
	// The exporter would take another endpoint, or none.
	if u, err := url.Parse(endpoint); endpoint != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		return false, fmt.Errorf("telemetry: %s must be a URL such as http://127.0.0.1:4318", place)
	}
	return true, nil
}

// instruments makes the instruments of the process.
func (t *Telemetry) instruments() error {
	t.requests = newFamily("pawl_requests", requestBudget, []string{"tenant", "route"}, "route", "method", "status", "tenant")
	t.commands = newFamily("pawl_commands", commandBudget, []string{"event", "tenant", "workflow"}, "workflow", "event", "outcome", "tenant")
	t.keys = newFamily("pawl_idempotency", 1000, nil, "result")
	seconds := func(name, description string, bounds []float64) (h metric.Float64Histogram, err error) {
		return t.meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(description), metric.WithExplicitBucketBoundaries(bounds...))
	}
	var errs [9]error
	errs[0] = t.requests.observe(t.meter, "pawl.requests", "Requests that have ended, by route; streams are counted when they end.")
	errs[1] = t.commands.observe(t.meter, "pawl.commands", "Commands that have a reply, by what became of them.")
	errs[2] = t.keys.observe(t.meter, "pawl.idempotency", "Commands with an idempotency key: new, replayed, or a collision with another request.")
	t.took, errs[3] = seconds("pawl.request.duration", "From the arrival of a request to the end of its answer.", durations)
	t.waited, errs[4] = seconds("pawl.queue.wait", "How long commands and reads wait for their first call to the database.", durations)
	t.called, errs[5] = seconds("pawl.batch.duration", "How long calls with batches take, repetitions and checks included.", durations)
	t.ages, errs[6] = seconds("pawl.idempotency.replay.age", "How old the state is that a replay shows.", ages)
	t.database, errs[7] = seconds("pawl.database.call.duration", "Calls to the database, by the pool of connections and whether they succeed.", durations)
	t.batches, errs[8] = t.meter.Int64Histogram("pawl.batch.size", metric.WithDescription("Commands or reads in a call to the database."),
		metric.WithExplicitBucketBoundaries(1, 2, 4, 8, 16, 32, 64, 128, 256))
	return errors.Join(errs[:]...)
}

// tenant is the label of a tenant; empty for none.
func (t *Telemetry) tenant(name string) string {
	switch {
	case len(t.config.Tenants) == 0:
		return ""
	case slices.Contains(t.config.Tenants, name):
		return name
	}
	return Other
}

// Request counts a request that has ended. Route and method are those of the contract, or Other.
func (t *Telemetry) Request(method, route, tenant string, status int, took time.Duration) {
	t.requests.add(values{route, method, strconv.Itoa(status), t.tenant(tenant)})
	t.took.Record(context.Background(), took.Seconds(), t.routes.of(method, route))
}

// routes are the labels of durations, by method and route. They have a budget, too: see doc.go.
type routes struct {
	mu     sync.RWMutex
	used   int // In bytes.
	labels map[[2]string]metric.MeasurementOption
}

func (r *routes) of(method, route string) metric.MeasurementOption {
	r.mu.RLock()
	labels := r.labels[[2]string{method, route}]
	r.mu.RUnlock()
	if labels != nil {
		return labels
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// A line for each bucket, and three more.
	size := (len(durations) + 3) * (len(`pawl_request_duration_seconds_bucket{method=,route=,le="0.0025"} 1000000000`) + len(strconv.Quote(method+route)) + 2)
	key := [2]string{method, route}
	if r.used+size > routeBudget {
		key = [2]string{Other, Other}
	}
	if labels = r.labels[key]; labels != nil {
		return labels
	}
	if r.labels == nil {
		r.labels = map[[2]string]metric.MeasurementOption{}
	}
	r.used += size
	r.labels[key] = metric.WithAttributeSet(attribute.NewSet(attribute.String("method", key[0]), attribute.String("route", key[1])))
	return r.labels[key]
}

// Probe is what a Service tells.
func (t *Telemetry) Probe() fsm.Probe {
	queue := func(name string) metric.MeasurementOption {
		return metric.WithAttributes(attribute.String("queue", name))
	}
	return fsm.Probe{
		Waited: func(name string, waited time.Duration) {
			t.waited.Record(context.Background(), waited.Seconds(), queue(name))
		},
		Called: func(name string, commands int, took time.Duration) {
			t.batches.Record(context.Background(), int64(commands), queue(name))
			t.called.Record(context.Background(), took.Seconds(), queue(name))
		},
		Answered: t.answered,
	}
}

// eventName is what definitions name events by, and the names that stand for other commands. Patterns admit any text.
var eventName = regexp.MustCompile(`^_?[A-Za-z][A-Za-z0-9_.-]{0,63}$`)

func (t *Telemetry) answered(a fsm.Observation) {
	event := Other
	if eventName.MatchString(a.Event) {
		event = a.Event
	}
	t.commands.add(values{cmp.Or(a.Workflow, Other), event, a.Outcome, t.tenant(a.Tenant)})
	if a.Key != "" {
		t.keys.add(values{a.Key})
	}
	if a.Age > 0 {
		t.ages.Record(context.Background(), a.Age.Seconds())
	}
}

// Queues shows how many commands wait, as a function says.
func (t *Telemetry) Queues(waiting func() map[string]int) error {
	_, err := t.meter.Int64ObservableGauge("pawl.queue.depth", metric.WithDescription("Commands and reads that wait for a call."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			for queue, n := range waiting() {
				o.Observe(int64(n), metric.WithAttributes(attribute.String("queue", queue)))
			}
			return nil
		}))
	return err
}

// Handler answers with the metrics, in the text format of Prometheus.
func (t *Telemetry) Handler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{DisableCompression: true, ErrorHandling: promhttp.ContinueOnError})
}

// Close pushes what is left, if the collector takes it before the context ends.
func (t *Telemetry) Close(ctx context.Context) {
	// A failure is the collector's, and has been told to the error handler.
	_ = errors.Join(t.spans.Shutdown(ctx), t.meters.Shutdown(ctx))
}
