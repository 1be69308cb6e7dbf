package main

import (
	"context"
	"fmt"
	"strings"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// A link is a TCP proxy before one server, on which faults are put.
type link struct {
	name  string
	proxy *toxiproxy.Proxy
}

// newLink starts a proxy on a free port of 127.0.0.1.
func newLink(name, upstream string) (*link, error) {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	l := &link{name: name, proxy: toxiproxy.NewProxy(server, name, "127.0.0.1:0", upstream)}
	if err := l.proxy.Start(); err != nil {
		return nil, fmt.Errorf("start the proxy %s: %w", name, err)
	}
	return l, nil
}

// address is where the proxy listens. It stays the same through cut and mend.
func (l *link) address() string { return l.proxy.Listen }

// cut closes all connections, and refuses new ones until mend.
func (l *link) cut() { l.proxy.Stop() }

// drop closes all connections and takes new ones.
func (l *link) drop() error {
	l.proxy.Stop()
	return l.proxy.Start()
}

// slow delays all that the server sends.
func (l *link) slow(milliseconds, jitter int) error {
	return l.add(fmt.Sprintf(`{"type": "latency", "stream": "downstream", "attributes": {"latency": %d, "jitter": %d}}`, milliseconds, jitter))
}

// swallow lets connections open and passes nothing on, in both directions.
func (l *link) swallow() error {
	for _, stream := range []string{"upstream", "downstream"} {
		if err := l.add(`{"type": "timeout", "stream": "` + stream + `", "attributes": {"timeout": 0}}`); err != nil {
			return err
		}
	}
	return nil
}

func (l *link) add(toxic string) error {
	if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		return fmt.Errorf("put a fault on the proxy %s: %w", l.name, err)
	}
	return nil
}

// mend takes all faults off.
func (l *link) mend(ctx context.Context) error {
	l.proxy.Toxics.ResetToxics(ctx)
	l.proxy.Lock()
	stopped := !l.proxy.Enabled
	l.proxy.Unlock()
	if stopped {
		return l.proxy.Start()
	}
	return nil
}

func (l *link) close() { l.proxy.Stop() }
