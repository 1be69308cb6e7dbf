package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/outbox/webhook"
)

// webhookFlags are the flags of serve and dev for webhooks.
type webhookFlags struct {
	WebhookMaxAttempts  int           `default:"12" env:"PAWL_WEBHOOK_MAX_ATTEMPTS" help:"Number of attempts after which a delivery is a dead letter."`
	WebhookBackoffBase  time.Duration `default:"5s" env:"PAWL_WEBHOOK_BACKOFF_BASE" help:"Longest wait after the first failed attempt; it doubles with each further one, up to 1h."`
	WebhookAllowPrivate bool          `env:"PAWL_WEBHOOK_ALLOW_PRIVATE" help:"Allow webhooks to loopback, private and link-local addresses; for development only."`
	WebhookSecret       string        `env:"PAWL_WEBHOOK_SECRET" help:"Secret that signs callbacks without a secret of their own: whsec_ and 24 to 64 bytes in base64."`
}

// Validate refuses values with which no webhook could be sent.
func (w *webhookFlags) Validate() error {
	if w.WebhookMaxAttempts < 1 || w.WebhookBackoffBase <= 0 {
		return errors.New("--webhook-max-attempts and --webhook-backoff-base must be positive")
	}
	if err := w.policy().Validate(); err != nil {
		return fmt.Errorf("--webhook-secret: %w", err)
	}
	return nil
}

// policy returns where webhooks may go and what signs callbacks without a secret of their own. The service
// checks URLs against it, and the sender applies it.
func (w *webhookFlags) policy() fsm.WebhookPolicy {
	return fsm.WebhookPolicy{AllowPrivate: w.WebhookAllowPrivate, Secret: w.WebhookSecret}
}

// deliver adds the worker that sends webhooks to the group. The worker runs until the context ends.
func (w *webhookFlags) deliver(ctx context.Context, c *console, pool *pgxpool.Pool, hub *live.Hub, group *errgroup.Group) {
	webhooks := webhook.New(pool, webhook.Config{
		Policy: w.policy(), MaxAttempts: w.WebhookMaxAttempts, Backoff: w.WebhookBackoffBase, Wake: hub.WakeLog, Logger: c.log,
	})
	group.Go(func() error { return webhooks.Run(ctx) })
}
