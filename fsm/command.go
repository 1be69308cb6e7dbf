package fsm

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// A Command is a CreateCommand, a FireCommand or a FireByKeyCommand.
type Command interface {
	// order returns the queue of the command, and its tenant, and names. Commands of different queues that have a name in
	// common must be carried out in their order.
	order() (queue, tenant string, names []string)
}

func (c CreateCommand) order() (queue, tenant string, names []string) {
	return "creates", c.Tenant, []string{nameOfKey(c.Key), nameOfHolder(c.Workflow, c.BusinessKey)}
}

func (c FireCommand) order() (queue, tenant string, names []string) {
	return "fires", c.Tenant, []string{nameOfKey(c.Key), "fire"}
}

// Whether a FireCommand is for the same instance is not known before the engine is called.
func (c FireByKeyCommand) order() (queue, tenant string, names []string) {
	return "fires by key", c.Tenant, []string{nameOfKey(c.Key), nameOfHolder(c.Workflow, c.BusinessKey), "fire"}
}

// nameOfKey and nameOfHolder are the names of what commands may have in common. They are empty if there is no key.
func nameOfKey(key string) string {
	if key == "" {
		return ""
	}
	return "key " + key
}

func nameOfHolder(workflow, businessKey string) string {
	if businessKey == "" {
		return ""
	}
	return "holder " + workflow + " " + businessKey
}

// Origin says who gives a command and on whose behalf. It is not part of the fingerprint that tells
// whether a key is used for the same request again.
type Origin struct {
	// Actor is the subject that acts; up to 255 characters. Default "anonymous".
	Actor string
	// Reason is up to 1,000 characters.
	Reason string
	// CorrelationID ties the command to work elsewhere: 1 to 255 visible ASCII characters, or empty.
	CorrelationID string
	// Traceparent is a W3C trace context (www.w3.org/TR/trace-context); up to 255 characters. With Config.Trace, history
	// has that of the command's own span instead, which is in the same trace.
	Traceparent string
	// TraceID is the id of the trace that a command without Traceparent begins: 32 hexadecimal digits. It matters only
	// with Config.Trace. Default: a new one.
	TraceID string
}

// CreateCommand asks for a new instance of the latest version of a workflow.
type CreateCommand struct {
	// Tenant whose instance it will be; up to 63 characters. Default DefaultTenant.
	Tenant string
	// Workflow is the name of the workflow.
	Workflow string
	// Context is a JSON object; nil means an empty one.
	Context json.RawMessage
	// Key is the idempotency key: 1 to 255 visible ASCII characters. Empty: the service makes one,
	// "auto:" and a UUID, which protects only the repetitions that the service makes itself.
	Key string
	// BusinessKey is unique among the workflow's instances; up to 255 characters.
	BusinessKey string
	// CorrelationID is the instance's own: 1 to 255 visible ASCII characters. Empty: the Origin's is taken.
	CorrelationID string
	// ExpiresIn replaces the workflow's ttl, up to definition.MaxDuration. 0 leaves it.
	ExpiresIn time.Duration
	// CallbackURL, if not empty, is sent the last step of the instance as a webhook.
	CallbackURL string
	// CallbackSecret signs the callback: "whsec_" and 24 to 64 bytes in base64. Empty: a secret
	// that is derived for the tenant from that of Config.Webhooks signs it.
	CallbackSecret string
	Origin
}

// FireCommand asks an instance to take the transition of an event.
type FireCommand struct {
	// Tenant whose instance it is; up to 63 characters. Default DefaultTenant.
	Tenant string
	// ID is that of the instance, and Event the name of the event.
	ID    uuid.UUID
	Event string
	// Payload is a JSON object; nil means an empty one.
	Payload json.RawMessage
	// Key is the idempotency key; see CreateCommand.Key.
	Key string
	// Expect says at which versions the instance may be. Default: at any, unless the workflow wants
	// every event to expect one.
	Expect Expect
	Origin
	// holder, if not nil, says which instance it is, and not ID.
	holder *holder
}

