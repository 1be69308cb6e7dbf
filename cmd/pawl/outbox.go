package main

import (
	"fmt"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/outbox"
)

// outboxCommand is `pawl outbox`.
type outboxCommand struct {
	Status     outboxStatus     `cmd:"" help:"Show the consumers of the outbox: the leader of each, and how far behind it is."`
	Delete     outboxDelete     `cmd:"" help:"Delete a consumer that no process runs any more."`
	Deliveries outboxDeliveries `cmd:"" help:"List the deliveries of webhooks, newest first."`
	Replay     outboxReplay     `cmd:"" help:"Replay a delivery, or all dead letters: they become pending again."`
}

// outboxStatus prints the consumers, straight from the database.
type outboxStatus struct {
	roleFlags
	JSON bool `help:"Print the consumers as JSON."`
}

func (o *outboxStatus) Run(c *console) error {
	pool, err := openDatabase(c, o.DatabaseURL, db.Config{MaxConns: 1, StatementTimeout: time.Minute}, db.Reader)
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
	table := c.table(2)
	table.row("CONSUMER\tBEHIND\tSTEPS\tRELAYED\tLAST\tTERM\tLEADER")
	for _, s := range list {
		leader := s.Leader
		if leader == "" {
			leader = "nobody"
		}
		behind := time.Duration(s.BehindSeconds * float64(time.Second)).Round(time.Millisecond)
		table.row("%s\t%s\t%d\t%d\t%s\t%d\t%s",
			s.Consumer, behind, s.Steps, s.Relayed, s.AdvancedAt.UTC().Format(time.RFC3339), s.Term, leader)
	}
	return table.Flush()
}

// outboxDelete deletes a consumer, straight from the database.
type outboxDelete struct {
	ownerFlags
	Consumer string `arg:"" help:"Name of the consumer, as 'pawl outbox status' prints it."`
}

func (o *outboxDelete) Run(c *console) error {
	pool, err := openDatabase(c, o.DatabaseURL, db.Config{MaxConns: 1, StatementTimeout: time.Minute}, db.Reader)
	if err != nil {
		return err
	}
	defer pool.Close()
	deleted, err := outbox.DeleteConsumer(c, pool, o.Consumer)
	if err == nil && !deleted {
		err = fmt.Errorf("there is no consumer %q; 'pawl outbox status' lists the consumers", o.Consumer)
	}
	return asOwner(err)
}
