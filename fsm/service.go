package fsm

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
	"github.com/pawl-fsm/pawl/fsm/internal/gate"
	"github.com/pawl-fsm/pawl/internal/address"
	"github.com/pawl-fsm/pawl/internal/seal"
	"github.com/pawl-fsm/pawl/internal/variable"
)

// WebhookPolicy says where webhooks may be sent to, and what signs the callbacks without a secret of
// their own. It is the type of an internal package under a name that programs which embed this
// package can write.
type WebhookPolicy = address.Policy

// SecretKeys seal the secrets that are stored. It is the type of an internal package under a name that programs which
// embed this package can write.
type SecretKeys = seal.Keys

// ParseSecretKeys reads keys in the form id:base64 of 32 bytes, separated by commas. The first one seals, and all of them
// open. The error does not show a key.
func ParseSecretKeys(text string) (SecretKeys, error) { return seal.Parse(text) }

// NewSecretKey returns a random key in that form.
func NewSecretKey() string { return seal.NewKey() }

// Variables are the variables of the process that connections may take secrets from. It is the type of an internal
// package under a name that programs which embed this package can write.
type Variables = variable.Policy

// Config tunes a Service. Its zero value works.
type Config struct {
	// Flushers is the largest number of calls in flight, for creates, fires and gets each. While calls
	// take less than 5 ms and fewer than MaxBatch commands wait, only one call is made at a time: the
	// fewer calls are made at once, the more commands share each of them. Fires by business key have half as
	// many, and half of SlowCalls, and at least one. Default 4, but at most a fifth of
	// the pool's connections, so that slow fires leave some to creates, gets and workers.
	Flushers int
	// SlowCalls is the largest number of calls in flight with commands that were slow before, for creates and
	// fires each. A command was slow if its guards and assigns take long, or if another transaction has its
	// instance locked. Such a command shares no call with others. Default 2, but at most a tenth of the pool's
	// connections.
	SlowCalls int
	// MaxBatch is the largest number of commands in a call, of all tenants together. Default 256.
	MaxBatch int
	// MaxQueue is the largest number of commands of one tenant that may wait, for creates, fires and
	// gets each. All tenants together have twice as many places. A tenant never has more commands
	// waiting than there are places left, so it gets fewer than MaxQueue while others wait. Commands
	// beyond that are refused at once as Unavailable. Default 8192.
	MaxQueue int
	// CallTimeout is how long to wait for an answer of the database, all repetitions of the call
	// included. After that the database counts as away. It must be longer than the pool's
	// statement_timeout. Default 1.5 s.
	CallTimeout time.Duration
	// Reads is a second pool on the same database, for everything but commands and the reads of Get: lists, history,
	// dry runs, and what the packages under this one do. Tenants take turns for its connections, and two of these
	// are kept for changes, such as registrations. Default: half of the connections of the pool that New gets.
	Reads *pgxpool.Pool
	// Privileges are those that Ping wants the pool's role to have: see CheckSchema. Default: "api".
	Privileges []string
	// Webhooks says which URLs callbacks, subscriptions and connections may have, and what signs a callback without a
	// secret of its own. Default: public addresses only, and no secret.
	Webhooks WebhookPolicy
	// RetentionFloor is the shortest retention with which a workflow can be registered. Default 0: any.
	RetentionFloor time.Duration
	// Keys seal the secrets of callbacks, subscriptions and connections before they are stored. Default: none, and they are stored as
	// they are.
	Keys SecretKeys
	// Variables says which variables of the process connections may name. Default: none.
	Variables Variables
	// UnverifiedActors says that whoever sends a command may name any actor, since nobody is authenticated. Then
	// $.actor has "verified": false in guards and values.
	UnverifiedActors bool
	// Probe is told what the Service does. Default: nobody is.
	Probe Probe
	// Trace begins the span of a command. Default: there are no spans.
	Trace Trace
	// Moved, if given, is called after the commit of a call, with the ids of the instances that the call
	// created or moved. It must not block, since the next call waits for it. A FireTx is not reported:
	// its caller commits it.
	Moved func(ids []uuid.UUID)
}

