package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// subscriptionCommand is `pawl subscription`.
type subscriptionCommand struct {
	Create       subscriptionCreate `cmd:"" help:"Subscribe an endpoint. The answer shows the secret that signs, this time only."`
	List         subscriptionList   `cmd:"" help:"List subscriptions, newest first."`
	Get          subscriptionGet    `cmd:"" help:"Show a subscription and the health of its endpoint."`
	Enable       subscriptionEnable `cmd:"" help:"Enable a disabled subscription, and close the circuit of its endpoint."`
	Delete       subscriptionDelete `cmd:"" help:"Delete a subscription."`
	RotateSecret subscriptionRotate `cmd:"" name:"rotate-secret" help:"Replace the secret; the old one signs too for 24 hours."`
	Test         subscriptionTest   `cmd:"" help:"Send a test message, which belongs to no step."`
}

// subscriptionAnswer is a subscription as the API shows it. raw is the whole answer.
type subscriptionAnswer struct {
	raw    json.RawMessage
	ID     string `json:"id"`
	URL    string `json:"url"`
	Filter struct {
		Workflows    []string `json:"workflows"`
		Events       []string `json:"events"`
		States       []string `json:"states"`
		TerminalOnly bool     `json:"terminal_only"`
		Types        []string `json:"types"`
	} `json:"filter"`
	Secret         string  `json:"secret"`
	DisabledReason *string `json:"disabled_reason"`
	Failures       int     `json:"failures"`
	RestsUntil     *string `json:"rests_until"`
	Finding        *string `json:"finding"`
}

// UnmarshalJSON keeps the whole answer for --json.
func (s *subscriptionAnswer) UnmarshalJSON(data []byte) error {
	type plain subscriptionAnswer
	s.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(s))
}

// MarshalJSON returns the whole answer.
func (s subscriptionAnswer) MarshalJSON() ([]byte, error) { return s.raw, nil }

// filter words the messages that the endpoint gets.
func (s *subscriptionAnswer) filter() string {
	var parts []string
	for _, part := range []struct {
		name  string
		names []string
	}{{"types", s.Filter.Types}, {"workflows", s.Filter.Workflows}, {"events", s.Filter.Events}, {"states", s.Filter.States}} {
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

// health words whether deliveries are sent to the endpoint.
func (s *subscriptionAnswer) health() string {
	if s.DisabledReason != nil {
		return "disabled: " + *s.DisabledReason
	}
	return health(s.Finding, s.RestsUntil, s.Failures)
}

// health words the state of a circuit.
func health(finding, restsUntil *string, failures int) string {
	switch {
	case finding != nil:
		return "resting: " + *finding
	case restsUntil != nil:
		return fmt.Sprintf("circuit open until %s, failures in a row: %d", *restsUntil, failures)
	case failures > 0:
		return fmt.Sprintf("circuit closed, failures in a row: %d", failures)
	}
	return "circuit closed"
}

// showSubscription sends a request and prints the subscription that is its answer.
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

// subscriptionCreate subscribes an endpoint to the messages that its flags choose.
type subscriptionCreate struct {
	clientFlags
	URL          string   `arg:"" name:"url" help:"URL of the endpoint."`
	Workflow     []string `help:"Only messages of this workflow; may be repeated."`
	Event        []string `help:"Only messages of steps that this event made; may be repeated."`
	State        []string `help:"Only messages of steps into this state; may be repeated."`
	TerminalOnly bool     `help:"Only messages of steps into final states."`
	Type         []string `help:"Only messages of this type, such as pawl.instance.created or pawl.finding.opened; may be repeated. By default those of all steps, and of no findings."`
	Secret       string   `env:"PAWL_SUBSCRIPTION_SECRET" help:"Secret that signs: whsec_ and 24 to 64 bytes in base64; by default a new one."`
}

func (s *subscriptionCreate) Run(c *console) error {
	chosen := map[string]any{
		"workflows": append([]string{}, s.Workflow...), "events": append([]string{}, s.Event...),
		"states": append([]string{}, s.State...), "terminal_only": s.TerminalOnly,
	}
	if len(s.Type) > 0 {
		chosen["types"] = s.Type
	}
	filter, err := json.Marshal(chosen)
	if err != nil {
		return err
	}
	return s.showSubscription(c, call{
		method: http.MethodPost, path: "/v1/subscriptions",
		body: members(map[string]string{"url": s.URL, "secret": s.Secret}, "filter", filter),
	})
}

// subscriptionList prints all subscriptions.
type subscriptionList struct {
	clientFlags
	Limit int `default:"50" help:"Largest number of subscriptions; 0 for all."`
}

func (s *subscriptionList) Run(c *console) error {
	items, err := pages[subscriptionAnswer](c, &s.clientFlags, "/v1/subscriptions", url.Values{}, s.Limit)
	if err != nil {
		return err
	}
	if s.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("ID\tURL\tFILTER\tHEALTH")
	for _, item := range items {
		table.row("%s\t%s\t%s\t%s", item.ID, item.URL, item.filter(), item.health())
	}
	return table.Flush()
}

// oneSubscription has the arguments of a command for one subscription.
type oneSubscription struct {
	clientFlags
	ID string `arg:"" help:"Id of the subscription."`
}

func (o *oneSubscription) path() string { return "/v1/subscriptions/" + url.PathEscape(o.ID) }

// subscriptionGet prints a subscription.
type subscriptionGet struct{ oneSubscription }

func (s *subscriptionGet) Run(c *console) error {
	return s.showSubscription(c, call{method: http.MethodGet, path: s.path()})
}

// subscriptionEnable enables a subscription.
type subscriptionEnable struct{ oneSubscription }

func (s *subscriptionEnable) Run(c *console) error {
	return s.showSubscription(c, call{method: http.MethodPatch, path: s.path(), body: map[string]any{"disabled": false}})
}

// subscriptionDelete deletes a subscription.
type subscriptionDelete struct{ oneSubscription }

func (s *subscriptionDelete) Run(c *console) error {
	_, err := s.do(c, call{method: http.MethodDelete, path: s.path()}, nil)
	return err
}

// subscriptionRotate replaces the secret of a subscription, and prints the new one.
type subscriptionRotate struct {
	oneSubscription
	Secret string `env:"PAWL_SUBSCRIPTION_SECRET" help:"Secret that signs: whsec_ and 24 to 64 bytes in base64; by default a new one."`
}

func (s *subscriptionRotate) Run(c *console) error {
	return s.showSubscription(c, call{
		method: http.MethodPost, path: s.path() + "/rotate-secret", body: members(map[string]string{"secret": s.Secret}, "", nil),
	})
}

// subscriptionTest makes a test delivery, and prints it.
type subscriptionTest struct{ oneSubscription }

func (s *subscriptionTest) Run(c *console) error {
	return s.showDelivery(c, call{method: http.MethodPost, path: s.path() + "/test"})
}
