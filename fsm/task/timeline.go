package task

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// A Moment is one thing that happened to an instance. Members that its kind does not have are nil.
type Moment struct {
	// At is when it began, and EndedAt when it ended.
	At      time.Time
	EndedAt *time.Time
	// Kind is "step", "task", "attempt", "compensation" or "delivery".
	Kind string
	// Version is that of the instance after the step, or after the one that it belongs to.
	Version *int64
	// Step is the kind of a step, and Event, From, To, Actor and Reason are those of it.
	Step, Event, From, To, Actor, Reason *string
	// Name is that of a task or a compensation.
	Name   *string
	TaskID *uuid.UUID
	// Compensates: the task, or that of the attempt, undoes something.
	Compensates bool
	// Attempt is the number of an attempt; of a task or a delivery, how many there were.
	Attempt *int
	// Reconciling: the attempt did not try the task, but asked what became of it.
	Reconciling bool
	// Status is the present status of a task, a compensation or a delivery, or the result of an attempt.
	Status     *string
	HTTPStatus *int
	Failure    *string
	// Worker is that of an attempt.
	Worker         *string
	DeliveryID     *uuid.UUID
	SubscriptionID *uuid.UUID

	place place // Behind it.
}

// A place is how far pages of a timeline have come: the last item, the last step, and the last step or delivery. See
// pawl.timeline_page.
type place struct {
	At      time.Time `json:"at"`
	Version int64     `json:"version"`
	Rank    int32     `json:"rank"`
	Key     string    `json:"key"`
	Step    int64     `json:"step"`
	Told    int64     `json:"told"`
	To      uuid.UUID `json:"to"`
}

// The ranks of steps and deliveries.
const (
	stepRank     = 0
	deliveryRank = 4
)

// Timeline returns what happened to an instance, the oldest first.
// Kinds: InstanceNotFound, Malformed (limit or cursor), Unavailable.
func (s *Service) Timeline(ctx context.Context, tenant string, id uuid.UUID, page fsm.Page) (fsm.List[Moment], error) {
	if _, err := s.fsm.Get(ctx, tenant, id); err != nil {
		return fsm.List[Moment]{}, err
	}
	items, next, err := database.List(ctx, s.db, database.Listing[Moment, Moment]{
		Scope: "timeline " + tenant + " " + id.String(),
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]Moment, error) {
			p := queries.TimelinePageParams{Tenant: tenant, Instance: id, RowLimit: limit}
			var at place
			if after != "" {
				if err := json.Unmarshal([]byte(after), &at); err != nil {
					return nil, err
				}
				p.At, p.Version, p.Rank, p.Key = &at.At, &at.Version, &at.Rank, &at.Key
				p.Step, p.Told, p.ToldTo = at.Step, at.Told, at.To
			}
			rows, err := queries.New(db).TimelinePage(ctx, p)
			moments := make([]Moment, len(rows))
			for i, r := range rows {
				at = at.behind(r)
				moments[i] = momentOf(r)
				moments[i].place = at
			}
			return moments, err
		},
		Item: func(m Moment) Moment { return m },
		Key: func(m Moment) string {
			text, err := json.Marshal(m.place)
			if err != nil {
				panic(err) // It has only texts, numbers and a time.
			}
			return string(text)
		},
	}, page.Limit, page.Cursor)
	return fsm.List[Moment]{Items: items, Next: next}, err
}

// behind returns the place behind a row.
func (p place) behind(r queries.Moment) place {
	p.At, p.Version, p.Rank, p.Key = r.At, r.Version, r.Rank, r.Key
	switch r.Rank {
	case stepRank:
		p.Step, p.Told, p.To = r.Version, r.Version, uuid.Nil
	case deliveryRank:
		p.Told, p.To = r.Version, uuid.MustParse(r.Key)
	}
	return p
}

func momentOf(r queries.Moment) Moment {
	return Moment{
		At: r.At, EndedAt: r.EndedAt, Kind: r.Kind, Version: &r.Version, Step: r.Step, Event: r.Event, From: r.FromState, To: r.ToState,
		Actor: r.Actor, Reason: r.Reason, Name: r.Name, TaskID: r.TaskID, Compensates: r.Compensates != nil && *r.Compensates, Attempt: database.Int(r.Attempt),
		Reconciling: r.Reconciling != nil && *r.Reconciling, Status: r.Status,
		HTTPStatus: database.Int(r.HttpStatus), Failure: r.Failure, Worker: r.Worker, DeliveryID: r.DeliveryID, SubscriptionID: r.SubscriptionID,
	}
}

// Summary says what happened in a few words, for people.
func (m Moment) Summary() string {
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	attempts := func() string {
		switch {
		case m.Attempt == nil || *m.Attempt == 0:
			return ""
		case *m.Attempt == 1:
			return " after 1 attempt"
		}
		return fmt.Sprintf(" after %d attempts", *m.Attempt)
	}
	failure := ""
	switch {
	case m.Failure != nil:
		failure = ": " + *m.Failure
	case m.HTTPStatus != nil:
		failure = fmt.Sprintf(": %d", *m.HTTPStatus)
	}
	task := "task " + text(m.Name)
	if m.Compensates {
		task = "compensation of " + text(m.Name)
	}
	switch m.Kind {
	case "step":
		what := cmp.Or(text(m.Event), text(m.Step))
		switch {
		case m.From == nil:
			return fmt.Sprintf("%s in %s by %s", what, text(m.To), text(m.Actor))
		case *m.From == text(m.To):
			return fmt.Sprintf("%s in %s by %s", what, text(m.To), text(m.Actor))
		}
		return fmt.Sprintf("%s: %s → %s by %s", what, *m.From, text(m.To), text(m.Actor))
	case "task":
		return fmt.Sprintf("%s: %s%s%s", task, text(m.Status), attempts(), failure)
	case "attempt":
		by := ""
		if m.Worker != nil {
			by = " by " + *m.Worker
		}
		if m.Reconciling {
			by += ", reconciling"
		}
		return fmt.Sprintf("%s, attempt %d%s: %s%s", task, *m.Attempt, by, cmp.Or(text(m.Status), "under way"), failure)
	case "compensation":
		registered := "compensation of " + text(m.Name) + " registered"
		if status := text(m.Status); status != "registered" {
			registered += ", now " + status
		}
		return registered
	case "delivery":
		to := "callback"
		if m.SubscriptionID != nil {
			to = "subscription " + m.SubscriptionID.String()
		}
		return fmt.Sprintf("delivery to %s: %s%s%s", to, text(m.Status), attempts(), failure)
	}
	return m.Kind
}
