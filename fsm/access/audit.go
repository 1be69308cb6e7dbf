package access

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// An AuditRow says who did what, or was refused.
type AuditRow struct {
	// Tenant is fsm.Deployment for what concerns the deployment, and for callers who are unknown.
	Tenant string
	// Seq rises with each row, with gaps.
	Seq int64
	At  time.Time
	// Actor is the subject of the caller, or the user of a session of the database.
	Actor string
	// Unauthenticated says that the service ran without authentication, and the caller named the actor.
	Unauthenticated bool
	// TokenID, Address and RequestID are nil if there is none.
	TokenID, Address, RequestID *string
	// Action is a noun and a verb, such as workflow.register; of a refusal the operationId of the contract.
	Action string
	// Target names what the action was about; nil for a refusal.
	Target *string
	// Outcome is done, or the code of the problem.
	Outcome string
	Reason  *string
	// Count is how many refusals or reads the row stands for. It is 1 for an act.
	Count int64
	// Before and After are documents about the target; nil for none.
	Before, After json.RawMessage
}

func auditRowOf(a queries.Audit) AuditRow {
	return AuditRow{
		Tenant: a.TenantID, Seq: a.Seq, At: a.At, Actor: a.Actor, Unauthenticated: a.Unauthenticated, TokenID: a.TokenID,
		Address: a.Address, RequestID: a.RequestID, Action: a.Action, Target: a.Target, Outcome: a.Outcome, Reason: a.Reason,
		Count: a.Count, Before: a.Before, After: a.After,
	}
}

// An AuditFilter chooses rows of the audit. A zero member chooses all of them.
type AuditFilter struct {
	// After chooses the rows behind this seq.
	After                          int64
	Target, Actor, Action, Outcome string
	// From and To choose the rows that were written from From on, and before To.
	From, To *time.Time
	// Workflows, if not nil, choose what is about these workflows, and about their instances.
	Workflows []string
}

// Audit returns the audit of a tenant, or for fsm.Deployment that of all tenants, by seq. A page may have fewer rows than
// its limit, or none, and yet a next one. A row appears when its transaction is committed, so that one of a transaction
// that takes long may appear behind rows with a larger seq.
//
// Kinds: Malformed (a filter, the limit or the cursor), Unavailable.
func (s *Service) Audit(ctx context.Context, tenant string, f AuditFilter, page fsm.Page) (fsm.List[AuditRow], error) {
	for _, p := range []struct{ name, text string }{
		{"target", f.Target}, {"actor", f.Actor}, {"action", f.Action}, {"outcome", f.Outcome},
	} {
		if fsm.CheckTexts(fsm.Text{Value: p.text, Max: 1024}) != nil {
			return fsm.List[AuditRow]{}, refused([]fsm.Fault{{Parameter: p.name, Detail: "must be text of at most 1024 characters"}})
		}
	}
	filter, err := json.Marshal(f)
	if err != nil {
		return fsm.List[AuditRow]{}, fsm.AsError(err)
	}
	p := queries.AuditPageParams{
		Workflows: f.Workflows, Target: database.Optional(f.Target), Actor: database.Optional(f.Actor), Action: database.Optional(f.Action),
		Outcome: database.Optional(f.Outcome), FromTime: f.From, ToTime: f.To, Bytes: database.PageBytes,
	}
	if tenant != fsm.Deployment {
		p.Tenant = &tenant
	}
	rest := ""
	items, next, err := database.List(ctx, s.db, database.Listing[queries.Audit, AuditRow]{
		Scope: "audit " + tenant + " " + string(filter),
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.Audit, error) {
			p, last := p, f.After
			if after != "" {
				var err error
				if last, err = strconv.ParseInt(after, 10, 64); err != nil {
					return nil, fmt.Errorf("cursor of the audit: %w", err)
				}
			}
			p.After, p.RowLimit, rest = last, limit, ""
			rows, err := queries.New(db).AuditPage(ctx, p)
			if n := len(rows); n > 0 && rows[n-1].Action == "" {
				rows, rest = rows[:n-1], strconv.FormatInt(rows[n-1].Seq, 10)
			}
			return rows, err
		},
		Item: auditRowOf,
		Key:  func(a AuditRow) string { return strconv.FormatInt(a.Seq, 10) },
		Rest: func() string { return rest },
	}, page.Limit, page.Cursor)
	return fsm.List[AuditRow]{Items: items, Next: next}, err
}

// purgeBatch is how many rows one transaction purges.
const purgeBatch = 5000

// PurgeAudit deletes the rows that were written before a time and that every consumer of the audit has read. It returns how
// many, and how many of that time it kept for a consumer. The role of the database must own the schema. Each transaction
// that deletes rows writes one: audit.purge.
//
// Kinds: Malformed if the time is not past, Unavailable.
func (s *Service) PurgeAudit(ctx context.Context, before time.Time) (purged, kept int64, err error) {
	for {
		var row queries.AuditPurgeRow
		err := s.db.Change(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
			row, err = q.AuditPurge(ctx, queries.AuditPurgeParams{Before: before, RowLimit: purgeBatch})
			return err
		})
		purged += int64(row.Purged)
		if err != nil || row.Purged < purgeBatch {
			return purged, row.Kept, err
		}
	}
}
