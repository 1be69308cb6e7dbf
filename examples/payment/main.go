// Command payment is a stub of a provider of payments, whose cards fail as one wants them to.
package main

import (
	"cmp"
	"log/slog"
	"net/http"
	"os"
	"time"
)

func main() {
	server := &http.Server{Addr: cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:9092"), Handler: newProvider(), ReadTimeout: 10 * time.Second}
	slog.Info("serving", "address", server.Addr)
	if err := server.ListenAndServe(); err != nil {
		slog.Error("the stub ended", "error", err)
		os.Exit(1)
	}
}
