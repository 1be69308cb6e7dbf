package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

type instanceCommand struct {
	Create  instanceCreate  `cmd:"" help:"Start an instance."`
	Get     instanceGet     `cmd:"" help:"Show an instance, as it is or as it was."`
	List    instanceList    `cmd:"" help:"List instances, the newest first."`
	Fire    instanceFire    `cmd:"" help:"Fire an event at an instance."`
	History instanceHistory `cmd:"" help:"Show the steps of an instance."`
	Watch   instanceWatch   `cmd:"" help:"Show the steps of an instance as they are made, until it is final."`
	Actions instanceActions `cmd:"" help:"Show the events that an instance accepts."`
	Archive instanceArchive `cmd:"" help:"Write final instances with their history as JSON lines, and remove them if wanted."`
}

// instanceAnswer is an instance as the API shows it; raw is all of it.
type instanceAnswer struct {
	raw         json.RawMessage
	ID          string          `json:"id"`
	Workflow    string          `json:"workflow"`
	State       string          `json:"state"`
	Status      string          `json:"status"`
	Version     int64           `json:"version"`
	Context     json.RawMessage `json:"context"`
	BusinessKey *string         `json:"business_key"`
	Actions     []string        `json:"actions"`
	ChangedAt   string          `json:"state_changed_at"`
}

// UnmarshalJSON keeps the whole answer, for --json.
func (i *instanceAnswer) UnmarshalJSON(data []byte) error {
	type plain instanceAnswer
	i.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(i))
}

// MarshalJSON gives it back.
func (i instanceAnswer) MarshalJSON() ([]byte, error) { return i.raw, nil }

func (c *console) printInstance(i instanceAnswer, asJSON bool) error {
	if asJSON {
		return c.printJSON(i)
	}
	c.printf("id       %s\nworkflow %s\nstate    %s (%s)\nversion  %d\ncontext  %s\naccepts  %s\n",
		i.ID, i.Workflow, i.State, i.Status, i.Version, i.Context, strings.Join(i.Actions, ", "))
	return nil
}

// showInstance sends a request whose answer is an instance, and prints that.
func (f *clientFlags) showInstance(c *console, request call) error {
	var answer instanceAnswer
	if _, err := f.do(c, request, &answer); err != nil {
		return err
	}
	return c.printInstance(answer, f.JSON)
}

type instanceCreate struct {
	clientFlags
	Workflow       string `arg:"" help:"The workflow."`
	Context        string `placeholder:"JSON|@FILE|-" help:"The context: JSON or YAML, a file of it, or standard input."`
	BusinessKey    string `help:"Unique name among the workflow's instances."`
	CorrelationID  string `help:"Id of the work that the instance belongs to."`
	ExpiresIn      string `help:"Lifetime, such as 15m, instead of the workflow's."`
	CallbackURL    string `name:"callback-url" help:"Where to send the last step to."`
	CallbackSecret string `env:"PAWL_CALLBACK_SECRET" help:"What signs that; the deployment's secret by default."`
	Reason         string `help:"Why, for history."`
	Key            string `help:"Idempotency key; a new one by default."`
}

func (i *instanceCreate) Run(c *console) error {
	context, err := c.input(i.Context)
	if err != nil {
		return err
	}
	return i.showInstance(c, call{
		method: http.MethodPost, path: "/v1/workflows/" + url.PathEscape(i.Workflow) + "/instances", key: i.Key,
		body: members(map[string]string{
			"business_key": i.BusinessKey, "correlation_id": i.CorrelationID, "expires_in": i.ExpiresIn, "reason": i.Reason,
			"callback_url": i.CallbackURL, "callback_secret": i.CallbackSecret,
		}, "context", context),
	})
}

// members is a body of those that are not empty.
func members(texts map[string]string, name string, document json.RawMessage) map[string]any {
	body := map[string]any{}
	for name, text := range texts {
		if text != "" {
			body[name] = text
		}
	}
	if document != nil {
		body[name] = document
	}
	return body
}

// oneInstance are the arguments of commands about a single instance.
type oneInstance struct {
	clientFlags
	ID string `arg:"" help:"The instance."`
}

func (o *oneInstance) path() string { return "/v1/instances/" + url.PathEscape(o.ID) }

type instanceGet struct {
	oneInstance
	At        moment `help:"As it was at a time, such as 2026-03-01T09:30:00Z."`
	AtVersion int64  `help:"As it was at a version."`
}

func (i *instanceGet) Run(c *console) error {
	query := url.Values{}
	if i.At != "" {
		query.Set("at", string(i.At))
	}
	if i.AtVersion != 0 {
		query.Set("version", strconv.FormatInt(i.AtVersion, 10))
	}
	return i.showInstance(c, call{method: http.MethodGet, path: i.path(), query: query})
}

type instanceList struct {
	clientFlags
	Workflow      string `help:"Of this workflow."`
	State         string `help:"In this state."`
	Status        string `help:"active, completed, failed, cancelled or expired."`
	BusinessKey   string `help:"With this business key."`
	CorrelationID string `help:"With this correlation id."`
	CreatedAfter  moment `help:"Created after a time, such as 2026-03-01T09:30:00Z."`
	CreatedBefore moment `help:"Created before a time."`
	StuckFor      string `help:"Active, and in their state for at least so long."`
	Limit         int    `default:"50" help:"How many at most; 0 for all."`
}

