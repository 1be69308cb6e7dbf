package api

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
)

// A TraceDocument is the life of an instance as one trace, in the JSON of OTLP: ids are hexadecimal, and numbers of 64
// bits are strings (opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding).
type TraceDocument struct {
	ResourceSpans [1]ResourceSpans `json:"resourceSpans"`
}

// ResourceSpans are the spans of one service.
type ResourceSpans struct {
	Resource   Resource      `json:"resource"`
	ScopeSpans [1]ScopeSpans `json:"scopeSpans"`
}

// A Resource says which service it is.
type Resource struct {
	Attributes []Attribute `json:"attributes"`
}

// ScopeSpans are the spans of one library.
type ScopeSpans struct {
	Scope struct {
		Name string `json:"name"`
	} `json:"scope"`
	Spans []Span `json:"spans"`
}

// A Span is one span. Without EndTime it has not ended.
type Span struct {
	TraceID      string      `json:"traceId"`
	SpanID       string      `json:"spanId"`
	ParentSpanID string      `json:"parentSpanId,omitempty"`
	Name         string      `json:"name"`
	Kind         int         `json:"kind"` // 1: internal.
	StartTime    string      `json:"startTimeUnixNano"`
	EndTime      string      `json:"endTimeUnixNano,omitempty"`
	Attributes   []Attribute `json:"attributes,omitempty"`
	Links        []SpanLink  `json:"links,omitempty"`
	Status       *SpanStatus `json:"status,omitempty"`
}

// A SpanLink leads to a span of another trace.
type SpanLink struct {
	TraceID string `json:"traceId"`
	SpanID  string `json:"spanId"`
}

// A SpanStatus says that a span has failed: its code is 2.
type SpanStatus struct {
	Code    int    `json:"code"`
	Message string `json:"message,omitempty"`
}

// An Attribute is a name with a text or a number.
type Attribute struct {
	Key   string         `json:"key"`
	Value AttributeValue `json:"value"`
}

// An AttributeValue has one member.
type AttributeValue struct {
	StringValue *string `json:"stringValue,omitempty"`
	IntValue    *string `json:"intValue,omitempty"`
	BoolValue   *bool   `json:"boolValue,omitempty"`
}

func textAttribute(key, value string) Attribute {
	return Attribute{key, AttributeValue{StringValue: &value}}
}

func intAttribute(key string, value int64) Attribute {
	text := strconv.FormatInt(value, 10)
	return Attribute{key, AttributeValue{IntValue: &text}}
}

// A TracedInstance is what a trace is made from.
type TracedInstance struct {
	Tenant   string
	Instance fsm.Instance
	Items    []TimelineItem
	// Traceparents are those of the steps, by version.
	Traceparents map[int64]string
	// Truncated: there are more items.
	Truncated bool
}

