package fsm

import (
	"context"
	"encoding/json"
	"time"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Deployment is the tenant of callers that belong to the deployment. It has tokens and roles, but no instances.
const Deployment = "*"

// A Grant is what a caller may do: the scopes, for the workflows and the events. An empty list stands for all of them.
type Grant struct {
	Scopes    []string `json:"scopes"`
	Workflows []string `json:"workflows"`
	Events    []string `json:"events"`
}

// TenantLimits are the limits of a tenant. A limit that is nil is the deployment's, which has none where nothing else is
// said.
type TenantLimits struct {
	// RequestsPerSecond is how many requests of the tenant a process answers in a second, with bursts of the same size,
	// beside the limit of each subject. With n replicas the tenant gets up to n times the rate.
	RequestsPerSecond *int64 `json:"requests_per_second,omitempty"`
	// Queue is how many commands of the tenant may wait in a process, for creates, fires and gets each. More than that
	// in one batch find no room, even if no other command waits. It lets nobody have more than [Config.MaxQueue] does.
	Queue *int64 `json:"queue,omitempty"`
	// OpenInstances is how many active instances the tenant may have. They are counted every few seconds, so that more
	// may be created before the next count. At the limit creations are refused as LimitReached.
	OpenInstances *int64 `json:"open_instances,omitempty"`
	// Subscriptions is how many subscriptions the tenant may have. Further ones are refused as LimitReached.
	Subscriptions *int64 `json:"subscriptions,omitempty"`
	// Streams is how many streams of events a process keeps open for the tenant.
	Streams *int64 `json:"streams,omitempty"`
	// StorageBytes is how many bytes the instances and the history of the tenant may have. They are counted as
	// OpenInstances are, and the more there are, the later. At the limit creations are refused as LimitReached; events
	// are not, so that what is there can be ended.
	StorageBytes *int64 `json:"storage_bytes,omitempty"`
	// WebhookAttempts is how many attempts of webhooks may be under way for the tenant in the deployment. It gives the
	// tenant no more than its share of all.
	WebhookAttempts *int64 `json:"webhook_attempts,omitempty"`
}

// A PrincipalQuery asks who a caller is. Either Token is the id of its token, or something else has authenticated it.
type PrincipalQuery struct {
	Token string
	// Home is the tenant that a caller without a Token belongs to.
	Home string
	// Tenant is the one that the caller acts for. Default the one that it belongs to.
	Tenant string
	// Roles are names of roles that the caller has beside those of the token.
	Roles []string
}

// A Principal is who a caller is, and what it may do.
type Principal struct {
	// SHA256 is the digest of the token with the id that was asked for; nil if there is none. Live is false if the token is
	// revoked or has expired. The caller of Principal must compare the digest.
	SHA256 []byte
	Live   bool
	// Stale says that the token is to be noted as used; see TokenUsed.
	Stale bool
	// Home is the tenant that the caller belongs to.
	Home string
	// Subject, Scopes, Workflows and ExpiresAt are the token's.
	Subject           string
	Scopes, Workflows []string
	ExpiresAt         *time.Time
	// Roles are the grants of its roles.
	Roles []Grant
	// Tenant is the one that it acts for. Known is whether it exists. The deployment exists, and is not Known.
	Tenant          string
	Known, Disabled bool
	Limits          TenantLimits
}

// Principal reads who a caller is. It reads what is true now, so that a token that was revoked is refused at once; see
// [Service.Recall].
// Kinds: Unavailable.
func (s *Service) Principal(ctx context.Context, q PrincipalQuery) (Principal, error) {
	// Callers take turns by what is known before they are authenticated.
	p := newPending[PrincipalQuery, Principal](ctx, q, q.Token+" "+q.Home)
	s.principals.submit(p)
	return p.wait()
}

// TokenUsed notes that a token was used.
// Kinds: Unavailable.
func (s *Service) TokenUsed(ctx context.Context, id string) error {
	return s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) error { return q.TokenUsed(ctx, id) })
}

// flushPrincipals reads principals.
func (s *Service) flushPrincipals(batch []*pending[PrincipalQuery, Principal]) (left flushed[PrincipalQuery, Principal]) {
	defer failAll(batch, &left)
	p := queries.PrincipalsParams{Tokens: []string{}, Homes: []string{}, Tenants: []string{}}
	roles := [][]string{}
	// Callers ask for the same again and again: many requests with one token are one row.
	places, rowOf := map[principalKey]int{}, make([]int, len(batch))
	keys, began := []principalKey{}, time.Now()
	for i, b := range batch {
		q := b.command
		key := q.key()
		place, known := places[key]
		if !known {
			place = len(places)
			places[key], keys = place, append(keys, key)
			p.Tokens, p.Homes, p.Tenants = append(p.Tokens, q.Token), append(p.Homes, q.Home), append(p.Tenants, q.Tenant)
			roles = append(roles, append([]string{}, q.Roles...))
		}
		rowOf[i] = place
	}
	var err error
	if p.Roles, err = json.Marshal(roles); err != nil {
		panic(err) // It has only texts.
	}
	var rows []queries.Principal
	_, err = s.db.Attempt(context.Background(), func(ctx context.Context) (err error) {
		rows, err = s.db.Queries().Principals(ctx, p)
		return err
	})
	if err != nil {
		for _, b := range batch {
			b.fail(AsError(err))
		}
		return flushed[PrincipalQuery, Principal]{away: database.IsConnectionError(err)}
	}
	principals, faults := make([]Principal, len(rows)), make([]error, len(rows))
	for i, r := range rows {
		principals[i], faults[i] = principalOf(r)
		if r.Version != nil && faults[i] == nil && sizeOf(r) <= recallBytes {
			s.recollection.remember(keys[i], principals[i], *r.Version, began)
		}
	}
	for i, b := range batch {
		if place := rowOf[i]; faults[place] == nil {
			b.complete(principals[place])
		} else {
			b.fail(&Error{Kind: Internal, Cause: faults[place]})
		}
	}
	return left
}

func principalOf(r queries.Principal) (Principal, error) {
	p := Principal{
		SHA256: r.Sha256, Live: r.Live, Stale: r.Stale, Home: r.TenantID, Subject: r.Subject, Scopes: r.Scopes,
		Workflows: r.Workflows, ExpiresAt: r.ExpiresAt, Tenant: r.ActsFor, Known: r.Known, Disabled: r.Disabled,
	}
	if r.Grants != nil {
		if err := json.Unmarshal(r.Grants, &p.Roles); err != nil {
			return p, err
		}
	}
	if len(r.Limits) > len("{}") {
		if err := json.Unmarshal(r.Limits, &p.Limits); err != nil {
			return p, err
		}
	}
	return p, nil
}

// sizeOf is the size of the lists of a principal.
func sizeOf(r queries.Principal) int {
	n := len(r.Grants)
	for _, w := range r.Workflows {
		n += len(w)
	}
	return n
}
