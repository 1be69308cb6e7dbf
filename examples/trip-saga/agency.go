package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
)

// An agency books and cancels, once for each idempotency key. It has no limousines.
type agency struct {
	mu       sync.Mutex
	answers  map[string]answer    // by idempotency key
	bookings map[[2]string]string // references, by place and trip
	effects  []string
}

type answer struct {
	Status int
	Body   map[string]string
}

func newAgency() *agency {
	return &agency{answers: map[string]answer{}, bookings: map[[2]string]string{}}
}

// ServeHTTP books by POST /{place}/bookings, cancels by DELETE /{place}/bookings/{trip}, and tells by GET / what it did.
func (a *agency) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{place}/bookings", a.once(a.book))
	mux.HandleFunc("DELETE /{place}/bookings/{trip}", a.once(a.cancel))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		for _, effect := range a.done() {
			_, _ = fmt.Fprintln(w, effect)
		}
	})
	mux.ServeHTTP(w, r)
}

// once carries a request out once for each key: the same key again gets the same answer.
func (a *agency) once(do func(*http.Request) answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		a.mu.Lock()
		answer, known := a.answers[key]
		if !known {
			answer = do(r)
			a.answers[key] = answer
		}
		a.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(answer.Status)
		_ = json.NewEncoder(w).Encode(answer.Body) // Nobody is left to tell if it fails.
	}
}

func (a *agency) book(r *http.Request) answer {
	place := r.PathValue("place")
	var wanted struct{ Trip, What string }
	if err := json.NewDecoder(r.Body).Decode(&wanted); err != nil {
		return answer{http.StatusBadRequest, map[string]string{"error": err.Error()}}
	}
	if wanted.What == "limousine" {
		return answer{http.StatusConflict, map[string]string{"error": "there is no limousine"}}
	}
	reference := fmt.Sprintf("%s-%d", place, len(a.answers)+1)
	a.bookings[[2]string{place, wanted.Trip}] = reference
	a.effects = append(a.effects, place+" booked")
	return answer{http.StatusCreated, map[string]string{"reference": reference}}
}

// cancel cancels the booking of a trip. Where there is none, there is nothing to do, which is no error.
func (a *agency) cancel(r *http.Request) answer {
	booking := [2]string{r.PathValue("place"), r.PathValue("trip")}
	reference, booked := a.bookings[booking]
	if booked {
		delete(a.bookings, booking)
		a.effects = append(a.effects, booking[0]+" cancelled")
	}
	return answer{http.StatusOK, map[string]string{"cancelled": reference}}
}

// done returns what was booked and cancelled, in its order.
func (a *agency) done() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.effects)
}
