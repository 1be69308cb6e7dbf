package definition

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// stepRoots are the members of the document that guards and values of transitions read.
var stepRoots = []string{"context", "payload", "instance", "now", "event", "actor"}

// The members of what the engine makes itself: of $.instance and $.actor, and of $.payload in the step of a timer, of
// which missed is there in those that repeat.
var (
	instanceSchema = closedObject("id", "workflow", "workflow_version", "state", "status", "version", "business_key", "correlation_id", "created_at",
		"state_changed_at", "expires_at")
	actorSchema   = closedObject("subject", "scopes", "roles", "verified")
	timeoutSchema = openObject("due_at")
	repeatSchema  = openObject("due_at", "missed")
)

// lint looks for paths that silently never select anything, or that say something else than is meant.
func (d *Draft) lint() {
	known := d.contextMembers()
	for _, u := range d.uses {
		if u.expr == nil {
			continue
		}
		l := &linter{draft: d, use: u, context: known, said: map[string]bool{}}
		u.expr.walk(l.expression)
		if u.equalsNull && l.mayBeMissing(u.expr) {
			d.warn("use-absent", u.at[:strings.LastIndexByte(u.at, '/')],
				`equal to null is unknown for what is missing, and holds only for a null that is there; write {"absent": …}, or {"any": […]} of both`)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.Definition.ContextDefault)) {
		if text, ok := d.Definition.ContextDefault[name].(string); ok && isPath(text) {
			d.warn("default-is-text", "/context_default"+Pointer(name), "is kept as this text, since defaults are plain JSON; assign the path with initial, as {\"target\": …, \"assign\": …}")
		}
	}
}

// contextMembers are the members of the context that something is known to set.
type contextMembers struct {
	// assigned are set by assigns, and there from the beginning, by the creation.
	assigned, there map[string]bool
	// names are all of these, if there are not too many for hints.
	names []string
	// schema is that of the context, and true if there is none.
	schema any
	// any: callers may set any member.
	any bool
}

func (d *Draft) contextMembers() contextMembers {
	def := &d.Definition
	c := contextMembers{schema: decodeSchema(def.ContextSchema), assigned: map[string]bool{}, there: map[string]bool{}}
	for _, name := range slices.AppendSeq(schemaRequired(c.schema), maps.Keys(def.ContextDefault)) {
		c.there[name] = true
	}
	for name := range def.InitialAssign.Values {
		c.there[name] = true
	}
	for _, a := range d.assigns {
		names := a.names()
		if a.unbounded() {
			properties, closed := closedProperties(d.payload(a.at).schema)
			names = append(names, properties...)
			c.any = c.any || !closed
		}
		for _, name := range names {
			c.assigned[name] = true
		}
	}
	if len(c.assigned)+len(c.there) <= maxHints {
		c.names = slices.AppendSeq(slices.Collect(maps.Keys(c.assigned)), maps.Keys(c.there))
	}
	return c
}

// A linter looks at one path.
type linter struct {
	draft *Draft
	use
	context contextMembers
	said    map[string]bool
	// negated is the exists behind the ! that was looked at last.
	negated *pathExpr
}

// say adds a warning once.
func (l *linter) say(name, format string, args ...any) {
	detail := fmt.Sprintf(format, args...)
	if !l.said[name+detail] {
		l.said[name+detail] = true
		l.draft.warn(name, l.at, "%s", detail)
	}
}

// wrong adds a fault once.
func (l *linter) wrong(format string, args ...any) {
	detail := fmt.Sprintf(format, args...)
	if !l.said[detail] {
		l.said[detail] = true
		l.draft.Fault(l.at, detail)
	}
}

// expression looks at an expression of the path. filtered: it is within a filter.
func (l *linter) expression(e *pathExpr, filtered bool) {
	lax := strings.HasPrefix(l.text, "lax ")
	switch e.op {
	case "path":
		l.path(e)
	case "!":
		if e.args[0].op == "exists" && !lax {
			l.negated = e.args[0]
			if filtered {
				l.say("use-absent", "!exists(…) never holds for what is missing, since strict mode makes that unknown; begin the path with lax")
			} else {
				l.say("use-absent", `!exists(…) never holds for what is missing, since strict mode makes that unknown; write {"absent": …}`)
			}
		}
	case "exists":
		if e != l.negated && e.args[0].op == "path" && !filtered && !lax && !slices.ContainsFunc(e.args[0].steps, isFilter) {
			l.say("use-present", `exists(…) is unknown for what is missing, not false; write {"present": …}, which is either`)
		}
	case "+", "-", "*", "/", "%":
		for _, operand := range e.args {
			l.operand(operand)
		}
	case "<", "<=", ">", ">=":
		for _, operand := range e.args {
			if l.isTime(operand) {
				l.say("time-as-text", `%s compares times as texts, whose order is another one; write {"before": […]} or {"after": […]}`, e.op)
			}
		}
	}
	if e.op == "==" && !filtered && !lax {
		for i, operand := range e.args {
			if other := e.args[1-i]; other.op == "literal" && other.text == "null" && !other.quoted && l.mayBeMissing(operand) {
				l.say("use-absent", `… == null is unknown for what is missing, and holds only for a null that is there; write {"absent": …}, or {"any": […]} of both`)
			}
		}
	}
	if slices.Contains(append(pathPrecedence[comparisonLevel], "like_regex", "starts with"), e.op) && !filtered && !lax {
		for _, operand := range e.args {
			l.several(operand)
		}
	}
}

