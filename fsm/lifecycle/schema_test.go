package lifecycle_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/fsmtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// deployment are schemas that refer to one another.
var deployment = []struct{ name, schema string }{
	{"zip", `{"type":"string"}`},
	{"zip", `{"type":"string","pattern":"^[0-9]{5}$"}`},
	{"point", `{"$schema":"http://json-schema.org/draft-07/schema#","definitions":{"pair":{"items":[{"type":"number"}]}}}`},
	{"address", `{"properties":{"zip":{"$ref":"pawl:zip"},"at":{"$ref":"pawl:point#/definitions/pair"}}}`},
	{"hen", `{}`},
	{"egg", `{"properties":{"hen":{"$ref":"pawl:hen"}}}`},
	{"hen", `{"properties":{"egg":{"$ref":"pawl:egg"},"zip":{"$ref":"pawl:zip@1"}}}`},
	{"quotes", `{"description":"a \"$ref\": \"pawl:nothing\" in a text","enum":["\\\"$ref\": \"pawl:nothing"]}`},
}

// What the engine gives out to check is what package definition has checked.
func TestEngineBundlesAsDefinitionsDo(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	for _, d := range deployment {
		if _, created, err := s.RegisterSchema(t.Context(), d.name, []byte(d.schema), ""); err != nil || !created {
			t.Fatal(d.name, created, err)
		}
	}
	for i, schema := range []string{
		`{"type":"object"}`,
		`{"$ref":"pawl:address"}`,
		`{"properties":{"a":{"$ref":"pawl:point#/definitions/pair"},"b":{"$ref":"pawl:zip@1"},"c":{"$ref":"pawl:zip@2"}},"$defs":{"own":{}}}`,
		`{"$schema":"https://json-schema.org/draft/2019-09/schema","properties":{"a":{"$ref":"pawl:egg"}}}`,
		`{"allOf":[{"$ref":"pawl:quotes"}],"description":"\"$ref\": \"pawl:nothing\""}`,
	} {
		name := fmt.Sprintf("w%d", i)
		r, err := s.Register(t.Context(), name, fmt.Appendf(nil, `{"initial":"A","context_schema":%s,
			"states":{"A":{"on":{"go":{"target":"B","payload_schema":%s}}},"B":{"type":"final"}}}`, schema, schema), "", false)
		if err != nil {
			t.Error(schema, err)
			continue
		}
		model, err := r.Model()
		if err != nil {
			t.Fatal(err)
		}
		for column, of := range map[string]json.RawMessage{
			"select context_schema from pawl.workflow where name = $1":                                         model.ContextSchema,
			"select payload_schema from pawl.workflow_transition where workflow = $1 and event = 'go' limit 1": model.States["A"].On["go"][0].PayloadSchema,
		} {
			var got, want any
			if err := errors.Join(json.Unmarshal(bounded.Value[json.RawMessage](t, pool, column, name), &got), json.Unmarshal(model.Bundled(of), &want)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s", schema, diff)
			}
		}
	}
}

// A definition with its schemas is registered from SQL in a deployment that does not have them.
func TestDefinitionsBringTheirSchemas(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{})
	other, pool := fsmtest.New(t, fsm.Config{})
	schema(t, s, "zip", `{"type":"string","minLength":5}`)
	r, err := s.Register(t.Context(), "w", []byte(`{"initial":"A","context_schema":{"properties":{"zip":{"$ref":"pawl:zip"}}},"states":{"A":{"on":{"go":"B"}},"B":{"type":"final"}}}`), "", false)
	if err != nil {
		t.Fatal(err)
	}
	bounded.Exec(t, pool, "select pawl.register_workflow($1)", r.Definition)
	_, err = other.Create(t.Context(), fsm.CreateCommand{Workflow: "w", Context: json.RawMessage(`{"zip":"1"}`), Key: "k"})
	if !errors.Is(err, fsm.InvalidContext) {
		t.Errorf("the schema is not applied: %v", err)
	}
	again, err := other.Register(t.Context(), "w", r.Definition, "", false)
	if err != nil || again.Created {
		t.Errorf("the same definition is a new version: %v, %v", again.Created, err)
	}
}

func schema(t *testing.T, s *fsmtest.Service, name, text string) {
	t.Helper()
	if _, _, err := s.RegisterSchema(t.Context(), name, []byte(text), ""); err != nil {
		t.Fatal(err)
	}
}

