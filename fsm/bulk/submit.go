package bulk

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
)

// A Submission asks for a bulk.
type Submission struct {
	Tenant string // Default fsm.DefaultTenant.
	Action Action
	// Filter chooses the instances, as it chooses those of a list; its Sort does not matter. Nil if IDs names them.
	// Archive chooses only final ones of them, Migrate only active ones of other versions, and Retry only those whose
	// timer fails.
	Filter *fsm.Filter
	// Text is the filter as it was sent, to be shown.
	Text json.RawMessage
	// IDs names the instances, at most MaxIDs. One that the tenant does not have is refused.
	IDs []uuid.UUID
	// Params are the parameters of the action, a JSON object; nil for none.
	Params json.RawMessage
	// Rate is the largest number of instances a second. 0: no limit.
	Rate int
	// DryRun decides the action for each instance, and changes none.
	DryRun bool
	// Confirm must be the workflow of the filter, or * if it does not name exactly one, if the filter may choose more
	// than MaxUnconfirmed instances or is empty. A dry run needs none.
	Confirm string
	// Within are the workflows whose instances the submitter may reach; nil for all. The filter must name some of these,
	// and no others; of the ids, instances of other workflows do not exist for the submitter.
	Within []string
	// Key is the idempotency key. A repeated one answers with the bulk that it made, for as long as that exists.
	Key string
	// Origin has a Reason, which is not blank, for Override and Cancel.
	fsm.Origin
}

// params are what the actions take.
type (
	fireParams struct {
		Event   string          `json:"event"`
		Payload json.RawMessage `json:"payload,omitempty"`
	}
	overrideParams struct {
		To           string          `json:"to,omitempty"`
		ContextPatch json.RawMessage `json:"context_patch,omitempty"`
		Event        string          `json:"event,omitempty"`
		Payload      json.RawMessage `json:"payload,omitempty"`
		Bypass       string          `json:"bypass,omitempty"`
		Target       string          `json:"target,omitempty"`
	}
	migrateParams struct {
		To       int               `json:"to"`
		From     int               `json:"from,omitempty"`
		StateMap map[string]string `json:"state_map,omitempty"`
	}
	replayParams struct {
		Status         string `json:"status,omitempty"`
		SubscriptionID string `json:"subscription_id,omitempty"`
	}
)

// choice is a pawl_private.bulk_filter.
type choice struct {
	RangeStatuses  []string     `json:"range_statuses,omitempty"`
	RangeWorkflows []string     `json:"range_workflows,omitempty"`
	Statuses       []fsm.Status `json:"statuses,omitempty"`
	Workflows      []string     `json:"workflows,omitempty"`
	States         []string     `json:"states,omitempty"`
	BusinessKey    string       `json:"business_key,omitempty"`
	CorrelationID  string       `json:"correlation_id,omitempty"`
	CreatedAfter   string       `json:"created_after,omitempty"`
	CreatedBefore  string       `json:"created_before,omitempty"`
	StuckFor       string       `json:"stuck_for,omitempty"`
	Failing        bool         `json:"failing,omitempty"`
	FromVersion    int          `json:"from_version,omitempty"`
	NotVersion     int          `json:"not_version,omitempty"`
}

