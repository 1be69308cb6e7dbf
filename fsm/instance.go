package fsm

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

// DefaultTenant is the tenant of whoever names none.
const DefaultTenant = "default"

// Instance is one running process, as it is or as it was at one of its versions.
type Instance struct {
	ID              uuid.UUID
	Workflow        string
	WorkflowVersion int
	State           string
	Status          Status
	// Version starts at 1 and rises by exactly 1 with each step.
	Version int64
	// Context is a JSON object.
	Context json.RawMessage
	// BusinessKey and CorrelationID are nil if the instance has none.
	BusinessKey, CorrelationID *string
	// Actions are the events that the state accepts, sorted.
	Actions                   []string
	CreatedAt, StateChangedAt time.Time
	// ExpiresAt is nil if the instance lives for ever.
	ExpiresAt *time.Time
	// Error is a JSON object that says what went wrong, or nil.
	Error json.RawMessage
}

func instanceOf(i queries.Instance, actions []string) Instance {
	return Instance{
		ID: i.ID, Workflow: i.Workflow, WorkflowVersion: int(i.WorkflowVersion), State: i.State,
		Status: Status(i.Status), Version: i.Version, Context: i.Context, BusinessKey: i.BusinessKey,
		CorrelationID: i.CorrelationID, Actions: actions, CreatedAt: i.CreatedAt, StateChangedAt: i.StateChangedAt,
		ExpiresAt: i.ExpiresAt, Error: i.Error,
	}
}

// Step is one row of an instance's history, with what it left behind.
type Step struct {
	Version         int64
	WorkflowVersion int
	// Kind is created, transition, timeout, expired, forced or migrated.
	Kind string
	// Event and From are nil for a creation.
	Event, From *string
	To          string
	Status      Status
	Context     json.RawMessage
	Payload     json.RawMessage // Nil if there was none.
	Actor       string
	// Reason, Key, CorrelationID and Traceparent are the command's, nil if it had none.
	Reason, Key, CorrelationID, Traceparent *string
	At                                      time.Time
}

func stepOf(h queries.History) Step {
	return Step{
		Version: h.Version, WorkflowVersion: int(h.WorkflowVersion), Kind: h.Kind, Event: h.Event, From: h.FromState,
		To: h.ToState, Status: Status(h.Status), Context: h.Context, Payload: h.Payload, Actor: h.Actor,
		Reason: h.Reason, Key: h.Key, CorrelationID: h.CorrelationID, Traceparent: h.Traceparent, At: h.At,
	}
}

// Action is an event that an instance accepts in its present state.
type Action struct {
	Event string
	// PayloadSchema is nil if any payload will do.
	PayloadSchema json.RawMessage
	// Targets are those of its candidates, in order.
	Targets []string
	// GuardHolds says whether an empty payload would be taken; nil if that was not asked
	// or if a guard raises.
	GuardHolds *bool
}

// Origin says who gives a command and on whose behalf. None of it is part of the
// request's fingerprint.
type Origin struct {
	// Actor is the subject that acts. Default "anonymous".
	Actor string
	// Reason is at most 1,000 characters.
	Reason string
	// CorrelationID ties the command to work elsewhere; up to 255 characters.
	CorrelationID string
	// Traceparent is a W3C trace context.
	Traceparent string
}

// A Command is a CreateCommand or a FireCommand.
type Command interface {
	identity() (kind, tenant, key string)
}

func (c CreateCommand) identity() (kind, tenant, key string) { return "create", c.Tenant, c.Key }
func (c FireCommand) identity() (kind, tenant, key string)   { return "fire", c.Tenant, c.Key }

// CreateCommand asks for a new instance of the latest version of a workflow.
type CreateCommand struct {
	Tenant   string // Default DefaultTenant.
	Workflow string
	// Context is a JSON object; nil means an empty one.
	Context json.RawMessage
	// Key makes a retry harmless. Empty: a random one, "auto:" and a UUID, which guards only
	// against the retries that the service makes itself.
	Key string
	// BusinessKey is unique among the workflow's instances; up to 255 characters.
	BusinessKey string
	// CorrelationID is the instance's own; the Origin's stands in if it is empty.
	CorrelationID string
	// ExpiresIn overrides the workflow's ttl; 0 leaves it.
	ExpiresIn time.Duration
	// CallbackURL, if not empty, is sent the last step of the instance, once it is final.
	CallbackURL string
	// CallbackSecret signs it: "whsec_" and 24 to 64 bytes in base64. Without it the deployment's
	// does.
	CallbackSecret string
	Origin
}

// FireCommand asks an instance to take the transition of an event.
type FireCommand struct {
	Tenant string // Default DefaultTenant.
	ID     uuid.UUID
	Event  string
	// Payload is a JSON object; nil means an empty one.
	Payload json.RawMessage
	// Key makes a retry harmless; see CreateCommand.Key.
	Key string
	// Expect says at which versions the instance may be.
	Expect Expect
	Origin
}

// Expect is a precondition on an instance's version. Its zero value is none.
type Expect struct{ literal string }

// ExpectAny is met by every version; it says only that the caller knows what it does.
func ExpectAny() Expect { return Expect{"*"} }

// ExpectVersion is met by any of the versions, and without one by none.
func ExpectVersion(versions ...int64) Expect {
	list := make([]string, len(versions))
	for i, v := range versions {
		list[i] = fmt.Sprint(v)
	}
	return Expect{"{" + strings.Join(list, ",") + "}"}
}

// String writes the versions as ETags.
func (e Expect) String() string {
	versions := strings.Trim(e.literal, "{}")
	if versions == "" || versions == "*" {
		return versions
	}
	return `"` + strings.ReplaceAll(versions, ",", `", "`) + `"`
}

// Result is what an applied command left behind.
type Result struct {
	Instance Instance
	// Replayed: the command had been applied before, under the same key.
	Replayed bool
}
