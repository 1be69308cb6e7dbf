package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
)

// deliveryAnswer is a delivery as the API shows it. raw is the whole answer.
type deliveryAnswer struct {
	raw            json.RawMessage
	ID             string  `json:"id"`
	SubscriptionID *string `json:"subscription_id"`
	InstanceID     *string `json:"instance_id"`
	Version        *int64  `json:"version"`
	FindingID      string  `json:"finding_id"`
	Type           string  `json:"type"`
	Status         string  `json:"status"`
	Attempts       int     `json:"attempts"`
	NextAttemptAt  *string `json:"next_attempt_at"`
	LastError      *string `json:"last_error"`
}

// UnmarshalJSON keeps the whole answer for --json.
func (d *deliveryAnswer) UnmarshalJSON(data []byte) error {
	type plain deliveryAnswer
	d.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(d))
}

// MarshalJSON returns the whole answer.
func (d deliveryAnswer) MarshalJSON() ([]byte, error) { return d.raw, nil }

// step is the step of the delivered message, as instance:version, or the finding, as finding:id; a test delivery has none.
func (d *deliveryAnswer) step() string {
	if d.FindingID != "" {
		return "finding:" + d.FindingID
	}
	if d.InstanceID == nil || d.Version == nil {
		return "-"
	}
	return fmt.Sprintf("%s:%d", *d.InstanceID, *d.Version)
}

// showDelivery sends a request and prints the delivery that is its answer.
func (f *clientFlags) showDelivery(c *console, request call) error {
	var d deliveryAnswer
	if _, err := f.do(c, request, &d); err != nil {
		return err
	}
	if f.JSON {
		return c.printJSON(d)
	}
	c.printf("id      %s\ntype    %s\nstep    %s\nstatus  %s\n", d.ID, d.Type, d.step(), d.Status)
	return nil
}

// outboxDeliveries prints the deliveries that its flags choose.
type outboxDeliveries struct {
	clientFlags
	Subscription string `help:"Only deliveries of this subscription."`
	Instance     string `help:"Only deliveries of this instance's messages."`
	Status       string `help:"Only deliveries with this status: pending, delivered or dead."`
	Limit        int    `default:"50" help:"Largest number of deliveries; 0 for all."`
}

func (o *outboxDeliveries) Run(c *console) error {
	query := parameters(map[string]string{
		"subscription_id": o.Subscription, "instance_id": o.Instance, "status": o.Status,
	})
	items, err := pages[deliveryAnswer](c, &o.clientFlags, "/v1/deliveries", query, o.Limit)
	if err != nil {
		return err
	}
	if o.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("ID\tSTEP\tTYPE\tSTATUS\tATTEMPTS\tNEXT\tERROR")
	for _, d := range items {
		table.row("%s\t%s\t%s\t%s\t%d\t%s\t%s",
			d.ID, d.step(), d.Type, d.Status, d.Attempts, orDash(d.NextAttemptAt), orDash(d.LastError))
	}
	return table.Flush()
}

// outboxReplay makes settled deliveries pending again: one, or all that its flags choose.
type outboxReplay struct {
	clientFlags
	ID           string `arg:"" optional:"" help:"Id of a delivery; by default all deliveries that the flags choose."`
	Subscription string `help:"Only deliveries of this subscription."`
	Status       string `default:"dead" enum:"dead,delivered" help:"Only deliveries with this status: dead or delivered."`
	After        moment `help:"Only deliveries made after a time, such as 2026-03-01T09:30:00Z."`
	Before       moment `help:"Only deliveries made before a time."`
}

func (o *outboxReplay) Run(c *console) error {
	if o.ID != "" {
		return o.showDelivery(c, call{method: http.MethodPost, path: "/v1/deliveries/" + url.PathEscape(o.ID) + "/replay"})
	}
	var report struct {
		Replayed int `json:"replayed"`
		Gone     int `json:"gone"`
	}
	if _, err := o.do(c, call{
		method: http.MethodPost, path: "/v1/deliveries/replay",
		body: members(map[string]string{
			"subscription_id": o.Subscription, "status": o.Status, "after": string(o.After), "before": string(o.Before),
		}, "", nil),
	}, &report); err != nil {
		return err
	}
	if o.JSON {
		return c.printJSON(report)
	}
	c.printf("%d deliveries are pending again\n", report.Replayed)
	if report.Gone > 0 {
		c.printf("%d cannot be sent any more: their subscription or instance is gone, or their callback was delivered\n", report.Gone)
	}
	return nil
}
