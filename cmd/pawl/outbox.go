package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/outbox"
)

type outboxCommand struct {
	Status     outboxStatus     `cmd:"" help:"Show the consumers of the outbox: who leads, and how far behind they are."`
	Deliveries outboxDeliveries `cmd:"" help:"List the deliveries of webhooks, the newest first."`
	Replay     outboxReplay     `cmd:"" help:"Send a delivery again, or all dead letters."`
	Forget     outboxForget     `cmd:"" help:"Remove a consumer that nobody runs any more."`
}

type outboxStatus struct {
	DatabaseURL string `required:"" env:"DATABASE_URL,PAWL_DATABASE_URL" placeholder:"URL" help:"The database, as a role with the privileges of 'pawl migrate grants'."`
	JSON        bool   `help:"Print JSON."`
}

// Validate refuses a variable that is set to nothing.
func (o outboxStatus) Validate() error { return wantDatabase(o.DatabaseURL) }

func (o *outboxStatus) Run(c *console) error {
	pool, err := db.Open(c, o.DatabaseURL, db.Config{MaxConns: 1, StatementTimeout: time.Minute})
	if err != nil {
		return err
	}
	defer pool.Close()
	list, err := outbox.Statuses(c, pool)
	if err != nil {
		return err
	}
	if o.JSON {
		return c.printJSON(list)
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "CONSUMER\tBEHIND\tSTEPS\tRELAYED\tLAST\tTERM\tLEADER")
	for _, s := range list {
		leader := s.Leader
		if leader == "" {
			leader = "nobody"
		}
		behind := time.Duration(s.BehindSeconds * float64(time.Second)).Round(time.Millisecond)
		_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%d\t%s\n",
			s.Consumer, behind, s.Steps, s.Relayed, s.AdvancedAt.UTC().Format(time.RFC3339), s.Term, leader)
	}
	return w.Flush()
}

type outboxForget struct {
	ownerFlags
	Consumer string `arg:"" help:"The consumer, as 'pawl outbox status' names it."`
}

func (o *outboxForget) Run(c *console) error {
	pool, err := db.Open(c, o.DatabaseURL, db.Config{MaxConns: 1, StatementTimeout: time.Minute})
	if err != nil {
		return err
	}
	defer pool.Close()
	forgotten, err := outbox.DeleteConsumer(c, pool, o.Consumer)
	if err == nil && !forgotten {
		err = fmt.Errorf("there is no consumer %q", o.Consumer)
	}
	return asOwner(err)
}
