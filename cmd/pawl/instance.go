package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// instanceCommand is `pawl instance`.
type instanceCommand struct {
	Create         instanceCreate         `cmd:"" help:"Create an instance."`
	Get            instanceGet            `cmd:"" help:"Show an instance as it is, or as it was at a time or version."`
	List           instanceList           `cmd:"" help:"List instances, newest first unless --sort is given."`
	Fire           instanceFire           `cmd:"" help:"Fire an event at an instance."`
	FireByKey      instanceFireByKey      `cmd:"" help:"Fire an event at the instance that holds a business key."`
	History        instanceHistory        `cmd:"" help:"Show the steps of an instance."`
	Trace          instanceTrace          `cmd:"" help:"Print the life of an instance as OTLP in JSON, for a viewer of traces."`
	Timeline       instanceTimeline       `cmd:"" help:"Show what happened to an instance: its steps, tasks with their attempts, compensations and deliveries."`
	Diagnose       instanceDiagnose       `cmd:"" help:"Show why an instance does not move: what is wrong, what it accepts and waits for, and what was tried."`
	Forecast       instanceForecast       `cmd:"" help:"Show when an instance will probably have ended, which step comes next, and how likely each outcome is."`
	Compensation   instanceCompensation   `cmd:"" help:"List, retry and skip what undoes the steps of an instance."`
	Override       instanceOverride       `cmd:"" help:"Move an instance although its definition does not allow it now."`
	Cancel         instanceCancel         `cmd:"" help:"Move an instance to the state that its definition names for cancels."`
	Watch          instanceWatch          `cmd:"" help:"Print the steps of an instance as they are made, until it is final."`
	AcceptedEvents instanceAcceptedEvents `cmd:"" help:"Show the events that an instance accepts."`
	Migrate        instanceMigrate        `cmd:"" help:"Migrate live instances to another version of their workflow."`
	Archive        instanceArchive        `cmd:"" help:"Write final instances with their history as JSON lines, and purge them if --purge is given."`
}

// instanceAnswer is an instance as the API shows it. raw is the whole answer.
type instanceAnswer struct {
	raw       json.RawMessage
	ID        string          `json:"id"`
	Workflow  string          `json:"workflow"`
	State     string          `json:"state"`
	Status    string          `json:"status"`
	Version   int64           `json:"version"`
	Context   json.RawMessage `json:"context"`
	Actions   []string        `json:"actions"`
	ChangedAt string          `json:"state_changed_at"`

	BusinessKey   *string `json:"business_key"`
	CorrelationID *string `json:"correlation_id"`
	NextTimeout   *struct {
		Event     string  `json:"event"`
		DueAt     string  `json:"due_at"`
		LastError *string `json:"last_error"`
	} `json:"next_timeout"`
}

// UnmarshalJSON keeps the whole answer for --json.
func (i *instanceAnswer) UnmarshalJSON(data []byte) error {
	type plain instanceAnswer
	i.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(i))
}

// MarshalJSON returns the whole answer.
func (i instanceAnswer) MarshalJSON() ([]byte, error) { return i.raw, nil }

// printInstance prints an instance, as lines or as JSON.
func (c *console) printInstance(i instanceAnswer, asJSON bool) error {
	if asJSON {
		return c.printJSON(i)
	}
	lines := [][2]string{
		{"id", i.ID},
		{"workflow", i.Workflow},
		{"state", fmt.Sprintf("%s (%s)", i.State, i.Status)},
		{"since", i.ChangedAt},
		{"version", strconv.FormatInt(i.Version, 10)},
		{"context", string(i.Context)},
		{"accepts", strings.Join(i.Actions, ", ")},
	}
	if i.BusinessKey != nil {
		lines = append(lines, [2]string{"business key", *i.BusinessKey})
	}
	if i.CorrelationID != nil {
		lines = append(lines, [2]string{"correlation id", *i.CorrelationID})
	}
	if n := i.NextTimeout; n != nil {
		lines = append(lines, [2]string{"deadline", n.DueAt + " by " + n.Event})
		if n.LastError != nil {
			lines = append(lines, [2]string{"fails", *n.LastError})
		}
	}
	return c.printLines(lines)
}

