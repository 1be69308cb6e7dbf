package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/webhook"
)

// webhookFlags are the flags of serve and dev for webhooks.
type webhookFlags struct {
	WebhookMaxAttempts  int           `default:"12" env:"PAWL_WEBHOOK_MAX_ATTEMPTS" help:"Number of attempts after which a delivery is a dead letter."`
	WebhookBackoffBase  time.Duration `default:"5s" env:"PAWL_WEBHOOK_BACKOFF_BASE" help:"Longest wait after the first failed attempt; it doubles with each further one, up to 1h."`
	WebhookAllowPrivate networks      `env:"PAWL_WEBHOOK_ALLOW_PRIVATE" help:"Allow webhooks to loopback and private addresses (RFC 1918, RFC 4193), for development; or only to the networks that are given, such as 10.2.0.0/16,fd12::/16. Link-local addresses and those of a cloud's platform are never allowed."`
	WebhookSecret       string        `type:"secret" secret:"" placeholder:"@FILE" env:"PAWL_WEBHOOK_SECRET" help:"Secret of the deployment: whsec_ and 24 to 64 bytes in base64; from the environment or a file. Callbacks without a secret of their own are signed with secrets that are derived from it, one for each tenant (pawl secret callback)."`
}

// networks are the networks that are not public and to which webhooks may be sent nevertheless: the private ones, which
// true or the flag alone stands for, or those that are named.
type networks struct {
	private bool
	named   []netip.Prefix
}

// IsBool makes the flag's value optional.
func (networks) IsBool() bool { return true }

// Decode reads true, false, or networks with commas between them.
func (n *networks) Decode(ctx *kong.DecodeContext) error {
	next := ctx.Scan.Peek()
	text, _ := next.Value.(string)
	read, err := parseNetworks(text)
	switch {
	case next.Type == kong.FlagValueToken && err != nil:
		return err
	case text == "" && next.Type != kong.FlagValueToken, err != nil:
		n.private = true // What follows is another argument.
		return nil
	}
	ctx.Scan.Pop()
	*n = read
	return nil
}

func parseNetworks(text string) (n networks, err error) {
	switch text {
	case "", "false", "no", "0":
		return n, nil
	case "true", "yes", "1":
		return networks{private: true}, nil
	}
	for network := range strings.SplitSeq(text, ",") {
		prefix, err := netip.ParsePrefix(network)
		if err != nil {
			return n, fmt.Errorf("must be true, false or networks such as 10.2.0.0/16,fd12::/16, not %q", text)
		}
		n.named = append(n.named, prefix)
	}
	return n, nil
}

// Validate refuses values with which no webhook could be sent.
func (w *webhookFlags) Validate() error {
	if w.WebhookMaxAttempts < 1 || w.WebhookBackoffBase <= 0 {
		return errors.New("--webhook-max-attempts and --webhook-backoff-base must be positive")
	}
	if err := w.policy().Validate(); err != nil {
		return fmt.Errorf("--webhook-secret: %w", err)
	}
	_, err := secretKeys()
	return err
}

// policy returns where webhooks may go and what signs callbacks without a secret of their own. The service
// checks URLs against it, and the sender applies it.
func (w *webhookFlags) policy() fsm.WebhookPolicy {
	return fsm.WebhookPolicy{AllowPrivate: w.WebhookAllowPrivate.private, AllowNetworks: w.WebhookAllowPrivate.named, Secret: w.WebhookSecret}
}

// deliver adds the worker that sends webhooks to the group. The worker runs until the context ends.
func (w *webhookFlags) deliver(
	ctx context.Context, c *console, pool *pgxpool.Pool, service *fsm.Service, hub *live.Hub, trace outbox.Trace, group *errgroup.Group,
) {
	webhooks := webhook.New(pool, webhook.Config{
		Policy: w.policy(), Keys: service.Keys(), MaxAttempts: w.WebhookMaxAttempts, Backoff: w.WebhookBackoffBase, Wake: hub.WakeLog,
		Beside: service.Beside, Trace: trace, Logger: c.log,
	})
	group.Go(func() error { return webhooks.Run(ctx) })
}
