package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
)

// bulkCommand is `pawl bulk`.
type bulkCommand struct {
	Fire     bulkFire     `cmd:"" help:"Fire an event at many instances."`
	Override bulkOverride `cmd:"" help:"Move many instances to a state, or along a transition whose guard is passed over."`
	Cancel   bulkCancel   `cmd:"" help:"Move many instances to the state that their definition names for cancels."`
	Retry    bulkRetry    `cmd:"" help:"Make failing timers due at once; with --bulk, try again what a bulk was refused or failed with."`
	Migrate  bulkMigrate  `cmd:"" help:"Migrate many active instances to another version of their workflow."`
	Replay   bulkReplay   `cmd:"" help:"Make deliveries of many instances pending again."`
	Archive  bulkArchive  `cmd:"" help:"Remove many final instances, without writing them to a file."`
	List     bulkList     `cmd:"" help:"List bulks, newest first."`
	Show     bulkShow     `cmd:"" help:"Show how far a bulk has come; with --follow until it ends."`
	Items    bulkItems    `cmd:"" help:"Show what has become of each instance."`
	Pause    bulkPause    `cmd:"" help:"Pause a bulk."`
	Resume   bulkResume   `cmd:"" help:"Let a paused bulk go on."`
	Stop     bulkStop     `cmd:"" help:"End a bulk for good."`
}

// bulkAnswer is a bulk as the API shows it. raw is the whole answer.
type bulkAnswer struct {
	raw       json.RawMessage
	ID        string   `json:"id"`
	Action    string   `json:"action"`
	Status    string   `json:"status"`
	DryRun    bool     `json:"dry_run"`
	Actor     string   `json:"actor"`
	CreatedAt string   `json:"created_at"`
	Total     int64    `json:"estimated_total"`
	Open      int64    `json:"open"`
	Done      int64    `json:"done"`
	Applied   int64    `json:"applied"`
	Refused   int64    `json:"refused"`
	Skipped   int64    `json:"skipped"`
	Failed    int64    `json:"failed"`
	PerSecond *float64 `json:"per_second"`
	ETA       *string  `json:"eta"`
}

// UnmarshalJSON keeps the whole answer for --json.
func (b *bulkAnswer) UnmarshalJSON(data []byte) error {
	type plain bulkAnswer
	b.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(b))
}

// MarshalJSON returns the whole answer.
func (b bulkAnswer) MarshalJSON() ([]byte, error) { return b.raw, nil }

// ended reports whether nothing more will happen.
func (b *bulkAnswer) ended() bool { return b.Status == "done" || b.Status == "stopped" }

// counts words what has become of the instances.
func (b *bulkAnswer) counts() string {
	applied := "applied"
	if b.DryRun {
		applied = "would be applied"
	}
	text := fmt.Sprintf("%d %s", b.Applied, applied)
	for _, c := range []struct {
		n    int64
		name string
	}{{b.Refused, "refused"}, {b.Skipped, "skipped"}, {b.Failed, "failed"}, {b.Open, "open"}} {
		if c.n > 0 {
			text += fmt.Sprintf(", %d %s", c.n, c.name)
		}
	}
	return text
}

// progress words how far it has come, in a line.
func (b *bulkAnswer) progress() string {
	text := fmt.Sprintf("%s: %d of about %d, %s", b.Status, b.Done, max(b.Total, b.Done), b.counts())
	if b.PerSecond != nil {
		text += fmt.Sprintf(", %.0f/s", *b.PerSecond)
	}
	if b.ETA != nil {
		text += ", done at about " + *b.ETA
	}
	return text
}

// bar draws the progress, 30 characters wide.
func (b *bulkAnswer) bar() string {
	const width = 30
	done := 0
	if total := max(b.Total, b.Done); total > 0 {
		done = int(b.Done * width / total)
	}
	return "[" + strings.Repeat("#", done) + strings.Repeat(".", width-done) + "]"
}

// print prints a bulk, as lines or as JSON.
func (b *bulkAnswer) print(c *console, asJSON bool) error {
	if asJSON {
		return c.printJSON(b)
	}
	c.printf("id      %s\naction  %s\nby      %s\nsince   %s\n%s\n", b.ID, b.Action, b.Actor, b.CreatedAt, b.progress())
	return nil
}