// Submit makes a bulk, which a Worker carries out.
//
// Kinds: Malformed with the faults of the filter and the parameters; KeyInvalid; KeyReuse; WorkflowNotFound if a
// migration leads to a version that does not exist; ConfirmationRequired; Unavailable.
func (s *Service) Submit(ctx context.Context, c Submission) (Bulk, error) {
	if err := cmp.Or(fsm.CheckOrigin(&c.Tenant, &c.Origin), fsm.CheckKey(c.Key), c.check()); err != nil {
		return Bulk{}, err
	}
	if len(c.Params) == 0 {
		c.Params = json.RawMessage(`{}`)
	}
	p := queries.BulkCreateParams{
		Tenant: c.Tenant, Action: string(c.Action), Filter: c.Text, Ids: c.IDs, Params: c.Params, Reason: c.Reason,
		DryRun: c.DryRun, Key: c.Key, Actor: c.Actor, Verified: s.fsm.Verified(), CorrelationID: c.CorrelationID,
		Traceparent: c.Traceparent, Caller: fsm.CallerJSON(ctx),
	}
	if c.Rate > 0 {
		rate := int32(c.Rate)
		p.Rate = &rate
	}
	filter, err := s.checkParams(ctx, c)
	if err != nil {
		return Bulk{}, err
	}
	if c.Filter == nil && c.Within != nil {
		filter.Workflows = c.Within
		if p.Choice, err = json.Marshal(filter); err != nil {
			return Bulk{}, fsm.AsError(err)
		}
	}
	if c.Filter != nil {
		if err := CheckWithin(c.Filter.Workflows, c.Within); err != nil {
			return Bulk{}, err
		}
		if p.Choice, p.Counted, err = s.choose(ctx, c, filter); err != nil {
			return Bulk{}, err
		}
	}
	if p.ID, err = uuid.NewV7(); err != nil {
		return Bulk{}, fsm.AsError(err)
	}
	var row queries.BulkReport
	err = s.db.ChangeAll(ctx, "", func(q *queries.Queries) (err error) {
		row, err = q.BulkCreate(ctx, p)
		return err
	})
	if err != nil {
		return Bulk{}, fsm.AsError(err)
	}
	b := bulkOf(row)
	b.Replayed = b.ID != p.ID
	return b, nil
}

// check refuses what is wrong whatever the database holds.
func (c *Submission) check() error {
	switch {
	case !slices.Contains(Actions(), c.Action):
		return fsm.MalformedAt("/action", "must be one of "+quoted(Actions()))
	case c.Filter == nil && c.IDs == nil:
		return fsm.Errorf(fsm.Malformed, "a bulk needs a filter or ids: it must say which instances it is for; {} is a filter that chooses all")
	case c.Filter != nil && c.IDs != nil:
		return fsm.MalformedAt("/ids", "do not go with a filter; send one of them")
	case c.IDs != nil && len(c.IDs) == 0:
		return fsm.MalformedAt("/ids", "must have at least one id")
	case len(c.IDs) > MaxIDs:
		return fsm.MalformedAt("/ids", fmt.Sprintf("must have at most %d ids", MaxIDs))
	case c.Rate < 0 || c.Rate > MaxRate:
		return fsm.MalformedAt("/rate", fmt.Sprintf("must be from 1 to %d instances a second", MaxRate))
	case c.Action == Override || c.Action == Cancel:
		return fsm.CheckReason(c.Reason)
	}
	return nil
}

// params decodes the parameters strictly.
func (c *Submission) params(into any) error {
	if err := fsm.Decode(c.Params, into); err != nil {
		return fsm.Within("/params", err)
	}
	return nil
}

// checkParams checks the parameters, and returns what they add to the filter.
func (s *Service) checkParams(ctx context.Context, c Submission) (choice, error) {
	switch c.Action {
	case Fire:
		var p fireParams
		if err := c.params(&p); err != nil {
			return choice{}, err
		}
		return choice{}, s.checkEvent(ctx, c, p)
	case Override:
		var p overrideParams
		if err := c.params(&p); err != nil {
			return choice{}, err
		}
		command := fsm.OverrideCommand{
			To: p.To, ContextPatch: p.ContextPatch, Event: p.Event, Payload: p.Payload, Bypass: p.Bypass, Target: p.Target,
		}
		if err := command.Check(); err != nil {
			return choice{}, fsm.Within("/params", err)
		}
		if p.Event != "" {
			return choice{}, s.checkEvent(ctx, c, fireParams{p.Event, p.Payload})
		}
	case Migrate:
		var p migrateParams
		if err := c.params(&p); err != nil {
			return choice{}, err
		}
		return choice{FromVersion: p.From, NotVersion: p.To}, s.checkMigrate(ctx, c, p)
	case Replay:
		var p replayParams
		if err := c.params(&p); err != nil {
			return choice{}, err
		}
		if p.Status != "" && p.Status != "dead" && p.Status != "delivered" {
			return choice{}, fsm.MalformedAt("/params/status", "must be dead or delivered")
		}
		if p.SubscriptionID != "" {
			if err := uuid.Validate(p.SubscriptionID); err != nil {
				return choice{}, fsm.MalformedAt("/params/subscription_id", "must be a UUID")
			}
		}
	default:
		if err := c.params(&struct{}{}); err != nil {
			return choice{}, err
		}
	}
	return choice{Failing: c.Action == Retry && c.Filter != nil}, nil
}

