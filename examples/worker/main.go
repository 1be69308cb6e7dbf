// Command worker packs parcels, by the loop of package loop.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pawl-fsm/pawl/examples/worker/loop"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	host, _ := os.Hostname()
	w := &loop.Worker{
		Server: cmp.Or(os.Getenv("PAWL_SERVER"), "http://127.0.0.1:8080"), Token: os.Getenv("PAWL_TOKEN"), Topic: "pack",
		Name: cmp.Or(os.Getenv("PAWL_WORKER"), host), Slots: 4, Wait: 30 * time.Second, Work: pack,
	}
	slog.Info("working", "server", w.Server, "topic", w.Topic, "worker", w.Name)
	w.Run(ctx)
}

// pack is the work. A task may come twice, such as when a worker crashed: its key is the same then, so that what it does
// elsewhere can be recognised.
func pack(ctx context.Context, t loop.Task) (any, error) {
	select {
	case <-time.After(time.Second):
		return map[string]string{"parcel": "P-" + t.Key[:8]}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("packing was interrupted: %w", ctx.Err())
	}
}
