package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
)

type subscriptionCommand struct {
	Create       subscriptionCreate `cmd:"" help:"Subscribe an endpoint, and show the secret that signs, this once."`
	List         subscriptionList   `cmd:"" help:"List subscriptions, the newest first."`
	Get          subscriptionGet    `cmd:"" help:"Show a subscription and the health of its endpoint."`
	Enable       subscriptionEnable `cmd:"" help:"Enable a subscription that was disabled, or end a rest."`
	Delete       subscriptionDelete `cmd:"" help:"End a subscription."`
	RotateSecret subscriptionRotate `cmd:"" name:"rotate-secret" help:"Replace the secret; for a day the old one signs too."`
	Test         subscriptionTest   `cmd:"" help:"Send a test, which tells of no step."`
}

// subscriptionAnswer is a subscription as the API shows it; raw is all of it.
type subscriptionAnswer struct {
	raw    json.RawMessage
	ID     string `json:"id"`
	URL    string `json:"url"`
	Filter struct {
		Workflows    []string `json:"workflows"`
		Events       []string `json:"events"`
		States       []string `json:"states"`
		TerminalOnly bool     `json:"terminal_only"`
	} `json:"filter"`
	Secret         string  `json:"secret"`
	DisabledReason *string `json:"disabled_reason"`
	Failures       int     `json:"failures"`
	RestsUntil     *string `json:"rests_until"`
}

// UnmarshalJSON keeps the whole answer, for --json.
func (s *subscriptionAnswer) UnmarshalJSON(data []byte) error {
	type plain subscriptionAnswer
	s.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(s))
}

// MarshalJSON gives it back.
func (s subscriptionAnswer) MarshalJSON() ([]byte, error) { return s.raw, nil }

// filter words what it is told of.
func (s *subscriptionAnswer) filter() string {
	var parts []string
	for _, part := range []struct {
		name  string
		names []string
	}{{"workflows", s.Filter.Workflows}, {"events", s.Filter.Events}, {"states", s.Filter.States}} {
		if len(part.names) > 0 {
			parts = append(parts, part.name+" "+strings.Join(part.names, ", "))
		}
	}
	if s.Filter.TerminalOnly {
		parts = append(parts, "final states")
	}
	if len(parts) == 0 {
		return "every step"
	}
	return strings.Join(parts, "; ")
}

// health words how its endpoint is.
func (s *subscriptionAnswer) health() string {
	switch {
	case s.DisabledReason != nil:
		return "disabled: " + *s.DisabledReason
	case s.RestsUntil != nil:
		return fmt.Sprintf("%d failures, rests until %s", s.Failures, *s.RestsUntil)
	case s.Failures > 0:
		return fmt.Sprintf("%d failures", s.Failures)
	}
	return "well"
}

// showSubscription sends a request whose answer is a subscription, and prints that.
func (f *clientFlags) showSubscription(c *console, request call) error {
	var s subscriptionAnswer
	if _, err := f.do(c, request, &s); err != nil {
		return err
	}
	if f.JSON {
		return c.printJSON(s)
	}
	c.printf("id      %s\nurl     %s\nfilter  %s\nhealth  %s\n", s.ID, s.URL, s.filter(), s.health())
	if s.Secret != "" {
		c.printf("secret  %s\n", s.Secret)
	}
	return nil
}

type subscriptionCreate struct {
	clientFlags
	URL          string   `arg:"" name:"url" help:"The endpoint."`
	Workflow     []string `help:"Tell of this workflow only; may be repeated."`
	Event        []string `help:"Tell of steps made by this event only; may be repeated."`
	State        []string `help:"Tell of steps into this state only; may be repeated."`
	TerminalOnly bool     `help:"Tell of steps into final states only."`
	Secret       string   `env:"PAWL_SUBSCRIPTION_SECRET" help:"whsec_ and 24 to 64 bytes in base64; one is made by default."`
}

func (s *subscriptionCreate) Run(c *console) error {
	filter, err := json.Marshal(map[string]any{
		"workflows": append([]string{}, s.Workflow...), "events": append([]string{}, s.Event...),
		"states": append([]string{}, s.State...), "terminal_only": s.TerminalOnly,
	})
	if err != nil {
		return err
	}
	return s.showSubscription(c, call{
		method: http.MethodPost, path: "/v1/subscriptions",
		body: members(map[string]string{"url": s.URL, "secret": s.Secret}, "filter", filter),
	})
}

type subscriptionList struct {
	clientFlags
	Limit int `default:"50" help:"How many at most; 0 for all."`
}

func (s *subscriptionList) Run(c *console) error {
	items, err := pages[subscriptionAnswer](c, &s.clientFlags, "/v1/subscriptions", url.Values{}, s.Limit)
	if err != nil {
		return err
	}
	if s.JSON {
		return c.printJSON(items)
	}
	table := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "ID\tURL\tFILTER\tHEALTH")
	for _, item := range items {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", item.ID, item.URL, item.filter(), item.health())
	}
	return table.Flush()
}

// oneSubscription are the arguments of commands about a single subscription.
type oneSubscription struct {
	clientFlags
	ID string `arg:"" help:"The subscription."`
}

func (o *oneSubscription) path() string { return "/v1/subscriptions/" + url.PathEscape(o.ID) }

type subscriptionGet struct{ oneSubscription }

func (s *subscriptionGet) Run(c *console) error {
	return s.showSubscription(c, call{method: http.MethodGet, path: s.path()})
}

type subscriptionEnable struct{ oneSubscription }

func (s *subscriptionEnable) Run(c *console) error {
	return s.showSubscription(c, call{method: http.MethodPatch, path: s.path(), body: map[string]any{"disabled": false}})
}

type subscriptionDelete struct{ oneSubscription }

func (s *subscriptionDelete) Run(c *console) error {
	_, err := s.do(c, call{method: http.MethodDelete, path: s.path()}, nil)
	return err
}

type subscriptionRotate struct {
	oneSubscription
	Secret string `env:"PAWL_SUBSCRIPTION_SECRET" help:"whsec_ and 24 to 64 bytes in base64; one is made by default."`
}

func (s *subscriptionRotate) Run(c *console) error {
	return s.showSubscription(c, call{
		method: http.MethodPost, path: s.path() + "/rotate-secret", body: members(map[string]string{"secret": s.Secret}, "", nil),
	})
}

type subscriptionTest struct{ oneSubscription }

func (s *subscriptionTest) Run(c *console) error {
	return s.showDelivery(c, call{method: http.MethodPost, path: s.path() + "/test"})
}
