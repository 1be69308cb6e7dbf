package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Service reads and changes tokens, roles and tenants. It may be used by several goroutines at once.
type Service struct{ db *database.Client }

// New returns a Service on the database of an fsm.Service.
func New(service *fsm.Service) *Service { return &Service{db: service.Database()} }

// Scopes are the permissions that there are.
var Scopes = []string{"read", "create", "fire", "work", "deploy", "connect", "deliver", "operate", "audit", "admin"}

// deploy is the scope that only the deployment has.
const deploy = "deploy"

// A Token is a bearer token of a tenant.
type Token struct {
	// Tenant is fsm.Deployment for a token of the deployment.
	Tenant string
	// ID is unique in the deployment: up to 63 lower-case letters, digits and hyphens.
	ID string
	// Text is what its bearer sends. Only CreateToken returns it.
	Text string
	// Name says what it is for; nil if nothing was said.
	Name *string
	// Subject is the actor of what its bearer does.
	Subject string
	// Scopes are its own; Roles name roles of the tenant; Workflows bound everything that it may do, and an empty list
	// stands for all.
	Scopes, Roles, Workflows []string
	CreatedAt                time.Time
	CreatedBy                string
	// ExpiresAt, RevokedAt and LastUsedAt are nil for never. LastUsedAt is late by up to an hour.
	ExpiresAt, RevokedAt, LastUsedAt *time.Time
}

func tokenOf(t queries.Token) Token {
	return Token{
		Tenant: t.TenantID, ID: t.ID, Name: t.Name, Subject: t.Subject, Scopes: t.Scopes, Roles: t.Roles, Workflows: t.Workflows,
		CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy, ExpiresAt: t.ExpiresAt, RevokedAt: t.RevokedAt, LastUsedAt: t.LastUsedAt,
	}
}

// prefix begins the text of each token, so that scanners of secrets find it.
const prefix = "pawl_"

// TokenID returns the id in the text of a token. known is false if the text is not that of a token of the database.
func TokenID(text string) (id string, known bool) {
	rest, known := strings.CutPrefix(text, prefix)
	id, secret, found := strings.Cut(rest, "_")
	return id, known && found && id != "" && secret != "" && len(id) <= 63
}

// CreateToken makes a token. An empty ID gets one that is made up. The members that the database sets are ignored. The
// result has the text. within are the workflows that the caller is bound to.
//
// Kinds: Malformed with the faults, Forbidden, UnknownTenant, TokenExists, Unavailable.
func (s *Service) CreateToken(ctx context.Context, t Token, within []string) (Token, error) {
	if t.ID == "" {
		t.ID = strings.ToLower(rand.Text()[:16])
	}
	faults := checkScopes(t.Tenant, t.Scopes)
	if len(t.Scopes)+len(t.Roles) == 0 {
		faults = append(faults, fsm.Fault{Pointer: "/scopes", Detail: "is missing: give scopes, or roles"})
	}
	if !isSlug(t.ID) {
		faults = append(faults, fsm.Fault{Pointer: "/id", Detail: "must be 1 to 63 lower-case letters, digits and hyphens, with no hyphen at an end"})
	}
	switch {
	case t.Subject == "":
		faults = append(faults, fsm.Fault{Pointer: "/subject", Detail: "is missing"})
	case strings.TrimSpace(t.Subject) == "" || strings.ContainsFunc(t.Subject, unicode.IsControl):
		faults = append(faults, fsm.Fault{Pointer: "/subject", Detail: "must not be blank, and have no control characters: it is the actor in history"})
	}
	if t.ExpiresAt != nil && !t.ExpiresAt.After(time.Now()) {
		faults = append(faults, fsm.Fault{Pointer: "/expires_at", Detail: "is in the past"})
	}
	faults = slices.Concat(faults, checkNames("/roles", t.Roles, 20, 128), checkNames("/workflows", t.Workflows, 100, 63))
	if err := refused(faults); err != nil {
		return Token{}, err
	}
	if err := fsm.CheckTexts(fsm.Text{Pointer: "/subject", Value: t.Subject, Max: 255}, fsm.Text{Pointer: "/name", Value: value(t.Name), Max: 255}); err != nil {
		return Token{}, err
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return Token{}, fsm.AsError(err)
	}
	text := prefix + t.ID + "_" + hex.EncodeToString(secret)
	digest := sha256.Sum256([]byte(text))
	var row queries.Token
	err := s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.TokenCreate(ctx, queries.TokenCreateParams{
			Tenant: t.Tenant, ID: t.ID, Sha256: digest[:], Subject: t.Subject, Scopes: database.NotNull(t.Scopes), Roles: database.NotNull(t.Roles),
			Workflows: database.NotNull(t.Workflows), Name: t.Name, ExpiresAt: t.ExpiresAt, Within: within, Caller: fsm.CallerJSON(ctx),
		})
		return fsm.IfNoRows(err, fsm.TokenExists, "another token has the id "+t.ID+"; give another one")
	})
	if err != nil {
		return Token{}, err
	}
	created := tokenOf(row)
	created.Text = text
	return created, nil
}