func (i *instanceList) Run(c *console) error {
	query := parameters(map[string]string{
		"workflow": i.Workflow, "state": i.State, "status": i.Status, "business_key": i.BusinessKey,
		"correlation_id": i.CorrelationID, "created_after": string(i.CreatedAfter), "created_before": string(i.CreatedBefore),
		"stuck_for": i.StuckFor,
	})
	items, err := pages[instanceAnswer](c, &i.clientFlags, "/v1/instances", query, i.Limit)
	if err != nil {
		return err
	}
	if i.JSON {
		return c.printJSON(items)
	}
	table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "ID\tWORKFLOW\tSTATE\tSTATUS\tVERSION\tSINCE")
	for _, item := range items {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\n",
			item.ID, item.Workflow, item.State, item.Status, item.Version, item.ChangedAt)
	}
	return table.Flush()
}

// pages reads a list, page after page, up to a limit; 0 reads all.
func pages[T any](c *console, f *clientFlags, path string, query url.Values, limit int) ([]T, error) {
	items := []T{}
	for {
		page := struct {
			Items      []T     `json:"items"`
			NextCursor *string `json:"next_cursor"`
		}{}
		size := 200
		if limit > 0 {
			size = min(size, limit-len(items))
		}
		query.Set("limit", strconv.Itoa(size))
		if _, err := f.do(c, call{method: http.MethodGet, path: path, query: query}, &page); err != nil {
			return items, err
		}
		items = append(items, page.Items...)
		if page.NextCursor == nil || limit > 0 && len(items) >= limit {
			return items, nil
		}
		query.Set("cursor", *page.NextCursor)
	}
}

type instanceFire struct {
	oneInstance
	Event   string `arg:"" help:"The event."`
	Payload string `placeholder:"JSON|@FILE|-" help:"The payload: JSON or YAML, a file of it, or standard input."`
	IfMatch int64  `help:"Only if the instance is at this version."`
	Reason  string `help:"Why, for history."`
	Key     string `help:"Idempotency key; a new one by default."`
	DryRun  bool   `help:"Show what would come of it, and change nothing."`
}

func (i *instanceFire) Run(c *console) error {
	payload, err := c.input(i.Payload)
	if err != nil {
		return err
	}
	request := call{
		method: http.MethodPost, path: i.path() + "/actions/" + url.PathEscape(i.Event), key: i.Key,
		body: members(map[string]string{"reason": i.Reason}, "payload", payload),
	}
	if i.IfMatch != 0 {
		request.ifMatch = fmt.Sprintf("%q", strconv.FormatInt(i.IfMatch, 10))
	}
	if i.DryRun {
		request.query = url.Values{"dry_run": {"true"}}
	}
	return i.showInstance(c, request)
}

// stepAnswer is a step of a history as the API shows it.
type stepAnswer struct {
	Version int64           `json:"version"`
	Kind    string          `json:"kind"`
	Event   *string         `json:"event"`
	From    *string         `json:"from"`
	To      string          `json:"to"`
	Actor   string          `json:"actor"`
	Reason  *string         `json:"reason"`
	Key     *string         `json:"key"`
	At      time.Time       `json:"at"`
	Context json.RawMessage `json:"context"`
	Payload json.RawMessage `json:"payload"`
}

type instanceHistory struct{ oneInstance }

func (i *instanceHistory) Run(c *console) error {
	if i.JSON {
		items, err := pages[json.RawMessage](c, &i.clientFlags, i.path()+"/history", url.Values{}, 0)
		if err != nil {
			return err
		}
		return c.printJSON(items)
	}
	items, err := pages[stepAnswer](c, &i.clientFlags, i.path()+"/history", url.Values{}, 0)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "VERSION\tAT\tKIND\tEVENT\tFROM\tTO\tACTOR\tREASON")
	for _, s := range items {
		_, _ = fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Version, s.At.Format(time.RFC3339Nano),
			s.Kind, text(s.Event), text(s.From), s.To, s.Actor, text(s.Reason))
	}
	return table.Flush()
}

type instanceActions struct {
	oneInstance
	Evaluate bool `help:"Say whether an empty payload would be taken."`
}

func (i *instanceActions) Run(c *console) error {
	var answer struct {
		Items []struct {
			Event         string          `json:"event"`
			Targets       []string        `json:"targets"`
			GuardHolds    *bool           `json:"guard_holds"`
			PayloadSchema json.RawMessage `json:"payload_schema"`
		} `json:"items"`
	}
	query := url.Values{}
	if i.Evaluate {
		query.Set("evaluate", "true")
	}
	if _, err := i.do(c, call{method: http.MethodGet, path: i.path() + "/actions", query: query}, &answer); err != nil {
		return err
	}
	if i.JSON {
		return c.printJSON(answer.Items)
	}
	table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "EVENT\tLEADS TO\tGUARD HOLDS\tPAYLOAD SCHEMA")
	for _, a := range answer.Items {
		holds := "-"
		if a.GuardHolds != nil {
			holds = strconv.FormatBool(*a.GuardHolds)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", a.Event, strings.Join(a.Targets, ", "), holds, a.PayloadSchema)
	}
	return table.Flush()
}
