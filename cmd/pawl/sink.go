package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/outbox"
)

// sinkFlags say where events are published.
type sinkFlags struct {
	Sinks []string `name:"sink" sep:" " env:"PAWL_SINKS" placeholder:"URL" help:"Publish every step there: stdout:, nats://host/STREAM, kafka://host/TOPIC or amqp://host/vhost?exchange=NAME. May be repeated; in the environment, with spaces between. Passwords belong there."`
}

// Validate refuses URLs that cannot work, and two of one consumer, of which one would get
// nothing.
func (s *sinkFlags) Validate() error {
	_, err := s.parse()
	return err
}

func (s *sinkFlags) parse() ([]outbox.SinkURL, error) {
	var urls []outbox.SinkURL
	seen := make(map[string]bool)
	for _, raw := range s.Sinks {
		u, err := outbox.ParseSinkURL(raw)
		if err != nil {
			return nil, err
		}
		if seen[u.Consumer] {
			return nil, fmt.Errorf("two sinks are the consumer %q; name one with consumer=NAME", u.Consumer)
		}
		seen[u.Consumer] = true
		urls = append(urls, u)
	}
	return urls, nil
}

// relay publishes to every sink until the context ends.
func (s *sinkFlags) relay(ctx context.Context, c *console, pool *pgxpool.Pool, hub *live.Hub, group *errgroup.Group) error {
	urls, err := s.parse()
	if err != nil {
		return err
	}
	for _, u := range urls {
		sink, err := u.Open(c.out)
		if err != nil {
			return err
		}
		wake := hub.All()
		relay := outbox.NewRelay(pool, u.Consumer, sink, outbox.RelayConfig{FromStart: u.FromStart, Wake: wake.C(), Logger: c.log})
		group.Go(func() error {
			defer wake.Close()
			defer func() { _ = sink.Close() }()
			return relay.Run(ctx)
		})
	}
	return nil
}