func bulkPath(id string) string { return "/v1/bulk/" + url.PathEscape(id) }

// followEvery and lineEvery are how often the progress is read, and how often a line of it is printed where there is no
// terminal.
const (
	followEvery = 500 * time.Millisecond
	lineEvery   = 10 * time.Second
)

// follow shows the progress of a bulk until it ends: a bar on a terminal, else a line now and then. It is an error if
// instances were refused or failed. When the context ends, the bulk goes on.
func (f *clientFlags) follow(c *console, b bulkAnswer) error {
	file, ok := c.err.to.(*os.File)
	drawn := ok && isatty.IsTerminal(file.Fd())
	var printed time.Time
	for !b.ended() {
		switch {
		case drawn:
			clearLine(c)
			c.complain("%s %s", b.bar(), b.progress())
		case time.Since(printed) >= lineEvery:
			c.complain("%s\n", b.progress())
			printed = time.Now()
		}
		select {
		case <-c.Done():
			if drawn {
				c.complain("\n")
			}
			return fmt.Errorf("the bulk goes on without this command: pawl bulk show %s, or pawl bulk stop %s", b.ID, b.ID)
		case <-time.After(followEvery):
		}
		if _, err := f.do(c, call{method: http.MethodGet, path: bulkPath(b.ID)}, &b); err != nil {
			return err
		}
	}
	if drawn {
		clearLine(c)
	}
	if f.JSON {
		if err := c.printJSON(b); err != nil {
			return err
		}
	} else {
		c.printf("%s: %s\n", b.Status, b.counts())
	}
	if b.Refused+b.Failed > 0 || b.Status == "stopped" {
		c.complain("see: pawl bulk items %s\n", b.ID)
		return errReported
	}
	return nil
}

// clearLine clears the terminal's line, which the writer for words of others does not let through.
func clearLine(c *console) { _, _ = io.WriteString(c.err.to, "\r\x1b[K") }

// bulkFlags choose the instances of a bulk, and say how it is carried out.
type bulkFlags struct {
	clientFlags
	Workflow      []string `help:"Only instances of this workflow; may be repeated."`
	State         []string `help:"Only instances in this state; may be repeated."`
	Status        []string `help:"Only instances with this status: active, completed, failed, cancelled or expired; may be repeated."`
	BusinessKey   string   `help:"Only instances with this business key."`
	CorrelationID string   `help:"Only instances with this correlation id."`
	CreatedAfter  moment   `help:"Only instances created after a time, such as 2026-03-01T09:30:00Z."`
	CreatedBefore moment   `help:"Only instances created before a time."`
	StuckFor      string   `help:"Only active instances that have been in their state for at least this duration, such as 15m."`
	Timer         string   `enum:",failing" default:"" help:"With failing, only instances with a deadline whose step cannot be made."`
	All           bool     `help:"All instances, instead of a filter."`
	ID            []string `help:"This instance, instead of a filter; may be repeated."`
	IDs           string   `name:"ids" placeholder:"FILE|-" help:"Instances whose ids are in a file, one a line, or on standard input."`
	Reason        string   `help:"Reason, for the history and the audit; override and cancel need one."`
	Rate          int      `help:"Largest number of instances a second; by default there is no limit."`
	DryRun        bool     `help:"Decide for each instance, and change none."`
	Confirm       string   `help:"Name of the workflow, or * if the filter does not name exactly one: needed for more than 1,000 instances."`
	Key           string   `help:"Idempotency key; by default a new one."`
	Detach        bool     `help:"Print the bulk and do not wait for its end."`
}

// filter returns the flags that choose instances, as the API takes them.
func (b *bulkFlags) filter() map[string]any {
	filter := members(map[string]string{
		"business_key": b.BusinessKey, "correlation_id": b.CorrelationID, "created_after": string(b.CreatedAfter),
		"created_before": string(b.CreatedBefore), "stuck_for": b.StuckFor,
		"timer": b.Timer,
	}, "", nil)
	for name, list := range map[string][]string{"workflow": b.Workflow, "state": b.State, "status": b.Status} {
		if len(list) > 0 {
			filter[name] = list
		}
	}
	return filter
}

