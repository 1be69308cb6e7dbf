package main

import (
	"encoding/json"
	"strconv"
)

// auditCommand is `pawl audit`.
type auditCommand struct {
	List  auditList  `cmd:"" help:"List who did what with power, and who was refused."`
	Purge auditPurge `cmd:"" help:"Delete old rows of the audit, on the database."`
}

// auditAnswer is a row of the audit as the API shows it. raw is the whole answer.
type auditAnswer struct {
	raw     json.RawMessage
	Tenant  string  `json:"tenant"`
	Seq     int64   `json:"seq"`
	At      string  `json:"at"`
	Actor   string  `json:"actor"`
	Address *string `json:"address"`
	Action  string  `json:"action"`
	Target  *string `json:"target"`
	Outcome string  `json:"outcome"`
	Count   int64   `json:"count"`
	Reason  *string `json:"reason"`
}

// UnmarshalJSON keeps the whole answer for --json.
func (a *auditAnswer) UnmarshalJSON(data []byte) error {
	type plain auditAnswer
	a.raw = append(json.RawMessage{}, data...)
	return json.Unmarshal(data, (*plain)(a))
}

// MarshalJSON returns the whole answer.
func (a auditAnswer) MarshalJSON() ([]byte, error) { return a.raw, nil }

// auditList prints the rows that its flags choose.
type auditList struct {
	clientFlags
	By      string `placeholder:"ACTOR" help:"Only rows of this actor."`
	Action  string `help:"Only rows of this action, such as workflow.register."`
	Target  string `help:"Only rows about this, such as the id of a token."`
	Outcome string `help:"Only rows with this outcome: done, or the code of a problem."`
	After   int64  `placeholder:"SEQ" help:"Only rows behind this seq."`
	From    moment `help:"Only rows from this time on, such as 2026-03-01T09:30:00Z."`
	To      moment `help:"Only rows before this time."`
	Limit   int    `default:"50" help:"Largest number of rows; 0 for all."`
}

// Help is printed below the help of the command.
func (a *auditList) Help() string {
	return "The oldest rows come first. --tenant '*' lists the rows of all tenants and of the deployment, with a token of the tenant '*'."
}

func (a *auditList) Run(c *console) error {
	query := parameters(map[string]string{
		"actor": a.By, "action": a.Action, "target": a.Target, "outcome": a.Outcome, "from": string(a.From), "to": string(a.To),
	})
	if a.After != 0 {
		query.Set("after", strconv.FormatInt(a.After, 10))
	}
	items, err := pages[auditAnswer](c, &a.clientFlags, "/v1/audit", query, a.Limit)
	if err != nil {
		return err
	}
	if a.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("SEQ\tAT\tTENANT\tACTOR\tADDRESS\tACTION\tTARGET\tOUTCOME\tCOUNT\tREASON")
	for _, r := range items {
		table.row("%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s", r.Seq, r.At, r.Tenant, r.Actor, orDash(r.Address), r.Action,
			orDash(r.Target), r.Outcome, r.Count, orDash(r.Reason))
	}
	return table.Flush()
}
