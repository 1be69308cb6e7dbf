package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// workflowTest runs the scenarios of definitions by simulation.
type workflowTest struct {
	schemasFlag
	Files       []string `arg:"" type:"existingfile" help:"Files with a definition in YAML or JSON, and scenarios in its member tests."`
	Server      string   `placeholder:"URL" help:"URL of a service that simulates the scenarios; by default the command does it itself."`
	Token       string   `type:"secret" secret:"" placeholder:"@FILE" env:"PAWL_TOKEN" help:"Bearer token to send, from the environment or a file."`
	DatabaseURL string   `type:"secret" placeholder:"URL" env:"DATABASE_URL,PAWL_DATABASE_URL" help:"Database to simulate in, as a role with the privileges of 'pawl migrate grants'; by default a private Postgres that ends with the command."`
	JUnit       string   `name:"junit" type:"path" placeholder:"FILE" help:"File to write the results to, in JUnit's XML."`
	Verbose     bool     `short:"v" help:"Print each scenario with its steps."`
}

// Help is printed below the help of the command.
func (w *workflowTest) Help() string {
	return "Nothing is registered, and nothing stays in the database. A scenario ends with the first step that is not as expected.\n\n" +
		"The exit code is 0 if all is as expected, 1 if a scenario failed, and 2 if that cannot be told: no service or " +
		"database answers, a file is no definition or has faults, or there is no scenario."
}

// Validate refuses a URL that no request can be sent to.
func (w *workflowTest) Validate() error {
	if w.Server == "" {
		return nil
	}
	return (&clientFlags{Server: w.Server}).Validate()
}

// A scenario is a sequence of events and times, with what each must lead to.
type scenario struct {
	Name        string          `json:"name"`
	Description string          `json:"description"`
	State       string          `json:"state"`
	Context     json.RawMessage `json:"context"`
	Now         string          `json:"now"`
	Actor       *scenarioActor  `json:"actor"`
	// Expect is for the instance before the first step, and Refused the code of the problem if it is not created.
	Expect  *expectation   `json:"expect"`
	Refused string         `json:"refused"`
	Steps   []scenarioStep `json:"steps"`
}

type scenarioActor struct {
	Subject string `json:"subject"`
}

// A scenarioStep is an event, or time that passes.
type scenarioStep struct {
	Description string          `json:"description"`
	Event       string          `json:"event"`
	Payload     json.RawMessage `json:"payload"`
	Actor       *scenarioActor  `json:"actor"`
	After       string          `json:"after"`
	// Expect is for the instance after the step, and Refused the code of the problem with which it is refused.
	Expect  *expectation `json:"expect"`
	Refused string       `json:"refused"`
}

// String names the step.
func (s scenarioStep) String() string {
	if s.After != "" {
		return "after " + s.After
	}
	return s.Event
}

// An expectation is what must be true of an instance. A member that is missing may be anything.
type expectation struct {
	State   string `json:"state"`
	Status  string `json:"status"`
	Version int64  `json:"version"`
	// Context must be contained in the instance's, and ContextEquals equal to it.
	Context       json.RawMessage `json:"context"`
	ContextEquals json.RawMessage `json:"context_equals"`
}

// readScenarios reads the member tests of a file.
func readScenarios(file string) ([]scenario, error) {
	document, err := readDocument(file)
	if err != nil {
		return nil, err
	}
	var members struct{ Tests json.RawMessage }
	if err := json.Unmarshal(document, &members); err != nil || members.Tests == nil {
		return nil, err
	}
	var scenarios []scenario
	err = definition.Decode(members.Tests, &scenarios)
	if refused, ok := errors.AsType[*definition.Error](err); ok {
		for i := range refused.Faults {
			refused.Faults[i].Pointer = "/tests" + refused.Faults[i].Pointer
		}
		return nil, refused
	}
	var faults []definition.Fault
	fault := func(detail, format string, args ...any) {
		faults = append(faults, definition.Fault{Pointer: fmt.Sprintf(format, args...), Detail: detail})
	}
	for i, s := range scenarios {
		if s.Name == "" {
			fault("the scenario needs a name", "/tests/%d", i)
		}
		if s.Refused != "" && (s.Expect != nil || s.Steps != nil) {
			fault("a creation that is refused has neither expect nor steps", "/tests/%d/refused", i)
		}
		for n, step := range s.Steps {
			if (step.Event == "") == (step.After == "") {
				fault("the step must have either event or after", "/tests/%d/steps/%d", i, n)
			}
			if step.Expect != nil && step.Refused != "" {
				fault("a step has either expect or refused", "/tests/%d/steps/%d/refused", i, n)
			}
		}
	}
	if faults != nil {
		return nil, &definition.Error{Reason: definition.ErrMalformed, Message: "the scenarios have faults", Faults: faults}
	}
	return scenarios, nil
}

