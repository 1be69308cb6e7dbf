package httpapi

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

//go:embed openapi.yaml
var openapiYAML []byte

// An operation is one method of one path, as the contract declares it.
type operation struct {
	// query holds the declared query parameters by name.
	query map[string]*openapi3.Parameter
	// keyRequired is set if the operation declares the Idempotency-Key header.
	keyRequired bool
	// produces are the media types of the 2xx responses.
	produces []string
	// admission says who may call the operation.
	admission admission
	// id is the operationId.
	id string
	// tenancy says which tenant the operation is for.
	tenancy tenancy
}

// A route is one path of the contract, split at its slashes. A path parameter is the segment
// parameterSegment.
type route struct {
	// pattern is the path as the contract has it, such as /v1/instances/{id}.
	pattern  string
	segments []string
	methods  map[string]*operation
}

const parameterSegment = "{}"

// A contract finds the operation for a request.
type contract struct{ routes []route }

// loadContract parses the embedded openapi.yaml once per process.
var loadContract = sync.OnceValues(func() (*contract, error) { return parseContract(openapiYAML) })

// parseContract reads an OpenAPI document. It fails if an operation does not declare who may
// call it, and then names every such operation. It does not validate the document against
// the OpenAPI schema; a test does.
func parseContract(text []byte) (*contract, error) {
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return nil, fmt.Errorf("openapi.yaml: %w", err)
	}
	c := &contract{}
	var faults []error
	for _, path := range slices.Sorted(maps.Keys(doc.Paths.Map())) {
		r := route{pattern: path, segments: strings.Split(path, "/"), methods: map[string]*operation{}}
		for i, s := range r.segments {
			if strings.HasPrefix(s, "{") {
				r.segments[i] = parameterSegment
			}
		}
		operations := doc.Paths.Value(path).Operations()
		for _, method := range slices.Sorted(maps.Keys(operations)) {
			op, err := parseOperation(operations[method])
			if err != nil {
				faults = append(faults, fmt.Errorf("openapi.yaml: %s %s (%s): %w", method, path, operations[method].OperationID, err))
			}
			r.methods[method] = op
		}
		c.routes = append(c.routes, r)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return c, nil
}

func parseOperation(o *openapi3.Operation) (*operation, error) {
	op := &operation{id: o.OperationID, query: map[string]*openapi3.Parameter{}}
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
	slices.Sort(op.produces)
	op.produces = slices.Compact(op.produces)
	var err error
	if op.admission, err = parseAdmission(o.Extensions["x-scope"]); err == nil && !op.admission.public {
		op.tenancy, err = parseTenancy(o.Extensions["x-tenant"])
	}
	return op, err
}

// match finds the route for an escaped path, or nil. A literal segment wins over a
// parameter.
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

// allow returns the value of the Allow header for the route.
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

// checkQuery returns one malformed-request problem that lists every query parameter that is
// unknown, has a bad value, or is repeated although it is no array.
func (op *operation) checkQuery(query url.Values) error {
	var faults []api.Fault
	add := func(name, detail string) { faults = append(faults, api.Fault{Parameter: &name, Detail: detail}) }
	for _, name := range slices.Sorted(maps.Keys(query)) {
		values := query[name]
		p, known := op.query[name]
		switch {
		case !known && len(op.query) == 0:
			add(name, "is not a parameter of this operation, which has none")
		case !known:
			add(name, "is not a parameter of this operation, which has "+strings.Join(slices.Sorted(maps.Keys(op.query)), ", "))
		case p.Schema.Value.Type.Is("array"):
			if most := p.Schema.Value.MaxItems; most != nil && uint64(len(values)) > *most {
				add(name, fmt.Sprintf("must be sent at most %d times", *most))
			}
			for _, v := range values {
				if detail := checkValue(p.Schema.Value.Items.Value, v); detail != "" {
					add(name, detail)
				}
			}
		case len(values) > 1:
			add(name, "must be sent once")
		default:
			if detail := checkValue(p.Schema.Value, values[0]); detail != "" {
				add(name, detail)
			}
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return &problemError{code: api.ProblemCodeMalformedRequest, detail: "a query parameter is unknown, repeated or has a bad value", faults: faults}
}

// checkValue returns what is wrong with the value of a query parameter, or "". The generated
// binding accepts more than the contract: other spellings of a boolean, unknown members of
// an enumeration, text that is too short or too long.
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
		if err := new(api.Timestamp).Bind(value); err != nil {
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

// GetContract answers with openapi.yaml as it is embedded.
func (s *server) GetContract(context.Context, GetContractRequestObject) (GetContractResponseObject, error) {
	return GetContract200ApplicationYamlResponse{
		Headers: GetContract200ResponseHeaders{CacheControl: "max-age=300"},
		Body:    bytes.NewReader(openapiYAML), ContentLength: int64(len(openapiYAML)),
	}, nil
}

// GetDefinitionSchema answers with the JSON Schema of definitions.
func (s *server) GetDefinitionSchema(context.Context, GetDefinitionSchemaRequestObject) (GetDefinitionSchemaResponseObject, error) {
	var schema map[string]any
	if err := json.Unmarshal([]byte(definition.DocumentSchema), &schema); err != nil {
		return nil, err
	}
	return GetDefinitionSchema200ApplicationSchemaPlusJSONResponse(schema), nil
}
