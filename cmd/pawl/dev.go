package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/db/localpg"
	flightbooking "github.com/pawl-fsm/pawl/examples/flight-booking"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/access"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
)

// devCommand is `pawl dev`: the service with a private Postgres and an example.
type devCommand struct {
	Listen      string `default:"127.0.0.1:8080" env:"PAWL_LISTEN" help:"Address to listen on; port 0 takes a free one."`
	DataDir     string `default:".pawl" type:"path" env:"PAWL_DATA_DIR" help:"Folder of the private Postgres's data."`
	DatabaseURL string `env:"DATABASE_URL,PAWL_DATABASE_URL" type:"secret" placeholder:"URL" help:"Use this database instead of a private Postgres."`
	serviceFlags
}

// Run runs the service until the context or the private Postgres ends.
func (d *devCommand) Run(c *console) error {
	dsn := d.DatabaseURL
	if dsn == "" {
		server, err := localpg.Start(c, localpg.Config{Dir: d.DataDir, Logger: c.log})
		if err != nil {
			return err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(c), d.ShutdownTimeout)
			defer cancel()
			if err := server.Stop(ctx); err != nil {
				c.log.Error("the private Postgres did not stop", "error", err)
			}
		}()
		dsn = server.DSN()
		var died context.CancelCauseFunc
		c.Context, died = context.WithCancelCause(c.Context)
		defer died(nil)
		go func() {
			select {
			case <-server.Done():
				if err := server.Err(); err != nil {
					c.log.Error("the private Postgres died", "error", err)
				}
				died(server.Err())
			case <-c.Done():
			}
		}()
	}
	if err := db.Up(c, dsn); err != nil {
		if d.DatabaseURL == "" && c.Err() == nil {
			err = fmt.Errorf("%w; or remove the folder %s, with all data of pawl dev", err, d.DataDir)
		}
		return err
	}
	example := func(service *fsm.Service) error {
		return errors.Join(d.makeTenant(c, service), registerExample(c, service))
	}
	shown := dsn
	if d.DatabaseURL != "" {
		shown = "the one that DATABASE_URL names" // Which may have a password.
	}
	return d.serve(c, dsn, d.Listen, example, func(addr net.Addr) {
		if addr == nil {
			c.printf("pawl runs its workers, without an API\nits database is %s\n", shown)
			return
		}
		c.printf(devBanner, addr, shown, d.scheme())
	})
}

const devBanner = `pawl listens on %[3]s://%[1]s
its database is %[2]s

try it:
  curl -i %[3]s://%[1]s/v1/workflows/flight-booking/instances -H 'Content-Type: application/json' -H "Idempotency-Key: $(date +%%s%%N)" -d '{"context": {"flight_id": "LH454", "price": 420}}'
  curl '%[3]s://%[1]s/v1/instances?workflow=flight-booking'
  curl %[3]s://%[1]s/v1/workflows/flight-booking
`

// makeTenant makes the tenant of all requests, unless there is one.
func (d *devCommand) makeTenant(ctx context.Context, service *fsm.Service) error {
	if !d.isOpen() {
		return nil
	}
	tenants := access.New(service)
	_, err := tenants.GetTenant(ctx, d.Tenant)
	if errors.Is(err, fsm.NotFound) {
		_, _, err = tenants.PutTenant(ctx, d.Tenant, nil, nil)
	}
	return err
}

// registerExample registers flight-booking. From the second start on this changes nothing.
func registerExample(ctx context.Context, service *fsm.Service) error {
	definition, err := toJSON(flightbooking.Definition)
	if err != nil {
		return err
	}
	_, err = lifecycle.New(service).Register(ctx, "flight-booking", definition, "pawl dev", false)
	return err
}
