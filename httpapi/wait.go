package httpapi

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/fsm"
)

// maxWait is the longest wait of a request. A larger preference is reduced to it.
const maxWait = 60 * time.Second

// parseWait parses the value of Prefer: wait (RFC 7240, 4.3), a number of seconds. Any other
// value is ignored, like every preference that a server does not understand.
func parseWait(value string) (wait time.Duration, ok bool) {
	seconds, err := strconv.ParseUint(value, 10, 63)
	if err != nil {
		return 0, false
	}
	return time.Duration(min(seconds, uint64(maxWait/time.Second))) * time.Second, true
}

// waitApplied returns the Preference-Applied header for wait, or nil if the request cannot
// wait.
func (r *request) waitApplied() *string {
	if r.wait == nil {
		return nil
	}
	applied := fmt.Sprintf("wait=%d", *r.wait/time.Second)
	return &applied
}

// draining returns a context that also ends with the client, and when the process begins to shut
// down, so that waits and streams end in time.
func (s *server) draining(ctx context.Context) (context.Context, context.CancelFunc) {
	waiting, cancel := context.WithCancel(ctx)
	ends := []context.Context{requestOf(ctx).client}
	if s.config.Draining != nil {
		ends = append(ends, s.config.Draining)
	}
	stops := each(ends, func(end context.Context) func() bool { return context.AfterFunc(end, cancel) })
	return waiting, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}

// awaitInstance reads an instance. With Prefer: wait it returns when the condition of the
// request holds (until, or else another version than If-None-Match names), when the wait
// is over, when the client closes its side of the connection, or when the process shuts down: in
// each case the instance as it then is.
func (s *server) awaitInstance(ctx context.Context, id uuid.UUID, until *string) (fsm.Instance, error) {
	r := requestOf(ctx)
	i, err := s.service.Get(ctx, r.principal.tenant, id)
	if err != nil {
		return i, err
	}
	done := func(i fsm.Instance) bool { return !r.notModified(etag(i.Version)) }
	if until != nil {
		if done, err = s.until(ctx, i, *until); err != nil {
			return i, err
		}
	} else if r.ifNoneMatch == nil {
		r.wait = nil // The request names no condition, so the preference is not applied.
	}
	if r.wait == nil || *r.wait == 0 || done(i) {
		return i, nil
	}
	err = s.lasting(ctx, *r.wait, func(while context.Context) (_ bool, err error) {
		i, err = s.live.Await(while, r.principal.tenant, id, done)
		return while.Err() == nil, err
	})
	return i, err
}

// lasting looks again and again until it is done, the wait is over, the client closes its side of the connection, or the
// process shuts down. A look takes as long as a heartbeat. Between two it is seen whether the caller may still look.
func (s *server) lasting(ctx context.Context, wait time.Duration, look func(context.Context) (done bool, err error)) error {
	waiting, cancel := s.draining(ctx)
	defer cancel()
	waiting, cancelTimeout := context.WithTimeout(waiting, wait)
	defer cancelTimeout()
	for {
		while, stop := context.WithTimeout(waiting, s.config.Heartbeat)
		done, err := look(while)
		stop()
		if done || err != nil || waiting.Err() != nil {
			return err
		}
		if err := s.readmit(ctx); err != nil {
			return err
		}
	}
}

// until parses the parameter until: states separated by commas, of which final stands for
// every final state and the name of a compound state for all states within. Each must be a
// state of the instance's version of the workflow.
func (s *server) until(ctx context.Context, i fsm.Instance, text string) (done func(fsm.Instance) bool, err error) {
	const final = "final"
	wanted := list(&text)
	if !slices.Equal(wanted, []string{final}) {
		known, err := s.live.States(ctx, i.Workflow, i.WorkflowVersion)
		if err != nil {
			return nil, err
		}
		for _, state := range wanted {
			if state != final && !slices.Contains(known, state) {
				return nil, malformed("until", fmt.Sprintf("has %q, which is neither final nor a state of version %d of %s",
					state, i.WorkflowVersion, i.Workflow))
			}
		}
	}
	return func(i fsm.Instance) bool {
		return slices.ContainsFunc(wanted, func(state string) bool {
			return i.State == state || strings.HasPrefix(i.State, state+".") || state == final && i.Status != fsm.Active
		})
	}, nil
}

// list splits a parameter at its commas; nil stays nil.
func list(text *string) []string {
	if text == nil {
		return nil
	}
	return strings.Split(*text, ",")
}
