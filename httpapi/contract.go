package httpapi

import (
	_ "embed"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
)

//go:embed openapi.yaml
var openapiYAML []byte

// An operation is what the contract says of a method on a path.
type operation struct {
	id          string
	query       map[string]*openapi3.Parameter
	keyRequired bool
	hasBody     bool
	// produces are the media types of its answers.
	produces []string
	// scope is what a token must allow.
	scope Scope
	// open operations are for everybody, whatever the tokens say.
	open bool
}

// A route is a path of the contract, split at its slashes; a parameter is parameterSegment.
type route struct {
	segments []string
	methods  map[string]*operation
}

const parameterSegment = "{}"

// contract finds the operation of a request.
type contract struct{ routes []route }

// loadContract reads openapi.yaml, once: it is part of the binary, and a test proves that
// it is valid.
var loadContract = sync.OnceValues(func() (*contract, error) {
	doc, err := openapi3.NewLoader().LoadFromData(openapiYAML)
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	c := &contract{}
	for path, item := range doc.Paths.Map() {
		r := route{segments: strings.Split(path, "/"), methods: map[string]*operation{}}
		for i, s := range r.segments {
			if strings.HasPrefix(s, "{") {
				r.segments[i] = parameterSegment
			}
		}
		for method, o := range item.Operations() {
			r.methods[method] = operationOf(path, method, o)
		}
		c.routes = append(c.routes, r)
	}
	return c, nil
})

func operationOf(path, method string, o *openapi3.Operation) *operation {
	op := &operation{
		id: o.OperationID, query: map[string]*openapi3.Parameter{}, hasBody: o.RequestBody != nil,
		open: !strings.HasPrefix(path, "/v1/"),
	}
	for _, p := range o.Parameters {
		switch {
		case p.Value.In == openapi3.ParameterInQuery:
			op.query[p.Value.Name] = p.Value
		case p.Value.Name == "Idempotency-Key":
			op.keyRequired = true
		}
	}
	for status, response := range o.Responses.Map() {
		if strings.HasPrefix(status, "2") {
			for media := range response.Value.Content {
				op.produces = append(op.produces, media)
			}
		}
	}
	switch {
	case method == http.MethodGet, op.id == "simulateWorkflow", op.id == "backtestWorkflow": // They write nothing.
		op.scope = ScopeRead
	case strings.HasPrefix(path, "/v1/workflows/") && method != http.MethodPost, op.id == "migrateWorkflow",
		strings.HasPrefix(path, "/v1/subscriptions"): // Whoever is subscribed sees all of the tenant's steps.
		op.scope = ScopeAdmin
	default:
		op.scope = ScopeWrite
	}
	return op
}

// match finds the route of an escaped path; it is nil if there is none. A literal
// segment wins over a parameter.
func (c *contract) match(escapedPath string) *route {
	segments := strings.Split(escapedPath, "/")
	var best *route
	for i := range c.routes {
		r := &c.routes[i]
		if len(r.segments) != len(segments) {
			continue
		}
		fits := true
		for j, s := range r.segments {
			if s != segments[j] && (s != parameterSegment || segments[j] == "") {
				fits = false
				break
			}
		}
		if fits && (best == nil || slices.Index(r.segments, parameterSegment) < 0) {
			best = r
		}
	}
	return best
}

// allow lists the methods of a route, as the Allow header does.
func (r *route) allow() string {
	methods := []string{http.MethodOptions}
	for m := range r.methods {
		methods = append(methods, m)
		if m == http.MethodGet {
			methods = append(methods, http.MethodHead)
		}
	}
	slices.Sort(methods)
	return strings.Join(methods, ", ")
}

// checkQuery refuses query parameters that the operation does not know, that are given
// twice, or whose value does not fit, all at once.
func (op *operation) checkQuery(query url.Values) error {
	var faults []Fault
	add := func(name, detail string) { faults = append(faults, Fault{Parameter: &name, Detail: detail}) }
	for _, name := range slices.Sorted(maps.Keys(query)) {
		values := query[name]
		p, known := op.query[name]
		switch {
		case !known && len(op.query) == 0:
			add(name, "is not a parameter here; there are none")
		case !known:
			add(name, "is not a parameter here; there are "+strings.Join(slices.Sorted(maps.Keys(op.query)), ", "))
		case len(values) > 1:
			add(name, "is given twice")
		default:
			if detail := checkValue(p.Schema.Value, values[0]); detail != "" {
				add(name, detail)
			}
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return &problemError{code: ProblemCodeMalformedRequest, detail: "a query parameter is not acceptable", faults: faults}
}

// checkValue checks what the generated binding is too kind about: what is no boolean to
// JSON, an unknown member of an enumeration, text that is too short or too long.
func checkValue(schema *openapi3.Schema, value string) string {
	switch {
	case schema.Type.Is("boolean"):
		if value != "true" && value != "false" {
			return "must be true or false"
		}
		return ""
	case schema.Type.Is("integer"):
		if _, err := strconv.ParseInt(value, 10, 64); err != nil {
			return "must be a whole number"
		}
		return ""
	case schema.Format == "date-time":
		if err := new(Timestamp).Bind(value); err != nil {
			return err.Error()
		}
		return ""
	}
	if err := schema.VisitJSON(value); err != nil {
		if len(schema.Enum) > 0 {
			return fmt.Sprintf("must be one of %v", schema.Enum)
		}
		if schema.MaxLength == nil {
			return fmt.Sprintf("must have at least %d character", schema.MinLength)
		}
		return fmt.Sprintf("must have %d to %d characters", schema.MinLength, *schema.MaxLength)
	}
	return ""
}