// named returns the ids that the flags name.
func (b *bulkFlags) named(c *console) ([]string, error) {
	if b.IDs == "" {
		return b.ID, nil
	}
	var text []byte
	var err error
	if b.IDs == "-" {
		text, err = io.ReadAll(c.in)
	} else {
		text, err = os.ReadFile(b.IDs)
	}
	if err != nil {
		return nil, err
	}
	ids := append(b.ID, strings.Fields(string(text))...)
	if len(ids) == 0 {
		return nil, errors.New("--ids: there is no id")
	}
	return ids, nil
}

// submit submits a bulk, and follows it to its end unless it is to be detached.
func (b *bulkFlags) submit(c *console, action string, params map[string]any) error {
	body := members(map[string]string{"action": action, "reason": b.Reason, "confirm": b.Confirm}, "", nil)
	ids, err := b.named(c)
	if err != nil {
		return err
	}
	filter := b.filter()
	switch {
	case len(ids) > 0 && len(filter) == 0 && !b.All:
		body["ids"] = ids
	case len(ids) > 0:
		return errors.New("--id and --ids do not go with a filter")
	case b.All && len(filter) > 0:
		return errors.New("--all does not go with a filter")
	case len(filter) == 0 && !b.All:
		return errors.New("which instances? Give a filter such as --workflow, or --id, or --all")
	default:
		body["filter"] = filter
	}
	if len(params) > 0 {
		body["params"] = params
	}
	if b.Rate != 0 {
		body["rate"] = b.Rate
	}
	if b.DryRun {
		body["dry_run"] = true
	}
	var answer bulkAnswer
	if _, err := b.do(c, call{method: http.MethodPost, path: "/v1/bulk", body: body, key: b.Key}, &answer); err != nil {
		return err
	}
	if b.Detach {
		return answer.print(c, b.JSON)
	}
	if !b.JSON {
		c.printf("bulk %s\n", answer.ID)
	}
	return b.follow(c, answer)
}

// bulkFire fires an event at many instances.
type bulkFire struct {
	bulkFlags
	Event   string `arg:"" help:"Name of the event."`
	Payload string `placeholder:"JSON|@FILE|-" help:"Payload: JSON or YAML, @FILE to read it from a file, or - for standard input."`
}

func (b *bulkFire) Run(c *console) error {
	payload, err := c.input(b.Payload)
	if err != nil {
		return err
	}
	return b.submit(c, "fire", members(map[string]string{"event": b.Event}, "payload", payload))
}

// bulkOverride overrides the definition for many instances.
type bulkOverride struct {
	bulkFlags
	overrideFlags
}

func (b *bulkOverride) Run(c *console) error {
	params, err := b.members(c)
	if err != nil {
		return err
	}
	return b.submit(c, "override", params)
}

// bulkCancel cancels many instances.
type bulkCancel struct{ bulkFlags }

func (b *bulkCancel) Run(c *console) error { return b.submit(c, "cancel", nil) }

// bulkRetry makes failing timers due, or deals once more with what a bulk has left.
type bulkRetry struct {
	bulkFlags
	Bulk string `help:"Id of a bulk: try its instances again that were refused or failed."`
}

func (b *bulkRetry) Run(c *console) error {
	if b.Bulk == "" {
		return b.submit(c, "retry", nil)
	}
	var answer bulkAnswer
	if _, err := b.do(c, call{method: http.MethodPost, path: bulkPath(b.Bulk) + "/retry"}, &answer); err != nil {
		return err
	}
	if b.Detach {
		return answer.print(c, b.JSON)
	}
	return b.follow(c, answer)
}

// bulkMigrate migrates many instances.
type bulkMigrate struct {
	bulkFlags
	To   int               `required:"" help:"Version that the instances get."`
	From int               `help:"Only instances of this version."`
	Map  map[string]string `placeholder:"STATE=STATE" help:"New state of the instances in a state, if it is not the state of the same name; may be repeated."`
}

func (b *bulkMigrate) Run(c *console) error {
	params := map[string]any{"to": b.To}
	if b.From != 0 {
		params["from"] = b.From
	}
	if len(b.Map) > 0 {
		params["state_map"] = b.Map
	}
	return b.submit(c, "migrate", params)
}