// GetToken returns a token of a tenant, or of any for fsm.Deployment.
// Kinds: NotFound, Unavailable.
func (s *Service) GetToken(ctx context.Context, tenant, id string) (Token, error) {
	var row queries.Token
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.GetToken(ctx, queries.GetTokenParams{TenantID: tenant, ID: id})
		return fsm.IfNoRows(err, fsm.NotFound, absent(tenant, "token", id))
	})
	return tokenOf(row), err
}

// absent says that a tenant has no resource with a name.
func absent(tenant, resource, name string) string {
	if tenant == fsm.Deployment {
		return fmt.Sprintf("the deployment has no %s %.128q", resource, name)
	}
	return fmt.Sprintf("the tenant %s has no %s %.128q", tenant, resource, name)
}

// Tokens returns the tokens of a tenant, by id.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) Tokens(ctx context.Context, tenant string, page fsm.Page) (fsm.List[Token], error) {
	return listOf(ctx, s.db, "tokens "+tenant, page, tokenOf, func(t Token) string { return t.ID },
		func(ctx context.Context, q *queries.Queries, after string, limit int32) ([]queries.Token, error) {
			return q.ListTokens(ctx, queries.ListTokensParams{TenantID: tenant, After: after, RowLimit: limit})
		})
}

// RevokeToken refuses a token from now on. within are the workflows that the caller is bound to.
// Kinds: NotFound, Forbidden, Unavailable.
func (s *Service) RevokeToken(ctx context.Context, tenant, id string, within []string) error {
	return s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) error {
		_, err := q.TokenRevoke(ctx, queries.TokenRevokeParams{Tenant: tenant, ID: id, Within: within, Caller: fsm.CallerJSON(ctx)})
		return fsm.IfNoRows(err, fsm.NotFound, absent(tenant, "token", id))
	})
}

// A Role is a grant of a tenant with a name.
type Role struct {
	Tenant, Name string
	// Scopes are at least one. Workflows and Events are empty for all.
	Scopes, Workflows, Events []string
	CreatedAt                 time.Time
	CreatedBy                 string
	UpdatedAt                 time.Time
}

func roleOf(r queries.Role) Role {
	return Role{
		Tenant: r.TenantID, Name: r.Name, Scopes: r.Scopes, Workflows: r.Workflows, Events: r.Events, CreatedAt: r.CreatedAt,
		CreatedBy: r.CreatedBy, UpdatedAt: r.UpdatedAt,
	}
}

// PutRole makes a role, or replaces it, and reports whether it is new. within are the workflows that the caller is
// bound to.
//
// Kinds: Malformed with the faults, Forbidden, UnknownTenant, Unavailable.
func (s *Service) PutRole(ctx context.Context, r Role, within []string) (Role, bool, error) {
	faults := checkScopes(r.Tenant, r.Scopes)
	if len(r.Scopes) == 0 {
		faults = append(faults, fsm.Fault{Pointer: "/scopes", Detail: "needs at least one scope"})
	}
	if !fsm.IsVisible(r.Name, 128) {
		faults = append(faults, fsm.Fault{Parameter: "name", Detail: "must be 1 to 128 visible ASCII characters"})
	}
	faults = slices.Concat(faults, checkNames("/workflows", r.Workflows, 100, 63), checkNames("/events", r.Events, 100, 255))
	if err := refused(faults); err != nil {
		return Role{}, false, err
	}
	var row queries.Role
	var created bool
	err := s.db.ChangeAll(ctx, "", func(q *queries.Queries) (err error) {
		created, err = q.RolePut(ctx, queries.RolePutParams{
			Tenant: r.Tenant, Name: r.Name, Scopes: database.NotNull(r.Scopes), Workflows: database.NotNull(r.Workflows), Events: database.NotNull(r.Events),
			Within: within, Caller: fsm.CallerJSON(ctx),
		})
		if err != nil {
			return err
		}
		row, err = q.GetRole(ctx, queries.GetRoleParams{TenantID: r.Tenant, Name: r.Name})
		return err
	})
	if err != nil {
		return Role{}, false, fsm.AsError(err)
	}
	return roleOf(row), created, nil
}

