package fsm_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// admitted reads a principal and returns a context for its commands, as of now.
func admitted(t testing.TB, s *fsmtest.Service, q fsm.PrincipalQuery) (context.Context, *fsm.Admission) {
	t.Helper()
	if _, err := s.Principal(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	_, a := s.Recall(q)
	if a == nil {
		t.Fatalf("%+v is not remembered", q)
	}
	return fsm.WithAdmission(t.Context(), a), a
}

// change changes what somebody may do.
func change(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	bounded.Exec(t, pool, "select pawl.role_put('default', 'any', '{read}', '{}', '{}')")
}

// Only what was read is remembered, as it was read, until something is known to have changed.
func TestRecall(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	bounded.Exec(t, pool, "select pawl.role_put('default', 'r', '{fire}', '{}', '{}')")
	plain, withRole := fsm.PrincipalQuery{Home: "default"}, fsm.PrincipalQuery{Home: "default", Roles: []string{"r"}}
	for _, q := range []fsm.PrincipalQuery{plain, withRole, {Token: "none"}} {
		if _, a := s.Recall(q); a != nil {
			t.Errorf("%+v is remembered before it was read", q)
		}
		if _, err := s.Principal(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if _, a := s.Recall(fsm.PrincipalQuery{Token: "none"}); a != nil {
		t.Error("a token that does not exist is remembered")
	}
	if p, a := s.Recall(withRole); a == nil || len(p.Roles) != 1 || p.Tenant != "default" || !p.Known {
		t.Errorf("remembered: %+v", p)
	}
	if p, a := s.Recall(plain); a == nil || len(p.Roles) != 0 {
		t.Errorf("remembered: %+v", p)
	}
	change(t, pool)
	admitted(t, s, plain)
	if _, a := s.Recall(withRole); a != nil {
		t.Error("a principal of an earlier version is remembered")
	}
	// Long lists are not, so that what is remembered stays small.
	bounded.Exec(t, pool, "select pawl.role_put('default', 'long', '{fire}', $1, '{}')", []string{strings.Repeat("w", 5000)})
	long := fsm.PrincipalQuery{Home: "default", Roles: []string{"long"}}
	if _, err := s.Principal(t.Context(), long); err != nil {
		t.Fatal(err)
	}
	if _, a := s.Recall(long); a != nil {
		t.Error("a principal with long lists is remembered")
	}
}

// Commands whose caller was let in by what has changed are not carried out, whatever shares their call: those of callers that
// were let in since are, and those of callers that were looked up. Afterwards the change is known.
func TestChangedPrincipalsInOneCall(t *testing.T) {
	t.Parallel()
	_, pool := fsmtest.New(t, fsm.Config{}, simple)
	q := fsm.PrincipalQuery{Home: "default"}
	for _, order := range []string{"old new none", "new old none", "none old new", "none new old old"} {
		// A service that has found an event slow would call it apart.
		s := fsmtest.On(t, pool, fsm.Config{Flushers: 1, CallTimeout: bounded.Limit})
		old, oldAdmission := admitted(t, s, q)
		change(t, pool)
		fresh, freshAdmission := admitted(t, s, q)
		contexts := map[string]context.Context{"old": old, "new": fresh, "none": t.Context()}
		held := fsmtest.Create(t, s, "simple", "{}")
		release := fsmtest.Hold(t, pool, held.ID)
		type reply struct {
			kind string
			id   uuid.UUID
			err  error
		}
		replies := make(chan reply)
		fire := func(kind string, id uuid.UUID) {
			go func() {
				_, err := s.Fire(contexts[kind], fsm.FireCommand{ID: id, Event: "go"})
				replies <- reply{kind, id, err}
			}()
		}
		kinds := strings.Fields(order)
		ids := make([]uuid.UUID, len(kinds))
		for i := range kinds {
			ids[i] = fsmtest.Create(t, s, "simple", "{}").ID
		}
		fire("none", held.ID)
		bounded.UntilBlocked(t, pool, 1)
		for i, kind := range kinds {
			fire(kind, ids[i])
			bounded.True(t, "the command waits", func() bool { return s.WaitingFires() == i+1 })
		}
		release()
		for range len(kinds) + 1 {
			r := bounded.Receive(t, "the reply", replies)
			if r.kind == "old" != errors.Is(r.err, fsm.ErrPrincipalChanged) || r.kind != "old" && r.err != nil {
				t.Errorf("%s: %s: %v", order, r.kind, r.err)
			}
			want := int64(2)
			if r.kind == "old" {
				want = 1
			}
			if got := fsmtest.Get(t, s, r.id).Version; got != want {
				t.Errorf("%s: %s: version %d", order, r.kind, got)
			}
		}
		if oldAdmission.Confirmed() || !freshAdmission.Confirmed() {
			t.Errorf("%s: confirmed: %v, %v", order, oldAdmission.Confirmed(), freshAdmission.Confirmed())
		}
	}
}

// The commands of one caller for one instance keep their order: after one that is not carried out because of a change, none
// is.
func TestChainEndsWithAChange(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{MaxBatch: 2}, simple)
	ctx, _ := admitted(t, s, fsm.PrincipalQuery{Home: "default"})
	id := fsmtest.Create(t, s, "simple", "{}").ID
	var commands []fsm.Command
	for i := range 40 {
		commands = append(commands, fsm.FireCommand{ID: id, Event: "go", Key: fmt.Sprint(i)})
	}
	change(t, pool)
	for i, r := range s.Do(ctx, commands) {
		if !errors.Is(r.Err, fsm.ErrPrincipalChanged) {
			t.Errorf("command %d: %v", i, r.Err)
		}
	}
	if _, a := s.Recall(fsm.PrincipalQuery{Home: "default"}); a != nil {
		t.Error("what has changed is still remembered")
	}
}