// showInstance sends a request and prints the instance that is its answer.
func (f *clientFlags) showInstance(c *console, request call) error {
	var answer instanceAnswer
	if _, err := f.do(c, request, &answer); err != nil {
		return err
	}
	return c.printInstance(answer, f.JSON)
}

// instanceCreate creates an instance of a workflow.
type instanceCreate struct {
	clientFlags
	Workflow       string `arg:"" help:"Name of the workflow."`
	Context        string `placeholder:"JSON|@FILE|-" help:"Context: JSON or YAML, @FILE to read it from a file, or - for standard input."`
	BusinessKey    string `help:"Name that is unique among the instances of the workflow."`
	CorrelationID  string `help:"Id of the work that the instance belongs to."`
	ExpiresIn      string `help:"Lifetime, such as 15m, instead of the one that the workflow declares."`
	CallbackURL    string `name:"callback-url" help:"URL of a webhook that is sent when the instance ends."`
	CallbackSecret string `env:"PAWL_CALLBACK_SECRET" help:"Secret that signs the callback; by default the one of the deployment."`
	Reason         string `help:"Reason, for the history."`
	Key            string `help:"Idempotency key; by default a new one."`
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

// members returns a request body of those members that are not empty: texts, and one JSON document.
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

// oneInstance has the arguments of a command for one instance.
type oneInstance struct {
	clientFlags
	ID string `arg:"" help:"Id of the instance."`
}

func (o *oneInstance) path() string { return "/v1/instances/" + url.PathEscape(o.ID) }

// instanceGet prints an instance as it is, or as it was.
type instanceGet struct {
	oneInstance
	At        moment `help:"Show it as it was at a time, such as 2026-03-01T09:30:00Z."`
	AtVersion int64  `help:"Show it as it was at a version."`
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

// instanceList prints the instances that its flags choose.
type instanceList struct {
	clientFlags
	Workflow      []string `help:"Only instances of this workflow, or of one of several."`
	State         []string `help:"Only instances in this state, or in one of several; a compound state stands for all within."`
	Status        []string `help:"Only instances with this status, or one of several: active, completed, failed, cancelled, expired."`
	BusinessKey   string   `help:"Only the instance with this business key."`
	CorrelationID string   `help:"Only instances with this correlation id."`
	CreatedAfter  moment   `help:"Only instances created after a time, such as 2026-03-01T09:30:00Z."`
	CreatedBefore moment   `help:"Only instances created before a time."`
	StuckFor      string   `help:"Only active instances that have been in their state for at least this time, such as 1h."`
	Where         []string `sep:"none" placeholder:"NAME=VALUE" help:"Only instances of the workflow whose search attribute has such a value: NAME, one of = < <= > >=, and VALUE, such as 'price>=400' or 'flight=LH*'. Each must hold."`
	Timer         string   `enum:",failing" default:"" help:"With failing, only instances with a deadline whose step cannot be made."`
	Sort          string   `enum:",created_at,-created_at,state_changed_at,-state_changed_at" default:"" help:"Order: created_at or state_changed_at, with a - for the latest first, such as --sort=-created_at, which is the default."`
	Limit         int      `default:"50" help:"Largest number of instances; 0 for all."`
}

func (i *instanceList) Run(c *console) error {
	query := parameters(map[string]string{
		"business_key": i.BusinessKey, "correlation_id": i.CorrelationID, "created_after": string(i.CreatedAfter),
		"created_before": string(i.CreatedBefore), "stuck_for": i.StuckFor, "timer": i.Timer, "sort": i.Sort,
	})
	for name, values := range map[string][]string{"workflow": i.Workflow, "state": i.State, "status": i.Status, "where": i.Where} {
		for _, value := range values {
			query.Add(name, value)
		}
	}
	items, err := pages[instanceAnswer](c, &i.clientFlags, "/v1/instances", query, i.Limit)
	if err != nil {
		return err
	}
	if i.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("ID\tWORKFLOW\tSTATE\tSTATUS\tVERSION\tSINCE")
	for _, item := range items {
		table.row("%s\t%s\t%s\t%s\t%d\t%s",
			item.ID, item.Workflow, item.State, item.Status, item.Version, item.ChangedAt)
	}
	return table.Flush()
}

// pages reads a list page by page, up to a limit of items; 0 reads all.
func pages[T any](c *console, f *clientFlags, path string, query url.Values, limit int) ([]T, error) {
	items, told := []T{}, false
	for {
		page := struct {
			Items      []T     `json:"items"`
			NextCursor *string `json:"next_cursor"`
			Incomplete bool    `json:"incomplete"`
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
		if page.Incomplete && !told {
			told = true
			c.complain("some instances may be missing until they are indexed: see pawl workflow reindex\n")
		}
		if page.NextCursor == nil || limit > 0 && len(items) >= limit {
			return items, nil
		}
		query.Set("cursor", *page.NextCursor)
	}
}

// fireFlags are the arguments that every command has that fires an event.
type fireFlags struct {
	Event   string `arg:"" help:"Name of the event."`
	Payload string `placeholder:"JSON|@FILE|-" help:"Payload: JSON or YAML, @FILE to read it from a file, or - for standard input."`
	IfMatch int64  `help:"Fire only if the instance is at this version."`
	Reason  string `help:"Reason, for the history."`
	Key     string `help:"Idempotency key; by default a new one."`
	DryRun  bool   `help:"Show the instance as it would be, and change nothing."`
}

// call returns the request that fires the event at what the path names. start is the argument that says what to create;
// empty for nothing.
func (f *fireFlags) call(c *console, path, start string) (call, error) {
	payload, err := c.input(f.Payload)
	if err != nil {
		return call{}, err
	}
	body := members(map[string]string{"reason": f.Reason}, "payload", payload)
	if start != "" {
		if body["start"], err = c.input(start); err != nil {
			return call{}, err
		}
	}
	return newCommand(path+"/actions/"+url.PathEscape(f.Event), f.Key, body, f.IfMatch, f.DryRun), nil
}

// newCommand returns the request of a command for an instance, which must be at the version ifMatch unless that is 0.
func newCommand(path, key string, body any, version int64, dryRun bool) call {
	request := call{method: http.MethodPost, path: path, key: key, body: body, ifMatch: ifMatch(version)}
	if dryRun {
		request.query = url.Values{"dry_run": {"true"}}
	}
	return request
}

// instanceFire fires an event at an instance.
type instanceFire struct {
	oneInstance
	fireFlags
}

func (i *instanceFire) Run(c *console) error {
	request, err := i.call(c, i.path(), "")
	if err != nil {
		return err
	}
	return i.showInstance(c, request)
}

// instanceFireByKey fires an event at the instance that holds a business key.
type instanceFireByKey struct {
	clientFlags
	Workflow    string `arg:"" help:"Name of the workflow."`
	BusinessKey string `arg:"" help:"Business key of the instance."`
	fireFlags
	Start string `placeholder:"JSON|@FILE|-" help:"Create the instance if none holds the key, such as {context: {price: 1}}: JSON or YAML, @FILE or -."`
}

func (i *instanceFireByKey) Run(c *console) error {
	request, err := i.call(c, "/v1/workflows/"+url.PathEscape(i.Workflow)+"/keys/"+url.PathEscape(i.BusinessKey), i.Start)
	if err != nil {
		return err
	}
	return i.showInstance(c, request)
}