func isFilter(s pathStep) bool { return s.kind == "?" }

// path looks at what a path reads.
func (l *linter) path(e *pathExpr) {
	for _, s := range e.steps {
		if s.kind == "()" && s.name == "datetime" {
			l.say("time-as-text", `.datetime() does not read times that end with Z on PostgreSQL 15 and 16; write {"before": […]} or {"after": […]}, or {"$time": […]}`)
		}
	}
	root, roots := "", l.roots
	if roots == nil {
		roots = stepRoots
	}
	switch {
	case strings.HasPrefix(e.root, "$") && e.root != "$":
		l.say("unknown-variable", "%s is a variable, and there are none, so that this is a guard-error: a path goes on with a dot, such as $.%s", e.root, roots[0])
		return
	case e.root != "$":
		return
	case len(e.steps) == 0 || strings.HasPrefix(e.steps[0].kind, "["):
		l.wrong("$ is the whole document, and no value in it: name a member, such as $.%s", roots[0])
		return
	case e.steps[0].kind != ".":
		return
	}
	root = e.steps[0].name
	switch {
	case !slices.Contains(roots, root):
		l.wrong("there is no $.%s%s; a path reads $.%s", root, didYouMean("$.", root, roots), strings.Join(roots, ", $."))
		return
	case l.invariant && slices.Contains([]string{"payload", "now", "event", "actor"}, root):
		l.wrong("an invariant reads $.context and $.instance only: with $.%s it would hold by time, or by who asks", root)
		return
	}
	switch root {
	case "now", "event":
		if len(e.steps) > 1 && e.steps[1].kind == "." {
			l.wrong("$.%s is a text, and has no members", root)
		}
	case "instance":
		l.members(instanceSchema, "$.instance", "an instance", "", e.steps[1:])
	case "actor":
		l.members(actorSchema, "$.actor", "an actor", "", e.steps[1:])
		l.say("actor-unverified", "$.actor is whatever the caller says while the service runs without authentication; look at $.actor.verified, or allow this warning where tokens are required")
	case "payload":
		l.payloadMember(e)
	case "context":
		l.contextMember(e)
	case "task":
		l.members(taskSchema, "$.task", "a task", "", e.steps[1:])
	case "result":
		l.members(resultSchema, "$.result", "the result of a task", "", e.steps[1:])
	}
}

// payloadMember looks at a path that reads the payload.
func (l *linter) payloadMember(e *pathExpr) {
	if strings.HasPrefix(l.at, "/initial/") && len(e.steps) > 1 {
		l.say("unknown-payload-member", "a creation has an empty payload: what was sent is $.context")
		return
	}
	if p := l.draft.payload(l.at); p.schema != nil {
		l.members(p.schema, "$.payload", p.where, "unknown-payload-member", e.steps[1:])
	}
}

// contextMember looks at a path that reads the context.
func (l *linter) contextMember(e *pathExpr) {
	if len(e.steps) < 2 || e.steps[1].kind != "." || l.context.any {
		return
	}
	name := e.steps[1].name
	if l.context.assigned[name] || l.context.there[name] {
		return
	}
	properties := schemaProperties(l.context.schema)
	if len(properties) > 0 || isClosed(l.context.schema) {
		l.members(l.context.schema, "$.context", "the context_schema, and nothing sets it", "unknown-context-member", e.steps[1:], l.context.names...)
		return
	}
	// Any creation may set it. So only what looks like another name is told.
	if hint := didYouMean("$.context.", name, l.context.names); hint != "" {
		l.say("unknown-context-member", "nothing in this definition sets $.context.%s%s", name, hint)
	}
}

