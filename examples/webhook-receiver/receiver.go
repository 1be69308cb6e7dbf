package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// The receiver's own tables. message remembers what was received, by its webhook-id: it may be
// emptied of what is older than pawl tries and replays.
const schema = `
	create schema if not exists receiver;
	create table if not exists receiver.message (
		webhook_id text primary key,
		received_at timestamptz not null default now()
	);
	create table if not exists receiver.instance (
		id uuid primary key,
		sequence bigint not null,
		state text not null,
		status text not null,
		context jsonb not null
	)`

// maxBody bounds what is read of a delivery: a context and a payload of 64 KiB each, twice.
const maxBody = 1 << 20

// event is what the receiver looks at of a CloudEvent.
type event struct {
	Subject  string `json:"subject"`
	Sequence string `json:"sequence"`
	Data     struct {
		Instance struct {
			State   string          `json:"state"`
			Status  string          `json:"status"`
			Context json.RawMessage `json:"context"`
		} `json:"instance"`
	} `json:"data"`
}

// receiver answers deliveries: 204 for those that it has, 401 for those that are not signed
// with the secret, 400 for what it cannot read, and 500 if it should come again.
type receiver struct {
	pool    *pgxpool.Pool
	webhook *standardwebhooks.Webhook
}

func newReceiver(ctx context.Context, pool *pgxpool.Pool, secret string) (*receiver, error) {
	if secret == "" {
		return nil, errors.New("WEBHOOK_SECRET must be the subscription's secret")
	}
	webhook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("make the tables: %w", err)
	}
	return &receiver{pool: pool, webhook: webhook}, nil
}

// ServeHTTP receives a delivery, or shows what was received.
func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	switch request.Method {
	case http.MethodPost:
		r.receive(w, request)
	case http.MethodGet:
		r.show(w, request)
	default:
		w.Header().Set("Allow", "GET, POST")
		http.Error(w, "deliveries are posted", http.StatusMethodNotAllowed)
	}
}

// show lists the instances.
func (r *receiver) show(w http.ResponseWriter, request *http.Request) {
	var list []byte
	err := r.pool.QueryRow(request.Context(), `
		select coalesce(jsonb_agg(to_jsonb(i) order by i.id), '[]') from receiver.instance i`).Scan(&list)
	if err != nil {
		http.Error(w, "the database is away", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(list, '\n')) // Nobody is left to tell if it fails.
}

func (r *receiver) receive(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, request.Body, maxBody))
	if err != nil {
		http.Error(w, "the body cannot be read", http.StatusBadRequest)
		return
	}
	// First of all: nothing of what is not signed is believed. The timestamp, which is signed
	// too, keeps an old delivery from being sent again by somebody else.
	if err := r.webhook.Verify(body, request.Header); err != nil {
		http.Error(w, "the signature does not fit", http.StatusUnauthorized)
		return
	}
	var e event
	if err := json.Unmarshal(body, &e); err != nil {
		http.Error(w, "the body is no CloudEvent", http.StatusBadRequest)
		return
	}
	sequence, err := strconv.ParseInt(e.Sequence, 10, 64)
	if err != nil || e.Subject == "" {
		// A test of the subscription, say, is about no instance.
		w.WriteHeader(http.StatusNoContent)
		return
	}
	id := request.Header.Get(standardwebhooks.HeaderWebhookID)
	err = pgx.BeginFunc(request.Context(), r.pool, func(tx pgx.Tx) error { return take(request.Context(), tx, id, sequence, e) })
	if err != nil {
		slog.Error("a delivery is not taken", "webhook_id", id, "error", err)
		http.Error(w, "try again", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// take remembers the delivery and applies it, or neither. What came before is not applied
// again; a step that is older than the last one applied, since it was replayed, say, changes
// nothing.
func take(ctx context.Context, tx pgx.Tx, webhookID string, sequence int64, e event) error {
	first, err := tx.Exec(ctx, "insert into receiver.message (webhook_id) values ($1) on conflict do nothing", webhookID)
	if err != nil || first.RowsAffected() == 0 {
		return err
	}
	i := e.Data.Instance
	_, err = tx.Exec(ctx, `
		insert into receiver.instance as i (id, sequence, state, status, context)
		values ($1, $2, $3, $4, $5)
		on conflict (id) do update
		set sequence = excluded.sequence, state = excluded.state, status = excluded.status, context = excluded.context
		where i.sequence < excluded.sequence`,
		e.Subject, sequence, i.State, i.Status, i.Context)
	return err
}