// TraceOf returns the life of an instance as a trace. Its root lasts from the creation to the last step, if the instance is
// final. A step's span lasts until the next step: it is the time in the state that was entered.
func TraceOf(t TracedInstance) TraceDocument {
	i := t.Instance
	b := traceBuilder{trace: strings.ReplaceAll(i.ID.String(), "-", ""), id: i.ID.String()}
	final := i.Status != fsm.Active
	root := b.span("", "0", i.Workflow, i.CreatedAt)
	root.Attributes = []Attribute{
		textAttribute("pawl.tenant", t.Tenant), textAttribute("pawl.instance", i.ID.String()), textAttribute("pawl.workflow", i.Workflow),
		intAttribute("pawl.workflow_version", int64(i.WorkflowVersion)), textAttribute("pawl.state", i.State), textAttribute("pawl.status", string(i.Status)),
	}
	if i.Status == fsm.Failed {
		root.Status = &SpanStatus{Code: 2, Message: i.State}
	}
	if t.Truncated {
		truncated := true
		root.Attributes = append(root.Attributes, Attribute{"pawl.truncated", AttributeValue{BoolValue: &truncated}})
	}
	spans := []Span{root}
	last := -1 // The place of the last step.
	for _, item := range t.Items {
		at := time.Time(item.At)
		var s Span
		switch item.Kind {
		case "step":
			if last >= 0 {
				spans[last].EndTime = nano(at)
			}
			last = len(spans)
			s = b.span(root.SpanID, strconv.FormatInt(*item.Version, 10), value(item.To), at)
			s.Attributes = []Attribute{intAttribute("pawl.version", *item.Version)}
			if item.Step != nil {
				s.Attributes = append(s.Attributes, textAttribute("pawl.step", string(*item.Step)))
			}
			s.Attributes = append(s.Attributes, textsOf("pawl.event", item.Event, "pawl.from", item.From, "pawl.actor", item.Actor)...)
			if parts := strings.Split(t.Traceparents[*item.Version], "-"); len(parts) >= 4 {
				s.Links = []SpanLink{{TraceID: parts[1], SpanID: parts[2]}}
			}
		case "task":
			name := "task " + value(item.Name)
			if value(item.Compensation) {
				name = "compensation of " + value(item.Name)
			}
			s = b.child(item, "task "+value(item.TaskID), name, b.id+" "+version(item))
		case "attempt":
			s = b.child(item, fmt.Sprintf("attempt %s %d", value(item.TaskID), value(item.Attempt)), fmt.Sprintf("attempt %d", value(item.Attempt)),
				b.id+" task "+value(item.TaskID))
		case "compensation":
			s = b.child(item, "compensation "+version(item)+" "+value(item.Name), "compensation of "+value(item.Name)+" registered", b.id+" "+version(item))
			s.EndTime = s.StartTime // It was registered then; what carries it out is a task.
		default:
			s = b.child(item, "delivery "+value(item.DeliveryID), "delivery", b.id+" "+version(item))
		}
		if item.Kind != "step" && item.Status != nil {
			s.Attributes = append(s.Attributes, textAttribute("pawl.status", *item.Status))
			answer := ""
			if code := value(item.HTTPStatus); code > 0 {
				s.Attributes = append(s.Attributes, intAttribute("http.response.status_code", int64(code)))
				answer = strconv.Itoa(int(code))
			}
			switch status := *item.Status; {
			case slices.Contains([]string{"error", "unknown", "dead", "failed", "expired"}, status), item.Kind == "attempt" && answer >= "400":
				s.Status = &SpanStatus{Code: 2, Message: cmp.Or(value(item.Failure), answer, status)}
			}
		}
		spans = append(spans, s)
	}
	if final && !t.Truncated && last >= 0 {
		spans[last].EndTime, spans[0].EndTime = spans[last].StartTime, spans[last].StartTime
	}
	var document TraceDocument
	document.ResourceSpans[0].Resource.Attributes = []Attribute{textAttribute("service.name", "pawl")}
	scope := &document.ResourceSpans[0].ScopeSpans[0]
	scope.Scope.Name, scope.Spans = "pawl", spans
	return document
}

// A traceBuilder makes the spans of one trace.
type traceBuilder struct{ trace, id string }

// digest is the id of a span: the first 8 bytes of the SHA-256 of the instance's id and of what the span stands for.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// span returns a span of the instance.
func (b traceBuilder) span(parent, what, name string, at time.Time) Span {
	return Span{TraceID: b.trace, SpanID: digest(b.id + " " + what), ParentSpanID: parent, Name: name, Kind: 1, StartTime: nano(at)}
}

// child returns the span of something that a step has caused.
func (b traceBuilder) child(item TimelineItem, what, name, parent string) Span {
	s := b.span(digest(parent), what, name, time.Time(item.At))
	if item.EndedAt != nil {
		s.EndTime = nano(time.Time(*item.EndedAt))
	}
	s.Attributes = textsOf("pawl.task", item.TaskID, "pawl.delivery", item.DeliveryID, "pawl.subscription", item.SubscriptionID, "pawl.worker", item.Worker)
	return s
}

func version(item TimelineItem) string { return strconv.FormatInt(value(item.Version), 10) }

func nano(t time.Time) string { return strconv.FormatInt(t.UnixNano(), 10) }

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// textsOf returns attributes for pairs of a name and a text; those without a text are left out.
func textsOf(pairs ...any) (list []Attribute) {
	for i := 0; i < len(pairs); i += 2 {
		if text, _ := pairs[i+1].(*string); text != nil {
			list = append(list, textAttribute(pairs[i].(string), *text))
		}
	}
	return list
}
