// Package rotation seals the secrets that are stored anew, when a deployment gets or changes its keys.
//
// It may import fsm, internal/seal, db/queries and pgx.
package rotation

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/internal/seal"
)

const (
	// resealPage is how many rows are read, and written in one transaction.
	resealPage = 500
	// resealPasses is how often all rows are looked at, while some of them are locked or change meanwhile.
	resealPasses = 10
	// resealPause is how long to wait between two passes.
	resealPause = 100 * time.Millisecond
)

// Resealed tells what a Reseal has done.
type Resealed struct {
	// Sealed is how many rows have been sealed anew. Kept is how many were sealed with the first key before.
	Sealed, Kept int
	// Unopened are rows whose secrets cannot be opened, at most 20 of them, and UnopenedCount is their number. They did not
	// change.
	Unopened      []Unopened
	UnopenedCount int
	// Busy is how many rows others had locked, or changed, each time.
	Busy int
}

// Unopened is a row whose secrets cannot be opened.
type Unopened struct {
	Tenant string
	// Table is "subscription", "callback" or "connection". Row is the id of the subscription or of the callback's
	// instance, or the name of the connection.
	Table, Row string
	Err        error
}

// Reseal seals the secrets of all subscriptions, callbacks and connections with the first key: those of other keys, and those that are not
// sealed. It makes a transaction for each 500 rows, and changes only what is as it was read. So it may be ended at any time
// and run again, beside the service and beside other calls. The pool's role must own the schema.
//
// With an error, the result tells what was done until then.
func Reseal(ctx context.Context, pool *pgxpool.Pool, keys fsm.SecretKeys) (Resealed, error) {
	var done Resealed
	for pass := range resealPasses {
		if pass > 0 {
			select {
			case <-ctx.Done():
				return done, ctx.Err()
			case <-time.After(resealPause):
			}
		}
		before := done
		done = Resealed{Sealed: before.Sealed}
		for _, table := range []string{"subscription", "callback", "connection"} {
			if err := resealTable(ctx, queries.New(pool), keys, table, &done); err != nil {
				return done, err
			}
		}
		if pass > 0 {
			done.Kept = before.Kept // Those that this call has sealed are not counted twice.
		}
		if done.Busy == 0 {
			break
		}
	}
	return done, nil
}

func resealTable(ctx context.Context, q *queries.Queries, keys fsm.SecretKeys, table string, done *Resealed) error {
	var tenant, row string
	for {
		rows, err := q.SecretsPage(ctx, queries.SecretsPageParams{TableName: table, Tenant: tenant, RowKey: row, RowLimit: resealPage})
		if err != nil {
			return err
		}
		p := queries.SecretsReplaceParams{TableName: table}
		for _, r := range rows {
			tenant, row = r.TenantID, r.RowKey
			secret, previous, err := resealRow(keys, table, r)
			switch {
			case err != nil:
				if done.UnopenedCount++; len(done.Unopened) < 20 {
					done.Unopened = append(done.Unopened, Unopened{Tenant: tenant, Table: table, Row: row, Err: err})
				}
			case secret == r.Secret && previous == r.PreviousSecret:
				done.Kept++
			default:
				p.Tenants, p.RowKeys = append(p.Tenants, tenant), append(p.RowKeys, row)
				p.FromSecrets, p.ToSecrets = append(p.FromSecrets, r.Secret), append(p.ToSecrets, secret)
				p.FromPrevious, p.ToPrevious = append(p.FromPrevious, r.PreviousSecret), append(p.ToPrevious, previous)
			}
		}
		if len(p.RowKeys) > 0 {
			changed, err := q.SecretsReplace(ctx, p)
			if err != nil {
				return err
			}
			done.Sealed += int(changed)
			done.Busy += len(p.RowKeys) - int(changed)
		}
		if len(rows) < resealPage {
			return nil
		}
	}
}

// resealRow returns a row's secrets as they are to be stored.
func resealRow(keys fsm.SecretKeys, table string, r queries.StoredSecret) (secret, previous string, err error) {
	if table == "connection" {
		secret, err = reseal(keys, r.Secret, seal.Connection(r.TenantID, r.RowKey))
		return secret, "", err
	}
	id, err := uuid.Parse(r.RowKey)
	if err != nil {
		return "", "", err
	}
	place := seal.Subscription(r.TenantID, id)
	if table == "callback" {
		place = seal.Callback(r.TenantID, id)
	}
	if secret, err = reseal(keys, r.Secret, place); err != nil {
		return "", "", err
	}
	previous, err = reseal(keys, r.PreviousSecret, seal.Previous(r.TenantID, id))
	return secret, previous, err
}

func reseal(keys fsm.SecretKeys, text string, at seal.Place) (string, error) {
	secret, err := keys.Open(text, at)
	if err != nil || keys.SealedByFirst(text) {
		return text, err
	}
	return keys.Seal(secret, at), nil
}
