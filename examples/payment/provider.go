package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// A provider charges cards. It knows each idempotency key, and answers it again as it did first. What becomes of a charge
// depends on the card:
//
//	declined  it is refused with 402
//	slow      it is made, and there is no answer
//	broken    it fails with 500 under the first key of an order, for ever, and is made under another key
//
// Every other card is charged.
type provider struct {
	mu      sync.Mutex
	charges []*charge
	byKey   map[string]*charge
	broken  map[string]string // by order: its first key
}

// A charge is what became of one.
type charge struct {
	ID     string `json:"id"`
	Order  string `json:"order"`
	Amount int    `json:"amount"`
	Status string `json:"status"` // paid, declined or refunded
}

func newProvider() *provider {
	return &provider{byKey: map[string]*charge{}, broken: map[string]string{}}
}

// ServeHTTP charges by POST /orders/{order}/charges, finds by GET /charges?key= what became of a key, refunds by POST
// /charges/{id}/refunds, and tells by GET / which charges there are.
func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders/{order}/charges", p.charge)
	mux.HandleFunc("GET /charges", p.find)
	mux.HandleFunc("POST /charges/{id}/refunds", p.refund)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, p.made()) })
	mux.ServeHTTP(w, r)
}

func (p *provider) charge(w http.ResponseWriter, r *http.Request) {
	var wanted struct {
		Amount int
		Card   string
	}
	if err := json.NewDecoder(r.Body).Decode(&wanted); err != nil {
		answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		return
	}
	_, _ = io.Copy(io.Discard, r.Body) // Then the context ends with the connection.
	c := p.take(r.PathValue("order"), r.Header.Get("Idempotency-Key"), wanted.Amount, wanted.Card)
	switch {
	case c == nil:
		answer(w, http.StatusInternalServerError, map[string]string{"error": "the provider is broken"})
	case c.Status == "declined":
		answer(w, http.StatusPaymentRequired, c)
	case wanted.Card == "slow":
		<-r.Context().Done()
	default:
		answer(w, http.StatusCreated, c)
	}
}

// take charges a card once for each key. Nil is a failure without an effect.
func (p *provider) take(order, key string, amount int, card string) *charge {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.byKey[key]; c != nil {
		return c
	}
	if first, seen := p.broken[order]; card == "broken" && (!seen || first == key) {
		p.broken[order] = key
		return nil
	}
	c := &charge{ID: fmt.Sprintf("ch_%d", len(p.charges)+1), Order: order, Amount: amount, Status: "paid"}
	if card == "declined" {
		c.Status = "declined"
	}
	p.charges = append(p.charges, c)
	p.byKey[key] = c
	return c
}

func (p *provider) find(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := []*charge{}
	if c := p.byKey[r.URL.Query().Get("key")]; c != nil {
		found = append(found, c)
	}
	answer(w, http.StatusOK, map[string]any{"data": found})
}

func (p *provider) refund(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.charges {
		if c.ID == r.PathValue("id") && c.Status != "declined" {
			c.Status = "refunded"
			answer(w, http.StatusCreated, c)
			return
		}
	}
	answer(w, http.StatusNotFound, map[string]string{"error": "there is no such charge"})
}

// made returns the charges.
func (p *provider) made() (charges []charge) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.charges {
		charges = append(charges, *c)
	}
	return charges
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // Nobody is left to tell if it fails.
}