// withDefaults fills in the defaults, for a pool with a number of connections.
func (c Config) withDefaults(connections int) Config {
	if c.Flushers <= 0 {
		c.Flushers = max(min(4, connections/5), 1)
	}
	if c.SlowCalls <= 0 {
		c.SlowCalls = max(min(2, connections/10), 1)
	}
	if c.Privileges == nil {
		c.Privileges = []string{"api"}
	}
	if c.MaxBatch <= 0 {
		c.MaxBatch = 256
	}
	if c.MaxQueue <= 0 {
		c.MaxQueue = 8192
	}
	if c.CallTimeout <= 0 {
		c.CallTimeout = 1500 * time.Millisecond
	}
	if c.Moved == nil {
		c.Moved = func([]uuid.UUID) {}
	}
	return c
}

// Service carries out commands and answers reads. Between calls it holds nothing but the commands
// that wait. Any number of Services may share a database. A Service may be used by several
// goroutines at once.
//
// A command without a tenant belongs to DefaultTenant. A read has no such default: it sees only what
// the tenant that it names has. Who waits for whom is decided by the tenant of the context; see ForTenant.
type Service struct {
	db      *database.Client
	config  Config
	creates *batcher[CreateCommand, Result]
	fires   *batcher[FireCommand, Result]
	// firesByKey has the fires whose instance is that of a business key.
	firesByKey   *batcher[FireCommand, Result]
	gets         *batcher[uuid.UUID, Instance]
	principals   *batcher[PrincipalQuery, Principal]
	recollection recollection
	schemas      definition.Schemas
	guesses      guesses
	declarations recent[declaration, struct{}] // Events that were seen to be declared.
	slowness     slowness
}

// New returns a Service on a pool whose connections see a migrated schema. The pool should set
// statement_timeout and lock_timeout, as db.Open does: they bound how long a guard may run, and how
// long a locked row may hold up other commands.
func New(pool *pgxpool.Pool, config Config) *Service {
	config = config.withDefaults(int(pool.Config().MaxConns))
	s := &Service{db: database.New(pool, config.Reads, config.CallTimeout, asError), config: config}
	s.creates = newBatcher("create", config, s.flushCreates)
	s.fires = newBatcher("fire", config, s.flushFires)
	s.gets = newBatcher("get", config, s.flushGets)
	s.principals = newBatcher("principal", config, s.flushPrincipals)
	config.Flushers, config.SlowCalls = max(config.Flushers/2, 1), max(config.SlowCalls/2, 1)
	s.firesByKey = newBatcher("fire_by_key", config, s.flushFiresByKey)
	return s
}

// ForTenant returns a context for the calls of a tenant. Calls that share a number of connections take turns by the
// tenants of their contexts, so that one tenant's do not hold up those of another. Calls without such a context
// take turns as one tenant.
func ForTenant(ctx context.Context, tenant string) context.Context {
	return gate.WithTenant(ctx, tenant)
}

// A Gate lets a bounded number of callers in at a time, for whom the tenants of ForTenant take turns. Its type is
// internal.
type Gate = gate.Gate

// NewGate returns a Gate that lets size callers in at a time, and most of one tenant. room is how many callers of one
// tenant may wait if no others do.
func NewGate(size, most, room int) *Gate { return gate.New(size, most, room) }

// Database is how the packages under fsm call the database. Its type is internal to them.
func (s *Service) Database() *database.Client { return s.db }

// Beside reports whether a tenant other than this one has sent a command, or read a single instance, within the last second.
// It is for workers of this process, which then leave processors to that tenant.
func (s *Service) Beside(tenant string) bool { return s.db.Beside(tenant) }

// Schemas returns what checks documents, so that all checks of a process share its limits.
func (s *Service) Schemas() *definition.Schemas { return &s.schemas }

// Webhooks returns the policy that the Service was made with.
func (s *Service) Webhooks() WebhookPolicy { return s.config.Webhooks }

// Verified reports whether the actors of commands have been authenticated; see Config.UnverifiedActors.
func (s *Service) Verified() bool { return !s.config.UnverifiedActors }

// RetentionFloor returns the floor that the Service was made with.
func (s *Service) RetentionFloor() time.Duration { return s.config.RetentionFloor }

// Keys returns the keys that the Service was made with.
func (s *Service) Keys() SecretKeys { return s.config.Keys }

// Variables returns the variables that the Service was made with.
func (s *Service) Variables() Variables { return s.config.Variables }

// Close refuses new commands as Unavailable, and returns when those that were accepted have their
// replies. The pool stays open, and reads go on.
func (s *Service) Close() {
	s.creates.close()
	s.fires.close()
	s.firesByKey.close()
}
