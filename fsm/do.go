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

// FireByKey is Fire for the instance that holds a business key. With a Start it creates the instance if none holds the
// key.
//
// Kinds: those of Fire, and with a Start WorkflowNotFound, InvalidContext and CallbackSecretRequired.
func (s *Service) FireByKey(ctx context.Context, c FireByKeyCommand) (Result, error) {
	r := s.Do(ctx, []Command{c})[0]
	return r.Result, r.Err
}

// Do carries out commands and returns their replies in the same order. Each command stands for
// itself: one that is refused undoes no other. Commands for one instance, or with one key, are carried
// out in order. The kinds of the errors are those of Create, Fire and FireByKey.
//
// A FireByKeyCommand waits for the FireCommands before it, and they for it, since they may be for one instance. So
// commands of the two kinds share fewer calls if they alternate.
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

// inAnyOrder returns how many of the commands, from the first on, may be in flight together. Creates, fires and
// fires by business key have queues of their own, and nothing keeps an order between the queues. So the count ends
// before a command that must come after one of another queue.
func inAnyOrder(commands []Command) int {
	queues := map[string]string{}
	for i, c := range commands {
		queue, tenant, names := c.order()
		for _, name := range names {
			if name == "" {
				continue
			}
			name = cmp.Or(tenant, DefaultTenant) + " " + name
			if used, known := queues[name]; known && used != queue {
				return i
			}
			queues[name] = queue
		}
	}
	return len(commands)
}

// do carries out commands that may be in flight together.
func (s *Service) do(ctx context.Context, commands []Command) []Reply {
	var (
		creates       []*pending[CreateCommand, Result]
		fires, byKeys []*pending[FireCommand, Result]
		waits         = make([]func() (Result, error), len(commands))
		answered      = make([]func(Reply), len(commands))
		replies       = make([]Reply, len(commands))
	)
	// Nothing depends on what is done before the queue: a wrong guess costs a second call.
	until := time.Now().Add(s.config.CallTimeout)
	for i, command := range commands {
		switch c := command.(type) {
		case CreateCommand:
			c.Key = keyOr(c.Key)
			if replies[i].Err = cmp.Or(c.normalise(), s.checkCallback(ctx, &c)); replies[i].Err == nil {
				end := s.begin("create", &c.Origin)
				p := newPending[CreateCommand, Result](ctx, c, c.Tenant, nameOfKey(c.Key))
				guess(s, p, &p.checked, s.guesses.forCreate(c.Workflow), c.Context, until)
				s.trackOfCreate(p)
				creates, waits[i] = append(creates, p), p.wait
				answered[i] = func(r Reply) { s.answered(c.Tenant, c.Workflow, "", c.Key, p.found(), end, r) }
			}
		case FireCommand:
			c.Key = keyOr(c.Key)
			if replies[i].Err = c.normalise(); replies[i].Err == nil {
				end := s.begin("fire", &c.Origin)
				p := chained[FireCommand, Result](ctx, c, c.Tenant, "instance "+c.ID.String(), nameOfKey(c.Key))
				guess(s, p, &p.checked, s.guesses.forFire(c.ID, c.Event), c.Payload, until)
				s.trackOfFire(p, until)
				fires, waits[i] = append(fires, p), p.wait
				answered[i] = func(r Reply) { s.answered(c.Tenant, "", c.Event, c.Key, p.found(), end, r) }
			}
		case FireByKeyCommand:
			f := c.fire()
			f.Key = keyOr(f.Key)
			if replies[i].Err = cmp.Or(f.normalise(), s.checkStart(ctx, f.holder)); replies[i].Err == nil {
				end := s.begin("fire", &f.Origin)
				p := newPending[FireCommand, Result](ctx, f, f.Tenant, nameOfKey(f.Key), nameOfHolder(c.Workflow, c.BusinessKey))
				guess(s, p, &p.checked, s.guesses.forFire(f.ID, f.Event), f.Payload, until)
				if h := f.holder; h.start != nil {
					guess(s, p, &h.checked, s.guesses.forCreate(h.workflow), h.start.Context, until)
				}
				s.trackOfFire(p, until)
				byKeys, waits[i] = append(byKeys, p), p.wait
				answered[i] = func(r Reply) { s.answered(f.Tenant, "", f.Event, f.Key, p.found(), end, r) }
			}
		}
	}
	s.db.Active(ctx)
	s.creates.submit(creates...)
	s.fires.submit(fires...)
	s.firesByKey.submit(byKeys...)
	for i, wait := range waits {
		if wait != nil {
			replies[i].Result, replies[i].Err = wait()
			answered[i](replies[i])
		}
	}
	return replies
}

// checkStart is checkCallback for the instance that a command may start.
func (s *Service) checkStart(ctx context.Context, h *holder) error {
	if h.start == nil {
		return nil
	}
	if err := s.checkCallback(ctx, h.start); err != nil {
		return Within("/start", err)
	}
	return nil
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
		outcomes, err := s.fire(ctx, queries.New(session.Tx(tx)), []*pending[FireCommand, Result]{p})
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