// maxEvents is how many names of events are compared.
const maxEvents = 10_000

// checkEvent refuses an event that no version of the workflows has, and a payload that is no object.
func (s *Service) checkEvent(ctx context.Context, c Submission, p fireParams) error {
	if p.Event == "" {
		return fsm.MalformedAt("/params/event", "must name the event to fire")
	}
	if err := fsm.CheckTexts(fsm.Text{Pointer: "/params/event", Value: p.Event, Max: 255}); err != nil {
		return err
	}
	if p.Payload != nil {
		if err := definition.CheckObject(p.Payload); err != nil {
			return fsm.Within("/params/payload", err)
		}
	}
	workflows := []string{}
	if c.Filter != nil {
		workflows = append(workflows, c.Filter.Workflows...)
	}
	var known []string
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) (err error) {
		known, err = q.ListEvents(ctx, queries.ListEventsParams{Workflows: workflows, RowLimit: maxEvents})
		return err
	})
	if err != nil {
		return err
	}
	for _, event := range known {
		if prefix, pattern := strings.CutSuffix(event, "*"); event == p.Event || pattern && strings.HasPrefix(p.Event, prefix) {
			return nil
		}
	}
	if len(known) == maxEvents {
		return nil
	}
	detail := fmt.Sprintf("there is no event %q", p.Event)
	if near := definition.Nearest(p.Event, known); near != "" {
		detail += fmt.Sprintf("; did you mean %q?", near)
	}
	return fsm.MalformedAt("/params/event", detail)
}

// checkMigrate refuses a migration to a version that does not exist, and a map that does not fit the versions if both
// are known.
func (s *Service) checkMigrate(ctx context.Context, c Submission, p migrateParams) error {
	const most = 1<<31 - 1
	switch {
	case p.To < 1 || p.To > most:
		return fsm.MalformedAt("/params/to", "must be the version that the instances get")
	case p.From < 0 || p.From > most || p.From == p.To:
		return fsm.MalformedAt("/params/from", "must be another version than to")
	case c.Filter == nil:
		return nil
	case len(c.Filter.Workflows) != 1:
		return fsm.MalformedAt("/filter/workflow", "must name one workflow, since versions are those of a workflow")
	}
	workflow := c.Filter.Workflows[0]
	states := json.RawMessage(`{}`)
	if p.StateMap != nil {
		var err error
		if states, err = json.Marshal(p.StateMap); err != nil {
			return fsm.AsError(err)
		}
	}
	return s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		_, err := q.GetWorkflowVersion(ctx, queries.GetWorkflowVersionParams{Name: workflow, Version: int32(p.To)})
		if err != nil || p.From == 0 {
			return fsm.IfNoRows(err, fsm.WorkflowNotFound, fmt.Sprintf("there is no workflow %q, or it has no version %d", workflow, p.To))
		}
		_, err = q.MigrateInstances(ctx, queries.MigrateInstancesParams{
			Tenant: c.Tenant, Workflow: workflow, FromVersion: int32(p.From), ToVersion: int32(p.To), StateMap: states,
			RowLimit: 1, Actor: c.Actor, DryRun: true, Ids: []uuid.UUID{},
		})
		if err != nil {
			return fsm.Within("/params", err)
		}
		return nil
	})
}

