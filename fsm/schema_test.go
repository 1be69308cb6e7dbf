package fsm_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// checked is a workflow with a schema for its context and one for a payload.
func checked(contextSchema, payloadSchema string) string {
	return fmt.Sprintf(`{"name":"checked","initial":"A","context_schema":%s,"states":{
		"A":{"on":{"go":[{"target":"B","guard":"$.payload.* == 1","payload_schema":%s},{"target":"A","assign":{"*":true,"trusted":true}}]}},
		"B":{"type":"final"}}}`, contextSchema, payloadSchema)
}

const strict = `{
	"type": "object", "required": ["id", "price"], "additionalProperties": false,
	"properties": {
		"id": {"type": "string", "pattern": "^[A-Z]+$", "maxLength": 3},
		"price": {"type": "integer", "minimum": 9007199254740993, "maximum": 9007199254740995},
		"a/b~c": {"items": {"type": "number", "multipleOf": 0.1}},
		"any": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/flag"}]}
	},
	"$defs": {"flag": {"type": "boolean"}}
}`

func TestDocumentsFitTheirSchemas(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, checked(strict, strict))
	ctx := t.Context()
	good := `{"id":"AB","price":9007199254740994,"a/b~c":[0.3,1e1],"any":true}`
	i := fsmtest.Create(t, s, "checked", good)
	for document, want := range map[string][]string{
		`{}`:                                     {""},
		`{"id":"AB","price":9007199254740992}`:   {"/price"},
		`{"id":"AB","price":9007199254740996}`:   {"/price"},
		`{"id":"AB","price":9007199254740993.5}`: {"/price"},
		`{"id":"abcd","price":"1","x":1,"any":1,"a/b~c":[0.3,0.35,"1"]}`: {"", "/any", "/any", "/a~1b~0c/1", "/a~1b~0c/2", "/id", "/id", "/price"},
	} {
		_, err := s.Create(ctx, fsm.CreateCommand{Workflow: "checked", Context: json.RawMessage(document)})
		_, fireErr := s.Fire(ctx, fsm.FireCommand{ID: i.ID, Event: "go", Payload: json.RawMessage(document)})
		_, previewErr := s.Preview(ctx, fsm.FireCommand{ID: i.ID, Event: "go", Payload: json.RawMessage(document)})
		for root, e := range map[string]*fsm.Error{
			"/context": fsmtest.Refusal(t, err, fsm.InvalidContext), "/payload": fsmtest.Refusal(t, fireErr, fsm.InvalidPayload),
			"previewed /payload": fsmtest.Refusal(t, previewErr, fsm.InvalidPayload),
		} {
			_, root, _ = strings.Cut(root, "/")
			var wanted []string
			for _, at := range want {
				wanted = append(wanted, "/"+root+at)
			}
			if got := fsmtest.Pointers(e.Faults); !slices.Equal(got, wanted) {
				t.Errorf("%s: faults\n%swant them at %q", document, fsmtest.Describe(e.Faults), wanted)
			}
			for _, f := range e.Faults {
				if f.Detail == "" || strings.Contains(f.Detail, "pawl:") {
					t.Errorf("the detail is %q", f.Detail)
				}
			}
		}
	}
	for _, exact := range []string{"9007199254740993", "9007199254740995", "9007199254740994.0", "9.007199254740994e15"} {
		fsmtest.Create(t, s, "checked", `{"id":"A","price":`+exact+`}`)
	}
	if got := fsmtest.Fire(t, s, i.ID, "go", good); got.Version != 2 {
		t.Errorf("got %+v", got)
	}
}

// A schema that can hold of nothing, or refers only to itself, refuses and does not hang.
func TestOddSchemas(t *testing.T) {
	t.Parallel()
	for schema, fits := range map[string]bool{
		`true`: true, `false`: false, `{}`: true, `{"not":{}}`: false, `{"$ref":"#"}`: false,
		`{"properties":{"a":{"$ref":"#"}}}`: true, `{"$dynamicRef":"#"}`: false,
	} {
		var memo definition.Schemas
		_, faults, err := memo.Check(t.Context(), []byte(schema), []byte(`{"a":{"a":1}}`), "/context")
		if err != nil || (len(faults) == 0) != fits {
			t.Errorf("%s: %v, %v; want it to fit: %v", schema, faults, err, fits)
		}
		for _, f := range faults {
			if strings.Contains(f.Detail, "pawl:") {
				t.Errorf("%s: %q", schema, f.Detail)
			}
		}
	}
}