// FireByKeyCommand asks the instance that holds a business key to take the transition of an event: the one that
// was created with it or, if the workflow's keys are reusable, the active one.
type FireByKeyCommand struct {
	// Tenant whose instance it is; up to 63 characters. Default DefaultTenant.
	Tenant string
	// Workflow is the name of the workflow, and BusinessKey the key; 1 to 255 characters each.
	Workflow    string
	BusinessKey string
	// Event is the name of the event.
	Event string
	// Payload is a JSON object; nil means an empty one.
	Payload json.RawMessage
	// Start, if not nil, is the instance to create if none holds the key. It is created and the event fired at it, or
	// neither. An event that is refused then is not recorded for the Key.
	Start *Start
	// Key is the idempotency key; see CreateCommand.Key.
	Key string
	// Expect says at which versions the instance may be; see FireCommand.Expect. If the instance would be created, any
	// precondition fails, and none is required.
	Expect Expect
	Origin
}

// Start is an instance of the latest version of a workflow, to be created if there is none. Its members are as those
// of a CreateCommand.
type Start struct {
	Context        json.RawMessage
	CorrelationID  string
	ExpiresIn      time.Duration
	CallbackURL    string
	CallbackSecret string
}

// A holder is the instance that holds a business key.
type holder struct {
	workflow, businessKey string
	// start creates the instance if there is none; nil to create none.
	start *CreateCommand
	// checked is the checksum of the schema that the context of start was checked against; empty for none.
	checked string
	// created: the command created the instance.
	created bool
}

// fire is the command as one that fires at a holder.
func (c FireByKeyCommand) fire() FireCommand {
	h := &holder{workflow: c.Workflow, businessKey: c.BusinessKey}
	if s := c.Start; s != nil {
		h.start = &CreateCommand{
			Tenant: c.Tenant, Workflow: c.Workflow, Context: s.Context, BusinessKey: c.BusinessKey,
			CorrelationID: s.CorrelationID, ExpiresIn: s.ExpiresIn, CallbackURL: s.CallbackURL, CallbackSecret: s.CallbackSecret,
		}
	}
	return FireCommand{
		Tenant: c.Tenant, Event: c.Event, Payload: c.Payload, Key: c.Key, Expect: c.Expect, Origin: c.Origin, holder: h,
	}
}

// Result is what an applied command left behind.
type Result struct {
	// Instance as the command left it. It may have made further steps since.
	Instance Instance
	// Created: the command created the instance.
	Created bool
	// Replayed: the command had been applied before, under the same key.
	Replayed bool
	// Before, of a dry run, is the version that the instance still has; 0 if the instance would be created.
	Before int64
}

// A Reply is the answer to one of several commands: a result, or an error.
type Reply struct {
	Result
	// Err is nil if the command was applied, and else an *Error.
	Err error
}

// Expect is a precondition on an instance's version. Its zero value is no precondition.
type Expect struct {
	// parameter is the precondition as the engine's functions take it: "" for none, "*" for any
	// version, or an array of versions.
	parameter string
}

// ExpectAny is met by every version. It also satisfies a workflow that wants every event to expect a
// version.
func ExpectAny() Expect { return Expect{"*"} }

// ExpectVersion is met by any of the versions. Without versions it is met by none.
func ExpectVersion(versions ...int64) Expect {
	list := make([]string, len(versions))
	for i, v := range versions {
		list[i] = strconv.FormatInt(v, 10)
	}
	return Expect{"{" + strings.Join(list, ",") + "}"}
}

// Any reports whether the precondition is met by every version, as that of ExpectAny is.
func (e Expect) Any() bool { return e == ExpectAny() }

// Versions returns the versions that were given to ExpectVersion, and nil for any other precondition.
func (e Expect) Versions() []int64 {
	var versions []int64
	for text := range strings.SplitSeq(strings.Trim(e.parameter, "{}"), ",") {
		if v, err := strconv.ParseInt(text, 10, 64); err == nil {
			versions = append(versions, v)
		}
	}
	return versions
}

// Parameter returns the precondition as the functions of the database take it.
func (e Expect) Parameter() string { return e.parameter }

// Equal reports whether both are the same precondition.
func (e Expect) Equal(other Expect) bool { return e == other }

// IsVisible reports whether a text is 1 to max visible ASCII characters.
func IsVisible(text string, max int) bool {
	for i := range len(text) {
		if text[i] < '!' || text[i] > '~' {
			return false
		}
	}
	return text != "" && len(text) <= max
}

// CheckKey returns a KeyInvalid error unless the key is 1 to 255 visible ASCII characters that do not begin with
// "bulk:": history shows such keys for what a bulk has done.
func CheckKey(key string) error {
	if strings.HasPrefix(key, "bulk:") {
		return Errorf(KeyInvalid, "an idempotency key must not begin with bulk:, as what a bulk has done does")
	}
	if IsVisible(key, 255) {
		return nil
	}
	return Errorf(KeyInvalid, "an idempotency key must have 1 to 255 visible ASCII characters")
}

