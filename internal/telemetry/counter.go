package telemetry

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Other is the value of a label for all that has no value of its own.
const Other = "_other"

// maxLabels is the largest number of labels of a family.
const maxLabels = 4

// values are those of a family's labels, in their order.
type values [maxLabels]string

// A family counts by labels. The text of its series in /metrics stays within a budget. The series with one value of the
// first label have no more of it than is left, so that one value alone cannot use up what others need. It may be used by
// several goroutines at once.
type family struct {
	name   string
	labels []string
	// folds are the labels that become Other, one after the other, when the budget is used up.
	folds  []int
	budget int // In bytes. Series of which something is folded may use a quarter more.
	mu     sync.RWMutex
	used   int
	usedBy map[string]int // By the values of the first label.
	series map[values]*series
}

type series struct {
	count  atomic.Int64
	labels []metric.ObserveOption
}

func newFamily(name string, budget int, folds []string, labels ...string) *family {
	f := &family{name: name, labels: labels, budget: budget, usedBy: map[string]int{}, series: map[values]*series{}}
	for _, label := range folds {
		f.folds = append(f.folds, slices.Index(labels, label))
	}
	return f
}

// add counts one. An empty value is a missing label.
func (f *family) add(v values) {
	f.mu.RLock()
	s := f.series[v]
	f.mu.RUnlock()
	if s == nil {
		s = f.begin(v)
	}
	s.count.Add(1)
}

// begin returns the series of some values, which is a folded one if there is no room for its own.
func (f *family) begin(v values) *series {
	f.mu.Lock()
	defer f.mu.Unlock()
	budget := f.budget
	for _, fold := range append([]int{-1}, f.folds...) {
		if fold >= 0 {
			v[fold], budget = Other, f.budget+f.budget/4
		}
		if s := f.series[v]; s != nil {
			return s
		}
		size := f.size(v)
		if left := budget - f.used - size; f.usedBy[v[0]] <= left {
			f.used += size
			f.usedBy[v[0]] += size
			f.series[v] = &series{labels: f.labelled(v)}
			return f.series[v]
		}
	}
	// All that folds is folded: there are few such series.
	f.series[v] = &series{labels: f.labelled(v)}
	return f.series[v]
}

// size is how many bytes a series has in /metrics, at most.
func (f *family) size(v values) int {
	size := len(f.name) + len("_total{} \n") + 20
	for i, label := range f.labels {
		size += len(label) + len(`=,`) + len(strconv.Quote(v[i]))
	}
	return size
}

func (f *family) labelled(v values) []metric.ObserveOption {
	var list []attribute.KeyValue
	for i, label := range f.labels {
		if v[i] != "" {
			list = append(list, attribute.String(label, v[i]))
		}
	}
	return []metric.ObserveOption{metric.WithAttributeSet(attribute.NewSet(list...))}
}

// observe makes the family a counter of a meter.
func (f *family) observe(meter metric.Meter, name, description string) error {
	_, err := meter.Int64ObservableCounter(name, metric.WithDescription(description), metric.WithInt64Callback(
		func(_ context.Context, o metric.Int64Observer) error {
			f.mu.RLock()
			defer f.mu.RUnlock()
			for _, s := range f.series {
				o.Observe(s.count.Load(), s.labels...)
			}
			return nil
		}))
	return err
}