// A check without end is a fault of the document: the same command would have the same end.
func TestDocumentThatTakesTooLongToCheck(t *testing.T) {
	t.Parallel()
	const section = `{"$ref":"#/$defs/section","$defs":{"base":{"type":"object","properties":{"child":{"$ref":"#/$defs/section"}}},
		"section":{"allOf":[{"$ref":"#/$defs/base"},{"properties":{"child":{"$ref":"#/$defs/section"}}}]}}}`
	s, _ := fsmtest.New(t, fsm.Config{CallTimeout: bounded.Limit}, checked(section, section))
	i := fsmtest.Create(t, s, "checked", `{"child":{"child":{}}}`)
	deep := json.RawMessage(strings.Repeat(`{"child":`, 50) + `{}` + strings.Repeat(`}`, 50))
	_, created := s.Create(t.Context(), fsm.CreateCommand{Workflow: "checked", Context: deep})
	_, fired := s.Fire(t.Context(), fsm.FireCommand{ID: i.ID, Event: "go", Payload: deep})
	for _, e := range []*fsm.Error{fsmtest.Refusal(t, created, fsm.InvalidContext), fsmtest.Refusal(t, fired, fsm.InvalidPayload)} {
		if len(e.Faults) != 1 || !strings.Contains(e.Faults[0].Detail, "takes more than") {
			t.Errorf("got %s", fsmtest.Describe(e.Faults))
		}
	}
}

// A version that is registered while a context is checked makes it be checked again.
func TestSchemaChangesMeanwhile(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	other := fsmtest.On(t, fsmtest.Spied(t, pool, nil), fsm.Config{}, checked(`{"required":["a"]}`, `{}`))
	schemas := []string{`{"required":["b"]}`, `{"required":["c"]}`}
	var mu sync.Mutex
	passes := 0
	watched := fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.Tracer = fsmtest.Spy{Ended: func(sql string, _ []any) {
			mu.Lock()
			defer mu.Unlock()
			if !strings.Contains(sql, "pawl.create(") {
				return
			}
			if passes++; len(schemas) > 0 {
				fsmtest.Register(t, other, checked(schemas[0], `{}`))
				schemas = schemas[1:]
			}
		}}
	})
	s := fsmtest.On(t, watched, fsm.Config{})
	r, err := s.Create(t.Context(), fsm.CreateCommand{Workflow: "checked", Context: json.RawMessage(`{"a":1,"b":1,"c":1}`)})
	if err != nil || r.Instance.WorkflowVersion != 3 || passes != 4 {
		t.Errorf("%d passes: %+v, %v", passes, r, err)
	}

	// A new service knows no schema yet, so it guesses none.
	s = fsmtest.On(t, watched, fsm.Config{})
	schemas = []string{`{"required":["d"]}`}
	_, err = s.Create(t.Context(), fsm.CreateCommand{Workflow: "checked", Context: json.RawMessage(`{"c":1}`)})
	if e := fsmtest.Refusal(t, err, fsm.InvalidContext); !strings.Contains(e.Faults[0].Detail, "'d'") {
		t.Errorf("got %v", e)
	}

	// If it never ends, the caller hears that it may try again.
	s = fsmtest.On(t, watched, fsm.Config{})
	for n := range 10 {
		schemas = append(schemas, fmt.Sprintf(`{"minProperties":%d}`, n))
	}
	_, err = s.Create(t.Context(), fsm.CreateCommand{Workflow: "checked", Context: json.RawMessage(`{"d":1,"2":2,"3":3,"4":4,"5":5,"6":6}`)})
	fsmtest.Refused(t, err, fsm.Unavailable)
}