// choose looks up what the filter's names stand for, and refuses a filter that must be confirmed. It returns the filter as
// pawl.bulk_create takes it, and how many index entries it has.
func (s *Service) choose(ctx context.Context, c Submission, extra choice) (text json.RawMessage, counted int64, err error) {
	f := *c.Filter
	empty := isEmpty(f)
	if len(f.Statuses) == 0 {
		f.Statuses = []fsm.Status{fsm.Active, fsm.Completed, fsm.Failed, fsm.Cancelled, fsm.Expired}
	}
	onlyActive := c.Action == Migrate || c.Action == Retry || f.StuckFor > 0 || f.FailingTimer
	f.Statuses = slices.DeleteFunc(slices.Clone(f.Statuses), func(status fsm.Status) bool {
		return onlyActive && status != fsm.Active || c.Action == Archive && status == fsm.Active
	})
	if len(f.Statuses) == 0 {
		return nil, 0, fsm.MalformedAt("/filter/status", fmt.Sprintf("leaves no instance that %s is for", c.Action))
	}
	f.FailingTimer = f.FailingTimer || extra.Failing
	chosen, err := s.fsm.Choose(ctx, c.Tenant, f, MaxUnconfirmed+1)
	if err != nil {
		e := fsm.AsError(err)
		for i, fault := range e.Faults {
			if fault.Parameter != "" {
				e.Faults[i] = fsm.Fault{Pointer: "/filter/" + fault.Parameter, Detail: fault.Detail}
			}
		}
		return nil, 0, e
	}
	if err := c.confirmed(empty, chosen); err != nil {
		return nil, 0, err
	}
	extra.RangeStatuses, extra.RangeWorkflows = append([]string{}, chosen.RangeStatuses...), chosen.RangeWorkflows
	extra.Statuses, extra.Workflows, extra.States = chosen.Statuses, chosen.Workflows, chosen.Paths
	extra.BusinessKey, extra.CorrelationID = f.BusinessKey, f.CorrelationID
	if !f.CreatedAfter.IsZero() {
		extra.CreatedAfter = fsm.FormatTime(f.CreatedAfter)
	}
	if !f.CreatedBefore.IsZero() {
		extra.CreatedBefore = fsm.FormatTime(f.CreatedBefore)
	}
	if f.StuckFor > 0 {
		extra.StuckFor = fmt.Sprintf("%d microseconds", f.StuckFor.Microseconds())
	}
	extra.Failing = f.FailingTimer
	text, err = json.Marshal(extra)
	return text, chosen.Counted, err
}

// CheckWithin returns a Forbidden error if somebody who may reach the instances of some workflows (nil for all) has no right
// to those of others, or to those of all, for which workflows is empty.
func CheckWithin(workflows, within []string) error {
	if within == nil || fsm.AreWithin(workflows, within) {
		return nil
	}
	return fsm.Errorf(fsm.Forbidden, "you are bound to workflows: the filter must name some of %s, and no others", strings.Join(within, ", "))
}

// isEmpty reports whether a filter chooses all instances.
func isEmpty(f fsm.Filter) bool {
	return len(f.Workflows)+len(f.States)+len(f.Statuses) == 0 && f.BusinessKey == "" && f.CorrelationID == "" &&
		f.CreatedAfter.IsZero() && f.CreatedBefore.IsZero() && f.StuckFor == 0 && !f.FailingTimer
}

// confirmed refuses a filter that may choose many instances and is not confirmed, and one that is confirmed wrongly.
func (c *Submission) confirmed(empty bool, chosen fsm.Choice) error {
	want := "*"
	if len(chosen.Workflows) == 1 {
		want = chosen.Workflows[0]
	}
	switch {
	case c.Confirm == want || c.DryRun && c.Confirm == "":
		return nil
	case c.Confirm != "":
		return fsm.Errorf(fsm.ConfirmationRequired, `"confirm" is %q, but this filter is confirmed by %q`, c.Confirm, want)
	case empty:
		return fsm.Errorf(fsm.ConfirmationRequired, `the filter is empty and chooses every instance: send "confirm": %q if that is meant`, want)
	case chosen.Counted > MaxUnconfirmed:
		return fsm.Errorf(fsm.ConfirmationRequired,
			`the filter may choose more than %d instances: send "confirm": %q if that is meant, or "dry_run": true to see`, MaxUnconfirmed, want)
	}
	return nil
}