// GetRole returns a role.
// Kinds: NotFound, Unavailable.
func (s *Service) GetRole(ctx context.Context, tenant, name string) (Role, error) {
	var row queries.Role
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		row, err = q.GetRole(ctx, queries.GetRoleParams{TenantID: tenant, Name: name})
		return fsm.IfNoRows(err, fsm.NotFound, absent(tenant, "role", name))
	})
	return roleOf(row), err
}

// Roles returns the roles of a tenant, by name.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) Roles(ctx context.Context, tenant string, page fsm.Page) (fsm.List[Role], error) {
	return listOf(ctx, s.db, "roles "+tenant, page, roleOf, func(r Role) string { return r.Name },
		func(ctx context.Context, q *queries.Queries, after string, limit int32) ([]queries.Role, error) {
			return q.ListRoles(ctx, queries.ListRolesParams{TenantID: tenant, After: after, RowLimit: limit})
		})
}

// DeleteRole deletes a role. within are the workflows that the caller is bound to.
// Kinds: NotFound, Forbidden, Unavailable.
func (s *Service) DeleteRole(ctx context.Context, tenant, name string, within []string) error {
	return s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) error {
		deleted, err := q.RoleDelete(ctx, queries.RoleDeleteParams{Tenant: tenant, Name: name, Within: within, Caller: fsm.CallerJSON(ctx)})
		if err == nil && !deleted {
			return fsm.Errorf(fsm.NotFound, "%s", absent(tenant, "role", name))
		}
		return err
	})
}

// A Tenant is a namespace of instances, keys, subscriptions and tokens.
type Tenant struct {
	ID     string
	Limits fsm.TenantLimits
	// DisabledAt is nil while the tenant is enabled.
	DisabledAt *time.Time
	CreatedAt  time.Time
	CreatedBy  string
}

func tenantOf(t queries.Tenant) (Tenant, error) {
	out := Tenant{ID: t.ID, DisabledAt: t.DisabledAt, CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy}
	if err := json.Unmarshal(t.Limits, &out.Limits); err != nil {
		return out, &fsm.Error{Kind: fsm.Internal, Cause: fmt.Errorf("limits of tenant %s: %w", t.ID, err)}
	}
	return out, nil
}

// PutTenant makes a tenant, or changes it, and reports whether it is new. limits, if not nil, replace all limits;
// disabled, if not nil, disables or enables it.
//
// Kinds: Malformed, Unavailable.
func (s *Service) PutTenant(ctx context.Context, id string, limits *fsm.TenantLimits, disabled *bool) (Tenant, bool, error) {
	if detail := tenantFault(id); detail != "" {
		return Tenant{}, false, &fsm.Error{
			Kind: fsm.Malformed, Message: "this id cannot be that of a tenant", Faults: []fsm.Fault{{Parameter: "id", Detail: detail}},
		}
	}
	var document json.RawMessage
	if limits != nil {
		var err error
		if document, err = json.Marshal(limits); err != nil {
			return Tenant{}, false, fsm.AsError(err)
		}
		if err := refused(limitFaults(document)); err != nil {
			return Tenant{}, false, err
		}
	}
	var tenant Tenant
	var created bool
	err := s.db.ChangeAll(ctx, "", func(q *queries.Queries) (err error) {
		created, err = q.TenantPut(ctx, queries.TenantPutParams{ID: id, Limits: document, Disabled: disabled, Caller: fsm.CallerJSON(ctx)})
		if err != nil {
			return err
		}
		row, err := q.GetTenant(ctx, id)
		if err == nil {
			tenant, err = tenantOf(row)
		}
		return err
	})
	if err != nil {
		return Tenant{}, false, fsm.AsError(err)
	}
	return tenant, created, nil
}

// tenantFault says what is wrong with the id of a tenant. It must fit into a header, so that callers of the deployment can
// name the tenant in X-Pawl-Tenant.
func tenantFault(id string) string {
	switch {
	case id == fsm.Deployment:
		return "must not be *, which is the deployment"
	case !utf8.ValidString(id) || id == "" || utf8.RuneCountInString(id) > 63:
		return "must be 1 to 63 characters, in UTF-8"
	case strings.ContainsFunc(id, unicode.IsControl) || strings.TrimSpace(id) != id:
		return "must have no control characters, and no space at its beginning or end"
	}
	return ""
}