// bulkReplay replays deliveries of many instances.
type bulkReplay struct {
	bulkFlags
	Subscription string `help:"Only deliveries of this subscription."`
	Delivered    bool   `help:"Deliveries that were successful, instead of the dead letters."`
}

func (b *bulkReplay) Run(c *console) error {
	params := members(map[string]string{"subscription_id": b.Subscription}, "", nil)
	if b.Delivered {
		params["status"] = "delivered"
	}
	return b.submit(c, "replay", params)
}

// bulkArchive removes many final instances.
type bulkArchive struct{ bulkFlags }

func (b *bulkArchive) Run(c *console) error { return b.submit(c, "archive", nil) }

// bulkList prints bulks.
type bulkList struct {
	clientFlags
	Status string `help:"Only bulks with this status: queued, running, paused, stopped or done."`
	Limit  int    `default:"50" help:"Largest number of bulks; 0 for all."`
}

func (b *bulkList) Run(c *console) error {
	items, err := pages[bulkAnswer](c, &b.clientFlags, "/v1/bulk", parameters(map[string]string{"status": b.Status}), b.Limit)
	if err != nil {
		return err
	}
	if b.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("ID\tACTION\tSTATUS\tDONE\tAPPLIED\tREFUSED\tSKIPPED\tFAILED\tBY")
	for _, i := range items {
		table.row("%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s",
			i.ID, i.Action, i.Status, i.Done, i.Applied, i.Refused, i.Skipped, i.Failed, i.Actor)
	}
	return table.Flush()
}

// oneBulk has the arguments of a command for one bulk.
type oneBulk struct {
	clientFlags
	ID string `arg:"" help:"Id of the bulk."`
}

// control changes the status of the bulk and prints it.
func (o *oneBulk) control(c *console, control string) error {
	var answer bulkAnswer
	if _, err := o.do(c, call{method: http.MethodPost, path: bulkPath(o.ID) + "/" + control}, &answer); err != nil {
		return err
	}
	return answer.print(c, o.JSON)
}

// bulkShow prints a bulk.
type bulkShow struct {
	oneBulk
	Follow bool `help:"Show the progress until it ends."`
}

func (b *bulkShow) Run(c *console) error {
	var answer bulkAnswer
	if _, err := b.do(c, call{method: http.MethodGet, path: bulkPath(b.ID)}, &answer); err != nil {
		return err
	}
	if b.Follow {
		return b.follow(c, answer)
	}
	return answer.print(c, b.JSON)
}

// bulkItems prints what has become of the instances.
type bulkItems struct {
	oneBulk
	Outcome string `help:"Only instances with this outcome: applied, refused, skipped or failed."`
	Limit   int    `default:"50" help:"Largest number of instances; 0 for all."`
}

func (b *bulkItems) Run(c *console) error {
	type item struct {
		InstanceID string          `json:"instance_id"`
		Outcome    string          `json:"outcome"`
		Problem    json.RawMessage `json:"problem"`
		At         string          `json:"at"`
	}
	query := parameters(map[string]string{"outcome": b.Outcome})
	items, err := pages[item](c, &b.clientFlags, bulkPath(b.ID)+"/items", query, b.Limit)
	if err != nil {
		return err
	}
	if b.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("INSTANCE\tOUTCOME\tWHY\tDETAIL")
	for _, i := range items {
		p := struct{ Code, Detail string }{"-", "-"}
		if err := json.Unmarshal(i.Problem, &p); err != nil {
			return err
		}
		table.row("%s\t%s\t%s\t%s", i.InstanceID, i.Outcome, p.Code, p.Detail)
	}
	return table.Flush()
}

// bulkPause, bulkResume and bulkStop change the status of a bulk.
type (
	bulkPause  struct{ oneBulk }
	bulkResume struct{ oneBulk }
	bulkStop   struct{ oneBulk }
)

func (b *bulkPause) Run(c *console) error  { return b.control(c, "pause") }
func (b *bulkResume) Run(c *console) error { return b.control(c, "resume") }
func (b *bulkStop) Run(c *console) error   { return b.control(c, "stop") }