// Text is a text that a caller gave.
type Text struct {
	// Pointer is where it stands in the request, as a JSON Pointer; empty if it is not part of a document.
	Pointer string
	// Value is the text, and Max how many characters it may have.
	Value string
	Max   int
}

// CheckTexts returns a Malformed error for the first text that PostgreSQL cannot store or that is too
// long, and nil if there is none.
func CheckTexts(texts ...Text) error {
	for _, t := range texts {
		switch {
		case !IsText(t.Value):
			return MalformedAt(t.Pointer, "must be UTF-8 without NUL")
		case utf8.RuneCountInString(t.Value) > t.Max:
			return MalformedAt(t.Pointer, fmt.Sprintf("must have at most %d characters", t.Max))
		}
	}
	return nil
}

// IsText reports whether PostgreSQL can store a text: it is UTF-8, and has no NUL.
func IsText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// Decode reads one strict JSON document; see [definition.Decode]. The error is Malformed, with one
// fault.
func Decode(data []byte, into any) error {
	if err := definition.Decode(data, into); err != nil {
		return AsError(err)
	}
	return nil
}

// CheckOrigin fills in the defaults of a command's tenant and Origin. The error is Malformed if a text is
// too long, cannot be stored or cannot be passed on in a header.
func CheckOrigin(tenant *string, o *Origin) error {
	*tenant, o.Actor = cmp.Or(*tenant, DefaultTenant), cmp.Or(o.Actor, "anonymous")
	return cmp.Or(
		CheckTexts(Text{"", *tenant, 63}, Text{"", o.Actor, 255}, Text{"/reason", o.Reason, 1000}, Text{"", o.Traceparent, 255}),
		checkCorrelationID("", o.CorrelationID))
}

// checkCorrelationID returns a Malformed error unless the id can be passed on in a header.
func checkCorrelationID(pointer, id string) error {
	if id == "" || IsVisible(id, 255) {
		return nil
	}
	return MalformedAt(pointer, "must be 1 to 255 visible ASCII characters")
}

// normalise fills in defaults, and refuses what the database could not store.
func (c *CreateCommand) normalise() error {
	if err := normalise(&c.Tenant, c.Key, &c.Context, "/context", &c.Origin); err != nil {
		return err
	}
	err := cmp.Or(CheckTexts(Text{"/business_key", c.BusinessKey, 255}), checkCorrelationID("/correlation_id", c.CorrelationID))
	if err != nil {
		return err
	}
	if c.ExpiresIn < 0 || c.ExpiresIn > definition.MaxDuration {
		return MalformedAt("/expires_in", "must be positive and at most "+definition.FormatDuration(definition.MaxDuration))
	}
	return CheckTexts(Text{"", c.Workflow, 255})
}

// normalise fills in defaults, and refuses what the database could not store.
func (c *FireCommand) normalise() error {
	if err := normalise(&c.Tenant, c.Key, &c.Payload, "/payload", &c.Origin); err != nil {
		return err
	}
	err := CheckTexts(Text{"", c.Event, 255})
	if h := c.holder; h != nil && err == nil {
		err = h.normalise()
	}
	return err
}

// normalise fills in defaults, and refuses what the database could not store.
func (h *holder) normalise() error {
	if h.businessKey == "" {
		return Errorf(Malformed, "the business key must not be empty")
	}
	if err := CheckTexts(Text{"", h.workflow, 255}, Text{"", h.businessKey, 255}); err != nil || h.start == nil {
		return err
	}
	if err := h.start.normalise(); err != nil {
		return Within("/start", err)
	}
	return nil
}

// normalise does what both kinds of commands need. The document is the context or the payload, and stands
// at the pointer.
func normalise(tenant *string, key string, document *json.RawMessage, pointer string, o *Origin) error {
	if key != "" {
		if err := CheckKey(key); err != nil {
			return err
		}
	}
	if *document == nil {
		*document = emptyObject
	} else if err := definition.CheckObject(*document); err != nil {
		return Within(pointer, err)
	}
	return CheckOrigin(tenant, o)
}

var emptyObject = json.RawMessage(`{}`)

// keyOr returns the key. If it is empty, it returns a new one, which protects the service's own
// repetitions.
func keyOr(key string) string {
	if key == "" {
		return "auto:" + uuid.NewString()
	}
	return key
}
