package telemetry

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/pawl-fsm/pawl/outbox"
)

const (
	// backlogEvery is how often the backlog is measured.
	backlogEvery = 10 * time.Second
	// backlogFresh is for how long a measurement is shown.
	backlogFresh = 3 * backlogEvery
	// maxTopics is how many topics tasks are counted for; the others are Other.
	maxTopics = 100
)

// A Backlog shows what the deployment has not done yet, while this process leads. Its methods may be used by several
// goroutines at once.
type Backlog struct {
	telemetry *Telemetry
	read      func(context.Context) ([]outbox.Measure, error)
	leads     chan struct{} // Has an item when the process has become the leader.

	mu       sync.Mutex
	until    time.Time // When the lease ends.
	measures []outbox.Measure
	measured time.Time
}

// NewBacklog returns a Backlog that reads what it shows from a function.
func (t *Telemetry) NewBacklog(read func(context.Context) ([]outbox.Measure, error)) (*Backlog, error) {
	b := &Backlog{telemetry: t, read: read, leads: make(chan struct{}, 1)}
	gauges := map[string]metric.Float64ObservableGauge{}
	var instruments []metric.Observable
	for _, g := range []struct{ measure, name, unit, description string }{
		{"leading", "pawl.leading", "", "1 if the process has the numbers of the deployment, else 0."},
		{"timers_due", "pawl.timers.due", "", "Deadlines that have passed and are not ended yet, up to 10,000."},
		{"timers_late", "pawl.timers.late", "s", "For how long the oldest of these deadlines has passed."},
		{"timers_failing", "pawl.timers.failing", "", "Deadlines that cannot be ended, up to 10,000."},
		{"consumer_steps", "pawl.consumer.lag", "", "Positions of the log that a consumer has not read."},
		{"consumer_behind", "pawl.consumer.behind", "s", "Age of the first step that a consumer has not read."},
		{"deliveries_due", "pawl.deliveries.due", "", "Deliveries of webhooks that may be sent now, up to 10,000."},
		{"deliveries_late", "pawl.deliveries.late", "s", "For how long the oldest of these deliveries is due."},
		{"deliveries_dead", "pawl.deliveries.dead", "", "Dead letters, up to 10,000."},
		{"tasks", "pawl.tasks", "", "Tasks that are open or have ended badly, by topic and status; calls have the topic _call."},
		{"findings", "pawl.findings", "", "Open findings by kind, such as instances that are stuck, up to 10,000 of each."},
	} {
		gauge, err := t.meter.Float64ObservableGauge(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.description))
		if err != nil {
			return nil, err
		}
		gauges[g.measure] = gauge
		instruments = append(instruments, gauge)
	}
	_, err := t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		measures, leads := b.shown(time.Now())
		if !leads {
			o.ObserveFloat64(gauges["leading"], 0)
			return nil
		}
		o.ObserveFloat64(gauges["leading"], 1)
		for _, m := range measures {
			if gauge := gauges[m.Name]; gauge != nil {
				o.ObserveFloat64(gauge, m.Value, metric.WithAttributes(attributesOf(m)...))
			}
		}
		return nil
	}, instruments...)
	return b, err
}

// attributesOf returns the labels of a measure.
func attributesOf(m outbox.Measure) (labels []attribute.KeyValue) {
	if m.Label != "" {
		name := "consumer"
		switch m.Name {
		case "tasks":
			name = "topic"
		case "findings":
			name = "kind"
		}
		labels = append(labels, attribute.String(name, m.Label))
	}
	if m.Status != "" {
		labels = append(labels, attribute.String("status", m.Status))
	}
	return labels
}

// Leading says until when the process leads; see [outbox.SequencerConfig].
func (b *Backlog) Leading(until time.Time) {
	b.mu.Lock()
	began := b.until.IsZero() && !until.IsZero()
	b.until = until
	if until.IsZero() {
		b.measures = nil
	}
	b.mu.Unlock()
	if began {
		select {
		case b.leads <- struct{}{}:
		default:
		}
	}
}

// shown returns what is to be shown at a time, and whether the process leads then.
func (b *Backlog) shown(now time.Time) (measures []outbox.Measure, leads bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !now.Before(b.until) {
		return nil, false
	}
	if now.Sub(b.measured) > backlogFresh {
		return nil, true
	}
	return b.measures, true
}

// Run measures the backlog while the process leads, until the context ends.
func (b *Backlog) Run(ctx context.Context) error {
	tick := time.NewTicker(backlogEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.leads:
		case <-tick.C:
		}
		if _, leads := b.shown(time.Now()); leads {
			b.measure(ctx)
		}
	}
}

func (b *Backlog) measure(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, backlogEvery)
	defer cancel()
	measures, err := b.read(ctx)
	if err != nil {
		if ctx.Err() == nil {
			b.telemetry.config.Logger.WarnContext(ctx, "the backlog cannot be measured", "error", err)
		}
		return
	}
	measures = foldTopics(measures)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.until.IsZero() {
		b.measures, b.measured = measures, time.Now()
	}
}

// foldTopics adds up the tasks of all but the topics with the most tasks.
func foldTopics(measures []outbox.Measure) (folded []outbox.Measure) {
	counts := map[string]float64{}
	for _, m := range measures {
		if m.Name == "tasks" {
			counts[m.Label] += m.Value
		}
	}
	var topics []string
	for topic := range counts {
		topics = append(topics, topic)
	}
	slices.SortFunc(topics, func(a, b string) int { return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b)) })
	topics = topics[:min(len(topics), maxTopics)]
	others := map[string]float64{}
	for _, m := range measures {
		if m.Name == "tasks" && !slices.Contains(topics, m.Label) {
			others[m.Status] += m.Value
			continue
		}
		folded = append(folded, m)
	}
	for status, n := range others {
		folded = append(folded, outbox.Measure{Name: "tasks", Label: Other, Status: status, Value: n})
	}
	return folded
}
