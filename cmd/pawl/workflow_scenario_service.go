package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi"
)

// service returns a client of the service that simulates: the given one, or one within this process, which stop ends.
func (w *workflowTest) service(c *console) (client *clientFlags, stop func(), err error) {
	if w.Server != "" {
		return &clientFlags{Server: w.Server, Token: w.Token}, func() {}, nil
	}
	var ends []func()
	end := func() {
		for _, f := range slices.Backward(ends) {
			f()
		}
	}
	defer func() {
		if err != nil {
			end()
		}
	}()
	dsn := w.DatabaseURL
	if dsn == "" {
		server, err := localpg.Start(c, localpg.Config{})
		if err != nil {
			return nil, nil, err
		}
		ends = append(ends, func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(c), 10*time.Second)
			defer cancel()
			if err := server.Stop(ctx); err != nil {
				c.log.Error("the private Postgres did not stop", "error", err)
			}
		})
		dsn = server.DSN()
		if err := db.Up(c, dsn); err != nil {
			return nil, nil, err
		}
	}
	pool, err := openDatabase(c, dsn, db.Config{MaxConns: 2}, db.API)
	if err != nil {
		return nil, nil, err
	}
	ends = append(ends, pool.Close)
	service := fsm.New(pool, fsm.Config{})
	ends = append(ends, service.Close)
	handler, err := httpapi.New(httpapi.ServicesOf(service, nil), httpapi.Config{})
	if err != nil {
		return nil, nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			c.log.Error("the service ended", "error", err)
		}
	}()
	ends = append(ends, func() { _ = server.Close() })
	return &clientFlags{Server: "http://" + listener.Addr().String()}, end, nil
}