// The limit of definitions holds for what a definition carries, and for what is read to find it.
func TestCarriedSchemasAreBounded(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	big := `{"description":"` + strings.Repeat("x", 3000) + `"}`
	schema(t, s, "one", big)
	schema(t, s, "two", big)
	bounded.Exec(t, pool, "update pawl.setting set definition_limit = 4000")
	register := func(contextSchema, description string) error {
		_, err := s.Register(t.Context(), "w", fmt.Appendf(nil, `{"initial":"A","description":%q,"context_schema":%s,"states":{"A":{"on":{"go":"B"}},"B":{"type":"final"}}}`,
			description, contextSchema), "", false)
		return err
	}
	if err := register(`{"$ref":"pawl:one"}`, "short"); err != nil {
		t.Error(err)
	}
	if err := register(`{"$ref":"pawl:one"}`, strings.Repeat("x", 1000)); !errors.Is(err, fsm.TooLarge) {
		t.Errorf("with the copies it is too large: %v", err)
	}
	if err := register(`{"allOf":[{"$ref":"pawl:one"},{"$ref":"pawl:two"}]}`, "short"); !errors.Is(err, fsm.TooLarge) {
		t.Errorf("the copies are too large: %v", err)
	}
	if _, _, err := s.RegisterSchema(t.Context(), "three", []byte(`{"allOf":[{"$ref":"pawl:one"},{"$ref":"pawl:two"}]}`), ""); !errors.Is(err, fsm.TooLarge) {
		t.Errorf("a schema that refers to too much: %v", err)
	}
}

// Of registrations of one schema at the same time each content becomes one version.
func TestSchemasAreRegisteredAtTheSameTime(t *testing.T) {
	t.Parallel()
	s, pool := fsmtest.New(t, fsm.Config{})
	var all sync.WaitGroup
	for range 12 {
		all.Go(func() {
			if _, _, err := s.RegisterSchema(t.Context(), "zip", []byte(`{"type":"string"}`), ""); err != nil {
				t.Error(err)
			}
		})
	}
	bounded.Wait(t, "the end of all registrations", all.Wait)
	if n := bounded.Value[int](t, pool, "select count(*) from pawl.schema"); n != 1 {
		t.Errorf("there are %d versions", n)
	}
}

// SQL callers vouch for what a schema says. Its name and its form are checked.
func TestRegisterSchemaFromSQL(t *testing.T) {
	t.Parallel()
	_, pool := fsmtest.New(t, fsm.Config{})
	call := func(name string, schema any) (string, error) { return registerSchema(t, pool, name, schema) }
	for _, c := range []struct{ schema, want string }{
		{`{"a": 1}`, "1 true"}, {`{"a":2}`, "2 true"}, {`{"a": 1}`, "3 true"}, {`{"a": 1}`, "3 false"},
	} {
		if got, err := call("zip", c.schema); err != nil || got != c.want {
			t.Errorf("%s: got %s, %v, want %s", c.schema, got, err, c.want)
		}
	}
	bounded.Exec(t, pool, "update pawl.setting set definition_limit = 100")
	for name, schema := range map[string]any{"Zip": `{}`, "zip": `[]`, strings.Repeat("a", 43): `{}`, "a_b": `{"a": "` + strings.Repeat("x", 100) + `"}`, "null": nil} {
		if _, err := call(name, schema); !session.IsCode(err, "PW42D") {
			t.Errorf("%s %v: %v", name, schema, err)
		}
	}
}

func registerSchema(t *testing.T, pool *pgxpool.Pool, name string, schema any) (got string, err error) {
	t.Helper()
	bounded.Wait(t, "the registration", func() {
		err = pool.QueryRow(t.Context(), "select version || ' ' || created from pawl.register_schema($1, $2::jsonb)", name, schema).Scan(&got)
	})
	return got, err
}

// The nearest name is suggested.
func TestReferencesAreFoundAtRegistration(t *testing.T) {
	t.Parallel()
	s, _ := fsmtest.New(t, fsm.Config{})
	schema(t, s, "address", `{}`)
	_, err := s.Register(t.Context(), "w", []byte(`{"initial":"A","context_schema":{"$ref":"pawl:addrezz"},"states":{"A":{"on":{"go":"B"}},"B":{"type":"final"}}}`), "", false)
	var e *fsm.Error
	if !errors.As(err, &e) || e.Kind != fsm.InvalidDefinition || len(e.Faults) != 1 || e.Faults[0].Pointer != "/context_schema/$ref" ||
		e.Faults[0].Detail != `there is no schema "addrezz"; did you mean "address"?` {
		t.Errorf("got %v", err)
	}
}
