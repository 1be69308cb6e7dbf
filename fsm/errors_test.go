package fsm_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

func TestFromDatabase(t *testing.T) {
	t.Parallel()
	code := func(code string) error {
		return fmt.Errorf("fire: %w", &pgconn.PgError{
			Severity: "ERROR", Code: code, Message: `relation "pawl.instance" of select * from`, Detail: `{"version": 3}`, Where: "SQL statement",
		})
	}
	for name, c := range map[string]struct {
		err  error
		kind fsm.Kind
	}{
		"serialization failure":   {code("40001"), fsm.Unavailable},
		"deadlock":                {code("40P01"), fsm.Unavailable},
		"lock timeout":            {code("55P03"), fsm.Unavailable},
		"statement timeout":       {code("57014"), fsm.Unavailable},
		"shutdown":                {code("57P01"), fsm.Unavailable},
		"crash":                   {code("57P02"), fsm.Unavailable},
		"starting":                {code("57P03"), fsm.Unavailable},
		"idle session":            {code("57P05"), fsm.Unavailable},
		"connection failure":      {code("08006"), fsm.Unavailable},
		"disk full":               {code("53100"), fsm.Unavailable},
		"out of memory":           {code("53200"), fsm.Unavailable},
		"too many connections":    {code("53300"), fsm.Unavailable},
		"broken pipe":             {&net.OpError{Op: "write", Err: syscall.EPIPE}, fsm.Unavailable},
		"end of file":             {fmt.Errorf("x: %w", io.ErrUnexpectedEOF), fsm.Unavailable},
		"connection closed":       {fmt.Errorf("x: %w", pgconn.ErrConnClosed), fsm.Unavailable},
		"network closed":          {net.ErrClosed, fsm.Unavailable},
		"pool closed":             {puddle.ErrClosedPool, fsm.Unavailable},
		"deadline":                {context.DeadlineExceeded, fsm.Unavailable},
		"cancelled":               {context.Canceled, fsm.Unavailable},
		"unreplicated":            {fmt.Errorf("x: %w", session.ErrUnreplicated), fsm.Unavailable},
		"workflow conflict":       {code("PW40V"), fsm.WorkflowConflict},
		"workflow not found":      {code("PW40W"), fsm.WorkflowNotFound},
		"event id too old":        {code("PW410"), fsm.EventIDTooOld},
		"invalid definition":      {code("PW42D"), fsm.InvalidDefinition},
		"unique violation":        {code("23505"), fsm.Internal},
		"check violation":         {code("23514"), fsm.Internal},
		"no function":             {code("42883"), fsm.Internal},
		"no permission":           {code("42501"), fsm.Internal},
		"aborted transaction":     {code("25P02"), fsm.Internal},
		"raised":                  {code("P0001"), fsm.Internal},
		"division by zero":        {code("22012"), fsm.Internal},
		"something of the driver": {errors.New("cannot scan"), fsm.Internal},
		"no rows":                 {pgx.ErrNoRows, fsm.Internal},
		"end of a transaction":    {pgx.ErrTxClosed, fsm.Internal},
	} {
		e := fsm.FromDatabase(c.err)
		if e.Kind != c.kind || !errors.Is(e, c.kind) || !errors.Is(e, c.err) {
			t.Errorf("%s: %v, want %v", name, e, c.kind)
		}
		if e.Kind != fsm.Internal && e.Message == "" {
			t.Errorf("%s: no message", name)
		}
		// What the engine words itself is for its callers; nothing else of it is.
		if worded := c.kind == fsm.WorkflowConflict || c.kind == fsm.InvalidDefinition || c.kind == fsm.WorkflowNotFound; !worded {
			for _, internal := range []string{"SQL", "pawl.", "relation", "SQLSTATE", "ERROR", "select"} {
				if strings.Contains(e.Message, internal) {
					t.Errorf("%s: the message %q has %q", name, e.Message, internal)
				}
			}
		}
	}
	if e := fsm.FromDatabase(code("PW40V")); e.Refusal == nil || e.Refusal.Version != 3 {
		t.Errorf("the conflict names no version: %+v", e.Refusal)
	}

	faulty := fsm.FromDatabase(&pgconn.PgError{Code: "PW400", Message: "no", Detail: `{"code": "malformed-request", "errors": [{"pointer": "/a", "detail": "x"}]}`})
	if faulty.Kind != fsm.Malformed || len(faulty.Faults) != 1 || faulty.Faults[0] != (fsm.Fault{Pointer: "/a", Detail: "x"}) {
		t.Errorf("got %+v", faulty)
	}

	// A server that is not there, or not willing, is away, whatever it says.
	for _, dsn := range []string{"host=/nowhere user=x dbname=x", "host=127.0.0.1 port=1 user=x dbname=x sslmode=disable"} {
		_, err := pgx.Connect(t.Context(), dsn)
		if e := fsm.FromDatabase(err); e.Kind != fsm.Unavailable || strings.Contains(e.Message, "nowhere") {
			t.Errorf("got %v", e)
		}
	}
}

func TestAsError(t *testing.T) {
	t.Parallel()
	own := &fsm.Error{Kind: fsm.GuardRejected, Message: "no"}
	if got := fsm.AsError(fmt.Errorf("wrapped: %w", own)); got != own {
		t.Errorf("got %v", got)
	}
	if got := fsm.AsError(errors.New("x")); got.Kind != fsm.Internal || got.Message != "" {
		t.Errorf("got %v", got)
	}
	for reason, kind := range map[error]fsm.Kind{
		definition.ErrMalformed: fsm.Malformed, definition.ErrTooLarge: fsm.TooLarge, definition.ErrInvalid: fsm.InvalidDefinition,
		definition.ErrBusy: fsm.Unavailable,
	} {
		got := fsm.AsError(&definition.Error{Reason: reason, Message: "m", Faults: []definition.Fault{{Pointer: "/a", Detail: "x"}}})
		if got.Kind != kind || got.Message != "m" || len(got.Faults) != 1 || got.Faults[0] != (fsm.Fault{Pointer: "/a", Detail: "x"}) {
			t.Errorf("got %+v, want %v", got, kind)
		}
	}
	if errors.Is(own, fsm.GuardError) || errors.Is(own, io.EOF) || !errors.Is(own, fsm.GuardRejected) {
		t.Error("it is of one kind only")
	}
	full := &fsm.Error{Kind: fsm.Malformed, Message: "m", Faults: []fsm.Fault{{Pointer: "/a", Detail: "x"}, {Parameter: "b", Detail: "y"}}}
	if got := full.Error(); got != "malformed request: m: /a: x; b: y" {
		t.Errorf("got %q", got)
	}
}

func TestEveryKindHasAName(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, k := range fsm.Kinds() {
		if k.Error() == "" || seen[k.Error()] {
			t.Errorf("kind %d is called %q", k, k.Error())
		}
		seen[k.Error()] = true
	}
	if len(seen) != int(fsm.Unavailable)+1 {
		t.Errorf("%d kinds", len(seen))
	}
}