// A document is checked before the call, against the schema that the engine will probably ask for. A
// wrong guess changes only the number of calls.
func TestSchemaIsGuessed(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	var calls atomic.Int64
	watched := fsmtest.Spied(t, pool, func(c *pgxpool.Config) {
		c.ConnConfig.Tracer = fsmtest.Spy{Ended: func(sql string, _ []any) {
			if strings.Contains(sql, "pawl.create(") || strings.Contains(sql, "pawl.fire(") {
				calls.Add(1)
			}
		}}
	})
	s := fsmtest.On(t, watched, fsm.Config{}, checked(`{"required":["a"]}`, `{"required":["n"]}`))
	create := func(context string) (fsm.Result, error) {
		return s.Create(t.Context(), fsm.CreateCommand{Workflow: "checked", Context: json.RawMessage(context)})
	}
	fire := func(id uuid.UUID, payload string) error {
		return second(s.Fire(t.Context(), fsm.FireCommand{ID: id, Event: "go", Payload: json.RawMessage(payload)}))
	}
	wantCalls := func(what string, want int64) {
		t.Helper()
		if got := calls.Swap(0); got != want {
			t.Errorf("%s: %d calls, want %d", what, got, want)
		}
	}
	var ids []uuid.UUID
	for n, want := range []int64{2, 1, 1} {
		r, err := create(`{"a":1}`)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.Instance.ID)
		wantCalls(fmt.Sprint("create ", n), want)
	}
	for n, want := range []int64{2, 1} {
		if err := fire(ids[n], `{"n":1}`); err != nil {
			t.Fatal(err)
		}
		wantCalls(fmt.Sprint("fire ", n), want)
	}
	fsmtest.Refused(t, fire(ids[2], `{}`), fsm.InvalidPayload)
	wantCalls("a payload that does not fit", 1)
	fsmtest.Refused(t, second(create(`{}`)), fsm.InvalidContext)
	wantCalls("a context that does not fit", 1)

	// Another replica registers another version.
	fsmtest.Register(t, fsmtest.On(t, pool, fsm.Config{}), checked(`{"required":["b"]}`, `{"required":["m"]}`))
	fsmtest.Refused(t, second(create(`{"a":1}`)), fsm.InvalidContext)
	wantCalls("a context that fits the guess only", 1)
	r, err := create(`{"b":1}`)
	if err != nil {
		t.Fatal(err)
	}
	wantCalls("a context that fits", 1)
	fsmtest.Refused(t, fire(r.Instance.ID, `{"n":1}`), fsm.InvalidPayload)
	wantCalls("a payload that fits the guess only", 1)
	if err := fire(ids[2], `{"n":1}`); err != nil {
		t.Fatal(err)
	}
	wantCalls("an instance of the earlier version", 1)
	if err := fire(r.Instance.ID, `{"m":1}`); err != nil {
		t.Fatal(err)
	}
	wantCalls("an instance of the later version", 1)
}

// A document that needs a check shares its call with others, and no one overtakes it.
func TestChecksKeepTheOrder(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{}, checked(`{}`, `{"type":"object"}`), fsmtest.Counter)
	i, other := fsmtest.Create(t, s, "checked", `{}`), fsmtest.Create(t, s, "counter", `{"x":0}`)
	replies := s.Do(t.Context(), []fsm.Command{
		fsm.FireCommand{ID: i.ID, Event: "go", Payload: json.RawMessage(`{"first":2}`)},
		fsm.FireCommand{ID: other.ID, Event: "add", Payload: json.RawMessage(`{"n":1}`)},
		fsm.FireCommand{ID: i.ID, Event: "go", Payload: json.RawMessage(`{"n":1}`)},
	})
	for n, version := range []int64{2, 2, 3} {
		if replies[n].Err != nil || replies[n].Instance.Version != version {
			t.Errorf("%d: %+v", n, replies[n])
		}
	}
	fsmtest.SameJSON(t, fsmtest.Get(t, s, i.ID).Context, `{"first":2}`)
}
