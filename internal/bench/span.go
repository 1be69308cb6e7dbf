package bench

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
)

// measureSpans fires events at the service, and at a second one that sends a span for each command to a collector in this
// process. The collector reads the spans and keeps nothing.
func (b *benchmark) measureSpans(ctx context.Context) (err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var exports atomic.Int64
	collector := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			exports.Add(1)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- collector.Serve(listener) }()
	defer func() {
		if closed := collector.Close(); closed != nil {
			err = errors.Join(err, closed)
		}
		if ended := <-served; !errors.Is(ended, http.ErrServerClosed) {
			err = errors.Join(err, ended)
		}
	}()
	second, stop, err := b.startAnother(ctx, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://"+listener.Addr().String()+"/v1/traces")
	if err != nil {
		return errors.Join(err, stop())
	}
	with := func() *load {
		l := b.transitions(manyConnections)
		l.address, l.process = second.address, second.process
		return l
	}
	err = b.measurePair(ctx,
		side{"spanless", func() *load { return b.transitions(manyConnections) }, b.ids}, side{"spans", with, b.ids})
	// A service that stops sends what it still has.
	if err = errors.Join(err, stop()); err == nil && exports.Load() == 0 {
		err = errors.New("no spans came to the collector")
	}
	return err
}
