package fsm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Preview is a dry run of Fire: it makes the same decision and writes nothing. The Result has the instance
// as it would be. The key is not looked at, so nothing is replayed. The kinds are those of Fire.
func (s *Service) Preview(ctx context.Context, c FireCommand) (Result, error) {
	return s.dryRun(ctx, &c)
}

// PreviewByKey is Preview for the instance that holds a business key. An instance that would be created has an id that
// no instance will have.
//
// If no instance holds the key, what the command would do is done and taken back, since the decision depends on what
// the creation leaves. That takes locks for a moment, and is Unavailable where the database cannot be written.
// The kinds are those of FireByKey.
func (s *Service) PreviewByKey(ctx context.Context, c FireByKeyCommand) (Result, error) {
	f := c.fire()
	f.Key = ""
	if err := cmp.Or(f.normalise(), s.checkStart(ctx, f.holder)); err != nil {
		return Result{}, err
	}
	return s.dryRun(ctx, &f)
}

// dryRun is a dry run of a fire, by id or by business key.
func (s *Service) dryRun(ctx context.Context, c *FireCommand) (Result, error) {
	var before int64
	r, err := s.decide(ctx, c, func(p *pending[FireCommand, Result]) (o queries.Outcome, err error) {
		o, before, err = previewOn(ctx, s.db.Try, p, !s.config.UnverifiedActors)
		if errors.Is(err, errNoHolder) {
			o, err = s.takeBack(ctx, p)
		}
		switch {
		case database.IsGuardFailure(err):
			e, _ := s.guardError(p, err)
			return o, e
		case err != nil:
			return o, fromDatabase(err)
		}
		return o, nil
	})
	r.Before = before
	return r, err
}

// takeBack carries out a fire by business key, and takes it back. It returns the driver's error.
func (s *Service) takeBack(ctx context.Context, p *pending[FireCommand, Result]) (o queries.Outcome, err error) {
	done := errors.New("done")
	err = s.db.Linger(ctx, pgx.TxOptions{}, "", func(q *queries.Queries) error {
		outcomes, err := s.fireByKeys(ctx, q, []*pending[FireCommand, Result]{p})
		if err != nil {
			return err
		}
		o = outcomes[0]
		return done
	})
	if errors.Is(err, done) {
		err = nil
	}
	return o, err
}

// preview decides on a fire for a flusher, and writes nothing. It returns the driver's error.
func (s *Service) preview(ctx context.Context, p *pending[FireCommand, Result]) (queries.Outcome, error) {
	o, _, err := previewOn(ctx, s.db.TryCommand, p, !s.config.UnverifiedActors)
	return o, err
}

// errNoHolder: a fire would start the instance, so that there is nothing to decide on without writing.
var errNoHolder = errors.New("no instance holds the business key")

// holderID returns the id of the instance that holds the business key of a fire. If there is none, it returns
// errNoHolder if the fire would start it, and else an id that no instance has.
func holderID(ctx context.Context, q *queries.Queries, p *pending[FireCommand, Result]) (uuid.UUID, error) {
	h := p.command.holder
	id, err := q.GetHolder(ctx, queries.GetHolderParams{TenantID: p.tenant, Workflow: h.workflow, BusinessKey: h.businessKey})
	if !errors.Is(err, pgx.ErrNoRows) {
		return id, err
	}
	if h.start != nil {
		return uuid.Nil, errNoHolder
	}
	return uuid.Nil, nil
}

// previewOn decides on a fire. before is the version of the instance, read first: if the instance moves meanwhile, it is
// the older one, and a command that expects it is refused.
func previewOn(
	ctx context.Context, try database.Trial, p *pending[FireCommand, Result], verified bool,
) (o queries.Outcome, before int64, err error) {
	err = try(ctx, func(ctx context.Context, q *queries.Queries) error {
		c := p.command
		if c.holder != nil {
			id, err := holderID(ctx, q, p)
			if err != nil {
				return err
			}
			c.ID = id
		}
		var err error
		if before, err = versionOf(ctx, q, p.tenant, c.ID); err != nil {
			return err
		}
		rows, err := q.Preview(ctx, queries.PreviewParams{
			Tenant: p.tenant, Ids: []uuid.UUID{c.ID}, Events: []string{c.Event}, Payloads: []json.RawMessage{c.Payload},
			Expected: []string{c.Expect.parameter}, Checked: []string{p.checked}, Actor: c.Actor, Verified: verified,
		})
		outcomes, err := inOrder(1, rows, err)
		if err == nil {
			o = outcomes[0]
		}
		return err
	})
	return o, before, err
}

// versionOf reads the version of an instance; 0 if there is none.
func versionOf(ctx context.Context, q *queries.Queries, tenant string, id uuid.UUID) (int64, error) {
	version, err := q.VersionOf(ctx, queries.VersionOfParams{TenantID: tenant, ID: id})
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	return version, err
}
