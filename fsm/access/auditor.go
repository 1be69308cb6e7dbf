package access

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// A Note is a refusal, or a read of the audit, that an [Auditor] is to write down.
type Note struct {
	// Tenant is fsm.Deployment for a caller who is unknown.
	Tenant string
	Caller fsm.Caller
	// Action is the operationId, or audit.read.
	Action string
	// Outcome is the code of the problem, or done.
	Outcome string
	// Reason is what the caller was told.
	Reason string
}

// How much an Auditor writes and holds.
const (
	noteInterval   = 100 * time.Millisecond // Between two rows.
	maxNotes       = 256                    // Rows that wait.
	maxTenantNotes = 64                     // Rows of one tenant that wait.
	noteTimeout    = 2 * time.Second        // For a row, and for all that wait at the end.
)

// Others is the actor of a row for several callers, and the action of a row for several operations: the Auditor holds no
// more than a bounded number of rows that differ.
const Others = "others"

// An Auditor writes refusals and reads of the audit down, ten rows a second at most. Equal ones that come in the meantime are
// counted in one row. It never holds up who notes something. It may be used by several goroutines at once.
type Auditor struct {
	db     *database.Client
	logger *slog.Logger

	mu      sync.Mutex
	queue   []*waitingNote
	byKey   map[Note]*waitingNote
	tenants map[string]int // How many rows of each tenant wait.
	wake    chan struct{}
}

// A waitingNote is a row that is to be written.
type waitingNote struct {
	Note  // The first one.
	key   Note
	count int64
}

// NewAuditor returns an Auditor on the database of an fsm.Service. It writes while Run runs.
func NewAuditor(service *fsm.Service, logger *slog.Logger) *Auditor {
	return &Auditor{
		db: service.Database(), logger: logger, byKey: map[Note]*waitingNote{}, tenants: map[string]int{}, wake: make(chan struct{}, 1),
	}
}

// Note notes something that is to be written down soon.
func (a *Auditor) Note(n Note) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := n
	key.Caller.RequestID, key.Reason = "", ""
	if a.byKey[key] == nil {
		switch {
		case len(a.queue) >= maxNotes:
			key = Note{Tenant: fsm.Deployment, Caller: fsm.Caller{Actor: Others}, Action: Others, Outcome: n.Outcome}
			n = key
		case a.tenants[n.Tenant] >= maxTenantNotes:
			key = Note{Tenant: n.Tenant, Caller: fsm.Caller{Actor: Others}, Action: Others, Outcome: n.Outcome}
			n = key
		}
	}
	if w := a.byKey[key]; w != nil {
		w.count++
		return
	}
	w := &waitingNote{Note: n, key: key, count: 1}
	a.byKey[key] = w
	a.tenants[n.Tenant]++
	a.queue = append(a.queue, w)
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// Run writes until the context ends, then what still waits, for two seconds at most, and returns nil. A row that cannot be
// written is tried again, and counts what comes meanwhile.
func (a *Auditor) Run(ctx context.Context) error {
	failing := false
	for ctx.Err() == nil {
		pause := noteInterval
		wrote, err := a.write(context.WithoutCancel(ctx))
		switch {
		case err != nil:
			pause = time.Second
			if !failing {
				a.logger.WarnContext(ctx, "refusals cannot be written down in the audit; they are counted until they can", "error", err)
			}
		case !wrote:
			select {
			case <-a.wake:
			case <-ctx.Done():
			}
			continue
		}
		failing = err != nil
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	for {
		if wrote, err := a.write(last); err != nil {
			a.logger.WarnContext(ctx, "refusals were not written down in the audit", "rows", a.waiting(), "error", err)
			return nil
		} else if !wrote {
			return nil
		}
	}
}

// write writes the row that has waited longest, and reports whether there was one.
func (a *Auditor) write(ctx context.Context) (wrote bool, err error) {
	w := a.take()
	if w == nil {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(fsm.WithCaller(ctx, w.Caller), noteTimeout)
	defer cancel()
	err = a.db.Change(ctx, func(ctx context.Context, q *queries.Queries) error {
		return q.AuditNote(ctx, queries.AuditNoteParams{
			Tenant: w.Tenant, Caller: fsm.CallerJSON(ctx), Action: w.Action, Outcome: w.Outcome, Reason: database.Optional(w.Reason), Count: w.count,
		})
	})
	if err != nil && fsm.AsError(err).Kind != fsm.Malformed {
		a.putBack(w)
		return false, err
	}
	return true, err
}

// take takes the row that has waited longest; nil for none.
func (a *Auditor) take() *waitingNote {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		return nil
	}
	w := a.queue[0]
	a.queue = a.queue[1:]
	delete(a.byKey, w.key)
	if a.tenants[w.Tenant]--; a.tenants[w.Tenant] == 0 {
		delete(a.tenants, w.Tenant)
	}
	return w
}

// putBack puts a row that was taken back to the front, with what was noted like it in the meantime.
func (a *Auditor) putBack(w *waitingNote) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if later := a.byKey[w.key]; later != nil {
		later.count += w.count
		return
	}
	a.byKey[w.key] = w
	a.tenants[w.Tenant]++
	a.queue = append([]*waitingNote{w}, a.queue...)
}

func (a *Auditor) waiting() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.queue)
}
