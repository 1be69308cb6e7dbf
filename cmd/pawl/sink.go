package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/sink"
)

// sinkFlags are the flags of serve and dev for sinks.
type sinkFlags struct {
	Sinks []string `name:"sink" sep:" " env:"PAWL_SINKS" placeholder:"URL" help:"Publish every message to this sink: stdout:, nats://host/STREAM, kafka://host/TOPIC or amqp://host/vhost?exchange=NAME. May be repeated; in the environment, separated by spaces. With ?findings=true it gets findings too, and with ?audit=true the audit. Put passwords in the environment only."`
}

// Validate refuses URLs that cannot work, and two sinks with one consumer, of which only one would get
// messages.
func (s *sinkFlags) Validate() error {
	_, err := s.parse()
	return err
}

// parse reads the URLs of the sinks.
func (s *sinkFlags) parse() ([]sink.URL, error) {
	var urls []sink.URL
	seen := make(map[string]bool)
	for _, raw := range s.Sinks {
		u, err := sink.Parse(raw)
		if err != nil {
			return nil, err
		}
		if seen[u.Consumer] {
			return nil, fmt.Errorf("two sinks use the consumer %q; name one with consumer=NAME", u.Consumer)
		}
		seen[u.Consumer] = true
		urls = append(urls, u)
	}
	return urls, nil
}

// relay adds the relays of each sink to the group. They run until the context ends.
func (s *sinkFlags) relay(ctx context.Context, c *console, pool *pgxpool.Pool, hub *live.Hub, group *errgroup.Group) error {
	urls, err := s.parse()
	if err != nil {
		return err
	}
	for _, u := range urls {
		receiver, err := u.Open(c.out)
		if err != nil {
			return err
		}
		receiver = sink.InTurns(receiver)
		relays := []*outbox.Relay{
			outbox.NewRelay(pool, u.Consumer, receiver, outbox.RelayConfig{FromStart: u.FromStart, Findings: u.Findings, Wake: hub.WakeLog, Logger: c.log}),
		}
		if u.AuditConsumer != "" {
			relays = append(relays, outbox.NewRelay(pool, u.AuditConsumer, receiver, outbox.RelayConfig{Audit: true, FromStart: u.FromStart, Logger: c.log}))
		}
		group.Go(func() error {
			defer func() { _ = receiver.Close() }()
			var running errgroup.Group
			for _, relay := range relays {
				running.Go(func() error { return relay.Run(ctx) })
			}
			return running.Wait()
		})
	}
	return nil
}
