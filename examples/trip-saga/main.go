// Command trip-saga is a stub of what a trip is booked at: a hotel, an airline and a car rental.
package main

import (
	"cmp"
	"log/slog"
	"net/http"
	"os"
	"time"
)

func main() {
	server := &http.Server{Addr: cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:9091"), Handler: newAgency(), ReadTimeout: 10 * time.Second}
	slog.Info("serving", "address", server.Addr)
	if err := server.ListenAndServe(); err != nil {
		slog.Error("the stub ended", "error", err)
		os.Exit(1)
	}
}
