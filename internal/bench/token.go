package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
)

// benchToken is a token of the database, of the right size.
var benchToken = "pawl_bench_" + strings.Repeat("0123456789abcdef", 4)

// measureTokens fires transitions through a service without authentication, and through one that takes a token with each
// request.
func (b *benchmark) measureTokens(ctx context.Context) (err error) {
	conn, err := pgx.Connect(ctx, b.dsn)
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte(benchToken))
	_, err = conn.Exec(ctx, "select pawl.token_create('default', 'bench', $1, 'bench', '{fire}', '{}', '{}')", digest[:])
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		return err
	}
	// The other service goes on with the workers.
	tokens, stop, err := b.startAnother(ctx, "PAWL_AUTH=tokens", "PAWL_WORKERS=false")
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	load := func(address string, process int, token string) func() *load {
		return func() *load {
			l := b.transitions(manyConnections)
			l.address, l.process = address, process
			if token != "" {
				l.bearer = func(int) string { return token }
			}
			return l
		}
	}
	return b.measurePair(ctx,
		side{"open", load(b.service.address, b.meter.service, ""), b.ids}, side{"tokens", load(tokens.address, tokens.process, benchToken), b.ids})
}
