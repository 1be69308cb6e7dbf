package fsm

import (
	"cmp"
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/db/session"
	"github.com/pawl-fsm/pawl/internal/address"
)

// Create creates an instance.
//
// Kinds: Malformed, KeyInvalid, KeyReuse, WorkflowNotFound, InstanceExists, TooLarge,
// InvalidContext, CallbackSecretRequired, GuardError, Unavailable.
func (s *Service) Create(ctx context.Context, c CreateCommand) (Result, error) {
	r := s.Do(ctx, []Command{c})[0]
	return r.Result, r.Err
}

// Fire moves an instance along one transition, and along the eventless transitions that follow.
//
// Kinds: Malformed, KeyInvalid, KeyReuse, InstanceNotFound, VersionMismatch,
// PreconditionRequired, TooLarge, UnknownEvent, TransitionNotAllowed, InvalidPayload,
// GuardRejected, GuardError, Unavailable.
func (s *Service) Fire(ctx context.Context, c FireCommand) (Result, error) {
	r := s.Do(ctx, []Command{c})[0]
	return r.Result, r.Err
}

// Do carries out commands and returns their replies in the same order. Each command stands for
// itself: one that is refused undoes no other. Commands for one instance, or with one key, are carried
// out in order. The kinds of the errors are those of Create and Fire.
func (s *Service) Do(ctx context.Context, commands []Command) []Reply {
	if len(commands) == 1 {
		return s.do(ctx, commands)
	}
	replies := make([]Reply, 0, len(commands))
	for len(commands) > 0 {
		n := inAnyOrder(commands)
		replies = append(replies, s.do(ctx, commands[:n])...)
		commands = commands[n:]
	}
	return replies
}

// inAnyOrder returns how many of the commands, from the first on, may be in flight together. Creates
// and fires have queues of their own, and nothing keeps an order between the two queues. So the count
// ends before a command whose key is that of an earlier command of the other kind.
func inAnyOrder(commands []Command) int {
	kinds := map[string]string{}
	for i, c := range commands {
		kind, tenant, key := c.identity()
		if key == "" {
			continue // Two commands without a key share none.
		}
		if used, known := kinds[tenant+" "+key]; known && used != kind {
			return i
		}
		kinds[tenant+" "+key] = kind
	}
	return len(commands)
}

// do carries out commands of which no create has the key of a fire.
func (s *Service) do(ctx context.Context, commands []Command) []Reply {
	var (
		creates []*pending[CreateCommand, Result]
		fires   []*pending[FireCommand, Result]
		waits   = make([]func() (Result, error), len(commands))
		replies = make([]Reply, len(commands))
	)
	// Nothing depends on what is done before the queue: a wrong guess costs a second call.
	until := time.Now().Add(s.config.CallTimeout)
	for i, command := range commands {
		switch c := command.(type) {
		case CreateCommand:
			c.Key = keyOr(c.Key)
			if replies[i].Err = cmp.Or(c.normalise(), s.checkCallback(ctx, &c)); replies[i].Err == nil {
				p := newPending[CreateCommand, Result](ctx, c, c.Tenant, "key "+c.Key)
				guess(s, p, s.guesses.forCreate(c.Workflow), c.Context, until)
				s.trackOfCreate(p)
				creates, waits[i] = append(creates, p), p.wait
			}
		case FireCommand:
			c.Key = keyOr(c.Key)
			if replies[i].Err = c.normalise(); replies[i].Err == nil {
				p := chained[FireCommand, Result](ctx, c, c.Tenant, "instance "+c.ID.String(), "key "+c.Key)
				guess(s, p, s.guesses.forFire(c.ID, c.Event), c.Payload, until)
				s.trackOfFire(p, until)
				fires, waits[i] = append(fires, p), p.wait
			}
		}
	}
	s.creates.submit(creates...)
	s.fires.submit(fires...)
	for i, wait := range waits {
		if wait != nil {
			replies[i].Result, replies[i].Err = wait()
		}
	}
	return replies
}

// checkCallback refuses a callback that cannot be sent, and one that cannot be signed. It replaces the URL by the
// form in which it is sent. The host is not looked up, since a batch may have a thousand callbacks.
func (s *Service) checkCallback(ctx context.Context, c *CreateCommand) error {
	switch {
	case c.CallbackURL == "" && c.CallbackSecret == "":
		return nil
	case c.CallbackURL == "":
		return MalformedAt("/callback_secret", "does not go without callback_url")
	}
	var faults []Fault
	url, err := s.config.Webhooks.CheckURL(ctx, c.CallbackURL, false)
	if err != nil {
		faults = append(faults, Fault{Pointer: "/callback_url", Detail: err.Error()})
	}
	c.CallbackURL = url
	if c.CallbackSecret != "" {
		if err := address.CheckSecret(c.CallbackSecret); err != nil {
			faults = append(faults, Fault{Pointer: "/callback_secret", Detail: err.Error()})
		}
	}
	switch {
	case len(faults) > 0:
		return &Error{Kind: Malformed, Message: "the callback is not acceptable", Faults: faults}
	case c.CallbackSecret == "" && s.config.Webhooks.Secret == "":
		return Errorf(CallbackSecretRequired, "the deployment has no secret to sign the callback with; send a callback_secret")
	}
	return nil
}

// FireTx moves an instance in the caller's own transaction, so that the step and the caller's rows are
// committed together or not at all. The command needs no key for that. Config.Moved is not called. A
// refusal leaves the transaction usable; a GuardError and an error of the database do not. The kinds are
// those of Fire.
func (s *Service) FireTx(ctx context.Context, tx pgx.Tx, c FireCommand) (Result, error) {
	return s.decide(ctx, &c, func(p *pending[FireCommand, Result]) (queries.Outcome, error) {
		outcomes, err := fire(ctx, queries.New(session.Tx(tx)), []*pending[FireCommand, Result]{p})
		if err != nil {
			return queries.Outcome{}, s.blameFire(p, err)
		}
		return outcomes[0], nil
	})
}

// decide makes calls for one command that is not queued: one call, and another after each check of its
// payload.
func (s *Service) decide(ctx context.Context, c *FireCommand, call func(*pending[FireCommand, Result]) (queries.Outcome, error)) (Result, error) {
	if err := c.normalise(); err != nil {
		return Result{}, err
	}
	p := newPending[FireCommand, Result](ctx, *c, c.Tenant)
	for {
		outcome, err := call(p)
		if err != nil {
			return Result{}, err
		}
		if answered, result, err := s.answerFire(p, outcome); answered || err != nil {
			return result, err
		}
		if p.check != nil {
			if err := p.recheck(); err != nil {
				return Result{}, err
			}
		}
	}
}