// members follows steps through a schema, and tells of the first member that is not in it. others are further names
// that the first member may have.
func (l *linter) members(schema any, path, where, warning string, steps []pathStep, others ...string) {
	for _, s := range steps {
		m, ok := schema.(map[string]any)
		if !ok || !isPlain(m) {
			return
		}
		switch s.kind {
		case "[*]", "[]":
			schema = m["items"]
			continue
		case ".":
		default:
			return
		}
		properties, _ := m["properties"].(map[string]any)
		known, has := properties[s.name]
		if has {
			schema, path, others = known, path+"."+s.name, nil
			continue
		}
		hint := didYouMean(path+".", s.name, slices.AppendSeq(slices.Clone(others), maps.Keys(properties)))
		switch {
		case isClosed(m):
			l.wrong("there is no %s.%s in %s, which allows no other members%s", path, s.name, where, hint)
		case len(properties) > 0:
			l.say(warning, "%s.%s is not in %s%s", path, s.name, where, hint)
		}
		return
	}
}

// operand looks at an operand of arithmetic, which raises if it is missing.
func (l *linter) operand(e *pathExpr) {
	names := e.members()
	if len(names) < 2 {
		return
	}
	switch {
	case !l.mayBeMissing(e):
	case names[0] == "context":
		l.say("operand-may-be-missing", "$.context.%s may be missing, and then this cannot be calculated; give it a value in context_default, or list it in required of the context_schema", names[1])
	default:
		l.say("operand-may-be-missing", "$.payload.%s may be missing, and then this cannot be calculated; list it in required of the payload_schema", names[1])
	}
}

// mayBeMissing reports whether a path reads a member of the context or of the payload that nothing says is there.
func (l *linter) mayBeMissing(e *pathExpr) bool {
	names := e.members()
	if len(names) < 2 {
		return false
	}
	switch names[0] {
	case "context":
		return !l.context.there[names[1]]
	case "payload":
		return !slices.Contains(schemaRequired(l.draft.payload(l.at).schema), names[1])
	}
	return false
}

// several looks at an operand of a comparison.
func (l *linter) several(e *pathExpr) {
	many := slices.IndexFunc(e.steps, pathStep.many)
	if e.op != "path" || many < 0 || slices.ContainsFunc(e.steps, isFilter) {
		return
	}
	if slices.ContainsFunc(e.steps[many:], func(s pathStep) bool { return s.kind == "." }) {
		l.say("wildcard-comparison", "is unknown as soon as one item lacks the member, although another one matches; write exists(… ? (@.member …))")
	}
}

// isTime reports whether a path selects a time.
func (l *linter) isTime(e *pathExpr) bool {
	names := e.members()
	if len(names) == 0 || len(names) != len(e.steps) {
		return false
	}
	var schema any
	switch names[0] {
	case "now":
		return true
	case "instance":
		return len(names) == 2 && strings.HasSuffix(names[1], "_at")
	case "payload":
		schema = l.draft.payload(l.at).schema
	case "context":
		schema = l.context.schema
	}
	for _, name := range names[1:] {
		m, _ := schema.(map[string]any)
		properties, _ := m["properties"].(map[string]any)
		schema = properties[name]
	}
	m, _ := schema.(map[string]any)
	return m["format"] == "date-time"
}

// isPlain reports whether a schema names the members of a value by properties and items alone.
func isPlain(schema map[string]any) bool {
	for _, keyword := range []string{"$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "patternProperties", "dependentSchemas", "prefixItems"} {
		if _, given := schema[keyword]; given {
			return false
		}
	}
	return true
}

// isClosed reports whether a schema allows no members but its properties.
func isClosed(schema any) bool {
	_, closed := closedProperties(schema)
	return closed
}

// schemaProperties are the names of the properties of a schema.
func schemaProperties(schema any) []string {
	m, _ := schema.(map[string]any)
	properties, _ := m["properties"].(map[string]any)
	return slices.Sorted(maps.Keys(properties))
}

// schemaRequired are the names that a schema requires.
func schemaRequired(schema any) (names []string) {
	m, _ := schema.(map[string]any)
	list, _ := m["required"].([]any)
	for _, name := range list {
		if text, ok := name.(string); ok {
			names = append(names, text)
		}
	}
	return names
}

// maxHints bounds the names that a wrong one is compared with, so that a large definition does not take long.
const maxHints = 1000

// didYouMean returns a hint at the name that is the most like a wrong one, behind a prefix; empty if none is.
func didYouMean(prefix, wrong string, names []string) string {
	if len(names) > maxHints || len(wrong) > maxStateName {
		return ""
	}
	best := Nearest(wrong, slices.Sorted(slices.Values(names)))
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s%s?)", prefix, best)
}
