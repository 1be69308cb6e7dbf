package definition

import (
	"maps"
	"regexp"
	"slices"
	"strings"
)

// A Request is a call over HTTP.
type Request struct {
	// Connection names the service that is called.
	Connection string
	Method     string
	// Path is behind the base URL of the connection. Its parts in braces are SQL/JSON paths.
	Path string
	// Query and Headers have values by name.
	Query, Headers map[string]Value
	// Body is a value. Nil: there is none.
	Body Value
}

// The bounds of requests.
const (
	maxRequestPath  = 2000 // Characters.
	maxRequestNames = 50   // Of a query, or of headers.
)

var (
	methods        = []string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"}
	requestPath    = regexp.MustCompile(`^/([^/?#\\\x00-\x20\x7f][^?#\\\x00-\x20\x7f]*)?$`)
	requestPathPar = regexp.MustCompile(`\{\{|\}\}|\{[^{}]*\}|[{}]`)
)

// request reads a call. connection is that of a call that names none; without one, the call must name one.
func (d *Draft) request(at string, v any, connection string, roots []string) *Request {
	m, ok := d.object(at, v)
	if !ok {
		return nil
	}
	d.members(at, m, "connection", "method", "path", "query", "headers", "body")
	r := Request{Connection: connection}
	if v, given := m["connection"]; given || connection == "" {
		r.Connection = d.text(at+"/connection", v)
		if r.Connection != "" && !IsConnectionName(r.Connection) {
			d.fault(at+"/connection", "must be the name of a connection: up to %d lower-case letters and digits, with single dashes or underscores between", MaxConnectionName)
		}
		d.connections[at+"/connection"] = r.Connection
	}
	r.Method, _ = m["method"].(string)
	if !slices.Contains(methods, r.Method) {
		d.fault(at+"/method", "must be one of %s", strings.Join(methods, ", "))
	}
	d.over(roots, func() {
		r.Path = d.requestPath(at+"/path", m["path"])
		r.Query = d.values(at+"/query", m, "string", "number", "boolean", "array")
		r.Headers = d.values(at+"/headers", m, "string", "number", "boolean")
		if body, given := m["body"]; given {
			r.Body = body
			d.value(at+"/body", body, false)
		}
	})
	lower := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		at, known := at+"/headers"+Pointer(name), strings.ToLower(name)
		switch {
		case !IsHeaderName(name):
			d.fault(at, "is no name of a header")
		case IsOwnHeader(known):
			d.fault(at, "is not for a definition to set: the connection and the call have it")
		case lower[known]:
			d.fault(at, "is here twice, since case does not count in headers")
		}
		lower[known] = true
	}
	switch body, given := m["body"]; {
	case given && body == nil:
		d.fault(at+"/body", "must not be null; leave it out if there is none")
	case given && (r.Method == "GET" || r.Method == "HEAD"):
		d.fault(at+"/body", "a %s has no body: use query", r.Method)
	}
	return &r
}

// values reads an object from names to values: the member that the pointer at ends with.
func (d *Draft) values(at string, m map[string]any, types ...string) map[string]Value {
	v, given := m[at[strings.LastIndexByte(at, '/')+1:]]
	if !given {
		return nil
	}
	written, _ := d.object(at, v)
	if len(written) > maxRequestNames {
		d.fault(at, "must have at most %d members", maxRequestNames)
	}
	values := make(map[string]Value, len(written))
	for _, name := range slices.Sorted(maps.Keys(written)) {
		at := at + Pointer(name)
		if name == "" || strings.HasPrefix(name, "$") {
			d.fault(at, "is a name that is not empty and does not begin with $, and has a value")
			continue
		}
		values[name] = written[name]
		d.value(at, written[name], false)
		d.shape(at, written[name], types...)
	}
	return values
}

// requestPath reads the path of a call, with paths in braces.
func (d *Draft) requestPath(at string, v any) string {
	text := d.text(at, v)
	plain := requestPathPar.ReplaceAllStringFunc(text, func(part string) string {
		path, _ := strings.CutPrefix(part, "{")
		path, braced := strings.CutSuffix(path, "}")
		switch {
		case part == "{{" || part == "}}":
		case !braced || len(part) < 2:
			d.fault(at, "has a brace without its other one; write {{ or }} for a brace, and {$.context.id} for what a path selects")
		case !isPath(path):
			d.fault(at, "%s is no path: one in braces begins with $, such as {$.context.id}; write {{ and }} for braces", part)
		default:
			d.path(at, path)
		}
		return "x"
	})
	switch {
	case text == "":
	case len(text) > maxRequestPath:
		d.fault(at, "must have at most %d characters", maxRequestPath)
	case !requestPath.MatchString(plain):
		d.fault(at, "must begin with one slash, and have no space, no backslash, no ? and no #: what stands behind a ? is query")
	}
	return text
}