// maxLimit is the largest limit that there may be.
const maxLimit = 1_000_000_000_000

// limitFaults are what is wrong with limits in JSON.
func limitFaults(limits json.RawMessage) (faults []fsm.Fault) {
	byName := map[string]int64{}
	_ = json.Unmarshal(limits, &byName) // It was just encoded.
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		if byName[name] < 0 || byName[name] > maxLimit {
			faults = append(faults, fsm.Fault{Pointer: "/limits/" + name, Detail: fmt.Sprintf("must be from 0 to %d", maxLimit)})
		}
	}
	return faults
}

// GetTenant returns a tenant.
// Kinds: NotFound, Unavailable.
func (s *Service) GetTenant(ctx context.Context, id string) (Tenant, error) {
	var tenant Tenant
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		row, err := q.GetTenant(ctx, id)
		if err != nil {
			return fsm.IfNoRows(err, fsm.NotFound, fmt.Sprintf("there is no tenant %.128q", id))
		}
		tenant, err = tenantOf(row)
		return err
	})
	return tenant, err
}

// Tenants returns all tenants, by id.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) Tenants(ctx context.Context, page fsm.Page) (fsm.List[Tenant], error) {
	var faulty error
	list, err := listOf(ctx, s.db, "tenants", page, func(t queries.Tenant) Tenant {
		tenant, err := tenantOf(t)
		faulty = errors.Join(faulty, err)
		return tenant
	}, func(t Tenant) string { return t.ID },
		func(ctx context.Context, q *queries.Queries, after string, limit int32) ([]queries.Tenant, error) {
			return q.ListTenants(ctx, queries.ListTenantsParams{After: after, RowLimit: limit})
		})
	return list, errors.Join(err, faulty)
}

// listOf reads a page of a list that is ordered by a text.
func listOf[R, T any](
	ctx context.Context, db *database.Client, scope string, page fsm.Page, item func(R) T, key func(T) string,
	rows func(ctx context.Context, q *queries.Queries, after string, limit int32) ([]R, error),
) (fsm.List[T], error) {
	items, next, err := database.List(ctx, db, database.Listing[R, T]{
		Scope: scope, Item: item,
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]R, error) {
			return rows(ctx, queries.New(db), after, limit)
		},
		Key: key,
	}, page.Limit, page.Cursor)
	if err != nil {
		return fsm.List[T]{}, err
	}
	return fsm.List[T]{Items: items, Next: next}, nil
}

// checkScopes returns the faults of the scopes of a grant.
func checkScopes(tenant string, scopes []string) (faults []fsm.Fault) {
	for i, scope := range scopes {
		switch pointer := fmt.Sprintf("/scopes/%d", i); {
		case !slices.Contains(Scopes, scope):
			faults = append(faults, fsm.Fault{Pointer: pointer, Detail: "must be one of " + strings.Join(Scopes, ", ")})
		case scope == deploy && tenant != fsm.Deployment:
			faults = append(faults, fsm.Fault{Pointer: pointer, Detail: "deploy is for the deployment alone, since workflows are everybody's: give it to a token or role of the tenant '*' (pawl token create --tenant '*', or X-Pawl-Tenant: *)"})
		}
	}
	return faults
}

func refused(faults []fsm.Fault) error {
	if len(faults) == 0 {
		return nil
	}
	return &fsm.Error{Kind: fsm.Malformed, Message: "the request has faults", Faults: faults}
}

// checkNames returns the faults of a list of names at a JSON Pointer: how many there may be, and how many characters one
// may have. An empty name is none, so a grant with it would be for something else than its maker meant.
func checkNames(pointer string, names []string, most, longest int) (faults []fsm.Fault) {
	if len(names) > most {
		return []fsm.Fault{{Pointer: pointer, Detail: fmt.Sprintf("must have at most %d names", most)}}
	}
	for i, name := range names {
		if !fsm.IsText(name) || name == "" || utf8.RuneCountInString(name) > longest {
			faults = append(faults, fsm.Fault{
				Pointer: fmt.Sprintf("%s/%d", pointer, i), Detail: fmt.Sprintf("must be a name of 1 to %d characters, in UTF-8 without NUL", longest),
			})
		}
	}
	return faults
}

func isSlug(id string) bool {
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return len(id) >= 1 && len(id) <= 63 && id[0] != '-' && id[len(id)-1] != '-'
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
