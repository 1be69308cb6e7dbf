// Command export-job exports the orders of a month to a file, as a worker of pawl. As `export-job orders` it is a stub of the
// service that has the orders.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pawl-fsm/pawl/examples/worker/loop"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "orders" {
		server := &http.Server{Addr: cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:9093"), Handler: orders(200 * time.Millisecond), ReadTimeout: 10 * time.Second}
		slog.Info("serving", "address", server.Addr)
		fmt.Fprintln(os.Stderr, server.ListenAndServe())
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	e := exporter{orders: cmp.Or(os.Getenv("ORDERS_URL"), "http://127.0.0.1:9093"), dir: cmp.Or(os.Getenv("EXPORT_DIR"), ".")}
	host, _ := os.Hostname()
	w := &loop.Worker{
		Server: cmp.Or(os.Getenv("PAWL_SERVER"), "http://127.0.0.1:8080"), Token: os.Getenv("PAWL_TOKEN"), Topic: "export",
		Name: cmp.Or(os.Getenv("PAWL_WORKER"), host), Slots: 1, Wait: 30 * time.Second, Work: e.export,
	}
	slog.Info("working", "server", w.Server, "topic", w.Topic, "worker", w.Name)
	w.Run(ctx)
}
