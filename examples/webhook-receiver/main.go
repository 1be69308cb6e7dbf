// Command webhook-receiver keeps a copy of what instances are like, from pawl's webhooks: it
// verifies each delivery, takes each once, and lets no older step overwrite a newer one.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "webhook-receiver:", db.OneLine(err))
		os.Exit(1)
	}
}

// run serves until the context ends. DATABASE_URL names the receiver's own database,
// WEBHOOK_SECRET is the subscription's, and LISTEN is 127.0.0.1:9090 unless it is set.
func run(ctx context.Context, getenv func(string) string) error {
	pool, err := pgxpool.New(ctx, getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer pool.Close()
	receiver, err := newReceiver(ctx, pool, getenv("WEBHOOK_SECRET"))
	if err != nil {
		return err
	}
	address := getenv("LISTEN")
	if address == "" {
		address = "127.0.0.1:9090"
	}
	server := &http.Server{Addr: address, Handler: receiver, ReadTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		stopped <- server.Shutdown(bounded)
	}()
	slog.Info("receiving", "address", address)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}