// A scenarioResult is what became of a scenario.
type scenarioResult struct {
	scenario
	took  time.Duration
	steps []string // What was done, for people.
	// Of a failure: the pointer to what was not as expected, and how it was.
	at       string
	failures []string
}

func (w *workflowTest) Run(c *console) error {
	client, stop, err := w.service(c)
	if err != nil {
		return undecided{err}
	}
	defer stop()
	report := junitReport{}
	run, failed, unknown := 0, 0, false
	for _, file := range w.Files {
		results, err := w.run(c, client, file)
		if err != nil {
			c.printFaults(file, err)
			report.fail(file, err)
			unknown = true
			continue
		}
		n := w.print(c, file, results)
		report.add(file, results)
		run, failed = run+len(results), failed+n
	}
	if w.JUnit != "" {
		if err := report.write(w.JUnit); err != nil {
			return undecided{err}
		}
	}
	switch {
	case failed > 0:
		return errReported
	case unknown:
		return undecided{errors.New("not all scenarios were run: mend what is named above")}
	case run == 0:
		return undecided{errors.New("there is no scenario: write some into the member tests")}
	}
	return nil
}

// run runs the scenarios of a file.
func (w *workflowTest) run(c *console, client *clientFlags, file string) ([]scenarioResult, error) {
	document, model, err := readDefinitionWith(file, schemasIn(w.Schemas))
	if err == nil {
		document, err = withSchemas(document, model)
	}
	if err != nil {
		return nil, err
	}
	scenarios, err := readScenarios(file)
	if err != nil {
		return nil, err
	}
	var results []scenarioResult
	for i, s := range scenarios {
		result, err := s.run(c, client, document, fmt.Sprintf("/tests/%d", i))
		if err != nil {
			return nil, err
		}
		results = append(results, result)
	}
	return results, nil
}

// beyond are the codes of problems that no creation and no event of a scenario has.
var beyond = []api.ProblemCode{api.ProblemCodeInvalidDefinition, api.ProblemCodeMalformedRequest}

// run runs a scenario, which stands at a JSON Pointer of its file. The error says that it could not be run.
func (s scenario) run(c *console, client *clientFlags, document json.RawMessage, at string) (r scenarioResult, err error) {
	r.scenario, r.at = s, at
	begin := time.Now()
	var answer api.Simulated
	_, err = client.do(c, call{method: http.MethodPost, path: "/v1/simulate", body: s.body(document)}, &answer)
	r.took = time.Since(begin)
	refused, answered := errors.AsType[*problem](err)
	switch {
	case err != nil && (!answered || refused.foreign != "" || refused.Status >= http.StatusInternalServerError ||
		refused.Status < http.StatusConflict || slices.Contains(beyond, api.ProblemCode(refused.Code))):
		if answered {
			refused.relocate(at)
		}
		return r, err
	case err != nil && refused.Code != s.Refused:
		expected := "to be created"
		if s.Refused != "" {
			expected = "to be refused as " + s.Refused
		}
		r.failures = []string{fmt.Sprintf("the instance is refused as %s, expected %s", refused.summary(), expected)}
		return r, nil
	case err != nil:
		r.steps = append(r.steps, "refused as "+refused.Code)
		return r, nil
	case s.Refused != "":
		r.failures = []string{fmt.Sprintf("the instance is created in %s, expected to be refused as %s", answer.Start.State, s.Refused)}
		return r, nil
	}
	is := answer.Start
	r.steps = append(r.steps, "created in "+is.State)
	if r.failures = s.Expect.check(is); r.failures != nil {
		r.at += "/expect"
		return r, nil
	}
	for n, step := range s.Steps {
		r.at = fmt.Sprintf("%s/steps/%d", at, n)
		var problem *api.Problem
		for _, made := range answer.Steps {
			if made.Index != n {
				continue
			}
			name := made.Event
			if made.Problem != nil {
				problem = made.Problem
				r.steps = append(r.steps, fmt.Sprintf("%s refused in %s: %s", name, made.From, made.Problem.Code))
			} else {
				r.steps = append(r.steps, fmt.Sprintf("%s: %s → %s", name, made.From, made.To))
			}
			is = api.SimulatedInstance{State: made.To, Status: made.Status, Version: made.Version, Context: made.Context}
		}
		switch {
		case problem != nil && string(problem.Code) != step.Refused:
			r.failures = []string{fmt.Sprintf("is refused in %s as %s, expected %s", is.State, summaryOf(problem), cmp.Or(step.Refused, "to be applied"))}
		case problem == nil && step.Refused != "":
			r.failures = []string{fmt.Sprintf("leads to %s, expected to be refused as %s", is.State, step.Refused)}
		default:
			r.failures = step.Expect.check(is)
		}
		if r.failures != nil {
			for i, f := range r.failures {
				r.failures[i] = fmt.Sprintf("step %d, %s: %s", n+1, step, f)
			}
			return r, nil
		}
	}
	return r, nil
}

