package connection

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
	"github.com/pawl-fsm/pawl/internal/seal"
)

// Service reads and changes connections. It may be used by several goroutines at once.
type Service struct {
	db      *database.Client
	policy  fsm.WebhookPolicy
	secrets Secrets
}

// New returns a Service on the database of an fsm.Service, with its policies.
func New(service *fsm.Service) *Service {
	return &Service{
		db: service.Database(), policy: service.Webhooks(), secrets: Secrets{Keys: service.Keys(), Variables: service.Variables()},
	}
}

// Settings are what a caller says about a connection.
type Settings struct {
	// BaseURL is an http or https URL without user, query and fragment. The path of a task is appended to it.
	BaseURL string
	Auth    Auth
	// Headers are sent with each request.
	Headers map[string]string
	// Timeout is the longest that an attempt may take, from 100 ms to 10 min; 0 for what the task says.
	Timeout time.Duration
	// Concurrency is how many calls a replica makes at a time, from 1 to 512. Default 32.
	Concurrency int
	// CA has the certificates that may sign the service's, in PEM. Default empty: those of the system.
	CA string
}

// Auth is how pawl authenticates itself.
type Auth struct {
	// Type is one of the types below.
	Type string `json:"type"`
	// User is that of Basic, whose password is the secret.
	User string `json:"user,omitempty"`
	// Name is that of the header which Header sends.
	Name string `json:"name,omitempty"`
	// Variable of the process that has the secret.
	Variable string `json:"env,omitempty"`
	// Secret is never returned. Empty with an empty Variable, it keeps the secret that there is: see Put.
	Secret string `json:"-"`
}

// The types of Auth.
const (
	None   = "none"
	Bearer = "bearer"
	Basic  = "basic"
	Header = "header"
)

// Connection is a service that tasks call.
type Connection struct {
	Name string
	Settings
	// Version counts the changes of the settings.
	Version int64
	// Failures counts the failed attempts since the last one that succeeded.
	Failures int
	// CircuitOpenUntil is until when nothing is sent; nil if nothing stands against it.
	CircuitOpenUntil *time.Time
	// Finding says why the secret cannot be had, so that nothing is sent; nil if it can, as far as is known.
	Finding   *string
	CreatedAt time.Time
	CreatedBy string
	// UpdatedAt is when the settings were last changed.
	UpdatedAt time.Time
}

func connectionOf(c queries.Connection) (Connection, error) {
	out := Connection{
		Name: c.Name, Version: c.Version, Failures: int(c.Failures), CircuitOpenUntil: c.CircuitOpenUntil, Finding: c.Finding,
		CreatedAt: c.CreatedAt, CreatedBy: c.CreatedBy, UpdatedAt: c.UpdatedAt,
		Settings: Settings{
			BaseURL: c.BaseUrl, Timeout: time.Duration(c.Timeout.Microseconds) * time.Microsecond, Concurrency: int(c.Concurrency),
		},
	}
	if c.TlsCa != nil {
		out.CA = *c.TlsCa
	}
	err := cmp.Or(json.Unmarshal(c.Auth, &out.Auth), json.Unmarshal(c.Headers, &out.Headers))
	if err != nil {
		err = &fsm.Error{Kind: fsm.Internal, Cause: fmt.Errorf("settings of the connection %s: %w", c.Name, err)}
	}
	return out, err
}

// Put makes a connection, or replaces all of its settings, and reports whether it is new. A circuit that is open is closed.
//
// Settings without a secret, of which one is needed, keep the one that there is. They must then have the base URL, the
// rest of Auth and the CA of before. So nobody can send a secret that they do not know to a server of their own.
//
// Kinds: Malformed with all faults, VersionMismatch, UnknownTenant, Unavailable.
func (s *Service) Put(ctx context.Context, tenant, name string, settings Settings, expected fsm.Expect) (c Connection, created bool, err error) {
	if err := s.check(ctx, tenant, name, &settings); err != nil {
		return Connection{}, false, err
	}
	p := queries.ConnectionPutParams{
		Tenant: tenant, Name: name, BaseUrl: settings.BaseURL, Concurrency: int32(settings.Concurrency),
		Timeout:  pgtype.Interval{Microseconds: settings.Timeout.Microseconds(), Valid: settings.Timeout > 0},
		Expected: expected.Parameter(), Caller: fsm.CallerJSON(ctx),
	}
	if p.Auth, err = json.Marshal(settings.Auth); err != nil {
		return Connection{}, false, fsm.AsError(err)
	}
	if p.Headers, err = json.Marshal(settings.Headers); err != nil {
		return Connection{}, false, fsm.AsError(err)
	}
	if settings.Auth.Secret != "" {
		sealed := s.secrets.Keys.Seal(settings.Auth.Secret, seal.Connection(tenant, name))
		p.Secret = &sealed
	}
	if settings.CA != "" {
		p.TlsCa = &settings.CA
	}
	var row queries.Connection
	err = s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.ConnectionPut(ctx, p)
		if err == pgx.ErrNoRows {
			return unacceptable(fsm.Fault{
				Pointer: "/auth/secret",
				Detail:  "is missing: give it, or a variable in env; a stored secret is kept only while base_url, auth and tls are as they were",
			})
		}
		return err
	})
	if err != nil {
		return Connection{}, false, err
	}
	c, err = connectionOf(row)
	return c, row.Version == 1, err
}

const noConnection = "there is no such connection"

// Get returns a connection.
// Kinds: NotFound, Unavailable.
func (s *Service) Get(ctx context.Context, tenant, name string) (c Connection, err error) {
	err = s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		row, err := q.GetConnection(ctx, queries.GetConnectionParams{TenantID: tenant, Name: name})
		if err != nil {
			return fsm.IfNoRows(err, fsm.NotFound, noConnection)
		}
		c, err = connectionOf(row)
		return err
	})
	return c, err
}

// List returns a tenant's connections, by name.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) List(ctx context.Context, tenant string, page fsm.Page) (fsm.List[Connection], error) {
	var faulty error
	items, next, err := database.List(ctx, s.db, database.Listing[queries.Connection, Connection]{
		Scope: "connections " + tenant,
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.Connection, error) {
			return queries.New(db).ListConnections(ctx, queries.ListConnectionsParams{TenantID: tenant, After: after, RowLimit: limit})
		},
		Item: func(row queries.Connection) Connection {
			c, err := connectionOf(row)
			faulty = cmp.Or(faulty, err)
			return c
		},
		Key: func(c Connection) string { return c.Name },
	}, page.Limit, page.Cursor)
	return fsm.List[Connection]{Items: items, Next: next}, cmp.Or(err, faulty)
}

// Delete deletes a connection. Tasks that name it wait until there is one again.
// Kinds: NotFound, VersionMismatch, Unavailable.
func (s *Service) Delete(ctx context.Context, tenant, name string, expected fsm.Expect) error {
	return s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) error {
		deleted, err := q.ConnectionDelete(ctx, queries.ConnectionDeleteParams{
			Tenant: tenant, Name: name, Expected: expected.Parameter(), Caller: fsm.CallerJSON(ctx),
		})
		if err == nil && !deleted {
			return fsm.Errorf(fsm.NotFound, noConnection)
		}
		return err
	})
}
