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
	"github.com/pawl-fsm/pawl/outbox"
)

// webhookFlags say how webhooks are sent.
type webhookFlags struct {
	WebhookMaxAttempts  int           `default:"12" env:"PAWL_WEBHOOK_MAX_ATTEMPTS" help:"Attempts after which a webhook is a dead letter."`
	WebhookBackoffBase  time.Duration `default:"5s" env:"PAWL_WEBHOOK_BACKOFF_BASE" help:"Longest wait after the first failed attempt; it doubles with each, up to 1h."`
	WebhookAllowPrivate bool          `env:"PAWL_WEBHOOK_ALLOW_PRIVATE" help:"Let webhooks go to loopback, private and link-local addresses; for development."`
	WebhookSecret       string        `env:"PAWL_WEBHOOK_SECRET" help:"Signs the callbacks that bring no secret: whsec_ and 24 to 64 bytes in base64."`
}

// Validate refuses what nothing could be sent with.
func (w *webhookFlags) Validate() error {
	if w.WebhookMaxAttempts < 1 || w.WebhookBackoffBase <= 0 {
		return errors.New("--webhook-max-attempts and --webhook-backoff-base must be positive")
	}
	if err := w.policy().Validate(); err != nil {
		return fmt.Errorf("--webhook-secret: %w", err)
	}
	return nil
}

func (w *webhookFlags) policy() fsm.WebhookPolicy {
	return fsm.WebhookPolicy{AllowPrivate: w.WebhookAllowPrivate, Secret: w.WebhookSecret}
}

// deliver sends webhooks until the context ends.
func (w *webhookFlags) deliver(ctx context.Context, c *console, pool *pgxpool.Pool, hub *live.Hub, group *errgroup.Group) {
	wake := hub.All()
	webhooks := outbox.NewWebhooks(pool, outbox.WebhookConfig{
		MaxAttempts: w.WebhookMaxAttempts, Backoff: w.WebhookBackoffBase, AllowPrivate: w.WebhookAllowPrivate,
		Secret: w.WebhookSecret, Wake: wake.C(), Logger: c.log,
	})
	group.Go(func() error {
		defer wake.Close()
		return webhooks.Run(ctx)
	})
}