// body is the simulation of the scenario.
func (s scenario) body(document json.RawMessage) any {
	body := map[string]any{"definition": document}
	events := []map[string]any{}
	set := func(m map[string]any, name string, value any, given bool) {
		if given {
			m[name] = value
		}
	}
	set(body, "state", s.State, s.State != "")
	set(body, "context", s.Context, s.Context != nil)
	set(body, "now", s.Now, s.Now != "")
	set(body, "actor", s.Actor, s.Actor != nil)
	for _, step := range s.Steps {
		event := map[string]any{}
		set(event, "event", step.Event, step.Event != "")
		set(event, "payload", step.Payload, step.Payload != nil)
		set(event, "actor", step.Actor, step.Actor != nil)
		set(event, "after", step.After, step.After != "")
		events = append(events, event)
	}
	body["events"] = events
	return body
}

// relocate makes the pointers of a problem, which lead into the body of a simulation, lead into the file.
func (p *problem) relocate(at string) {
	for i, e := range p.Errors {
		if rest, ok := strings.CutPrefix(e.Pointer, "/definition"); ok {
			p.Errors[i].Pointer = rest
		} else if rest, ok := strings.CutPrefix(e.Pointer, "/events"); ok {
			p.Errors[i].Pointer = at + "/steps" + rest
		} else {
			p.Errors[i].Pointer = at + e.Pointer
		}
	}
}

// summary is the problem in one line.
func (p *problem) summary() string {
	text := p.Code + ": " + p.Detail
	if p.Guards != nil {
		text += ": " + strings.Join(p.Guards, ", ")
	}
	for _, e := range p.Errors {
		text += "; "
		if e.Pointer != "" {
			text += e.Pointer + ": "
		}
		text += e.Detail
	}
	return text
}

// summaryOf is summary for a problem within an answer.
func summaryOf(p *api.Problem) string {
	own := problem{Code: string(p.Code), Detail: p.Detail, Guards: p.Guards}
	for _, e := range p.Errors {
		f := problemFault{Detail: e.Detail}
		if e.Pointer != nil {
			f.Pointer = *e.Pointer
		}
		own.Errors = append(own.Errors, f)
	}
	return own.summary()
}

// check returns what is not as expected of an instance.
func (e *expectation) check(is api.SimulatedInstance) (failures []string) {
	if e == nil {
		return nil
	}
	differ := func(what string, is, want any) {
		failures = append(failures, fmt.Sprintf("%s is %v, expected %v", what, is, want))
	}
	if e.State != "" && e.State != is.State {
		differ("state", is.State, e.State)
	}
	if e.Status != "" && e.Status != string(is.Status) {
		differ("status", is.Status, e.Status)
	}
	if e.Version != 0 && e.Version != is.Version {
		differ("version", is.Version, e.Version)
	}
	if e.Context != nil {
		compare("context", decoded(is.Context), decoded(e.Context), false, differ)
	}
	if e.ContextEquals != nil {
		compare("context", decoded(is.Context), decoded(e.ContextEquals), true, differ)
	}
	return failures
}

// decoded decodes JSON with its digits.
func decoded(text json.RawMessage) (v any) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	_ = d.Decode(&v) // It was read before.
	return v
}

// compare calls differ for each part of a value that is not as expected. Unless exact is set, an object may have members
// that are not expected.
func compare(what string, is, want any, exact bool, differ func(what string, is, want any)) {
	text := func(v any) string {
		text, _ := json.Marshal(v)
		return string(text)
	}
	have, isObject := is.(map[string]any)
	expected, wantObject := want.(map[string]any)
	if !isObject || !wantObject {
		if !definition.EqualJSON(is, want) {
			differ(what, text(is), text(want))
		}
		return
	}
	for _, name := range slices.Sorted(maps.Keys(expected)) {
		if v, given := have[name]; given {
			compare(what+"."+name, v, expected[name], exact, differ)
		} else {
			differ(what+"."+name, "missing", text(expected[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, known := expected[name]; exact && !known {
			differ(what+"."+name, text(have[name]), "nothing")
		}
	}
}

// print prints the results of a file, and returns how many scenarios failed.
func (w *workflowTest) print(c *console, file string, results []scenarioResult) (failed int) {
	for _, r := range results {
		if w.Verbose {
			verdict := "ok"
			if r.failures != nil {
				verdict = "FAIL"
			}
			c.printf("%-4s  %s\n", verdict, r.Name)
			for _, step := range r.steps {
				c.printf("      %s\n", step)
			}
		}
		if r.failures == nil {
			continue
		}
		failed++
		var faults []fault
		for _, f := range r.failures {
			faults = append(faults, fault{Pointer: r.at, Detail: r.Name + ": " + f})
		}
		locateFaults(file, faults)
		for i := range faults {
			faults[i].Pointer = "" // The line says it.
		}
		c.printFaultsOf(relative(file), faults)
	}
	c.printf("%s: %d ok, %d failed\n", relative(file), len(results)-failed, failed)
	return failed
}
