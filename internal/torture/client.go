package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/internal/torture/check"
)

// The accounts that clients fire at.
type accounts struct {
	mu   sync.Mutex
	hot  []account // Everybody fires at these, and nobody closes them.
	cold []account
}

type account struct {
	id      uuid.UUID
	version int64 // As somebody last saw it.
}

func (a *accounts) add(id uuid.UUID, version int64, hot bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if hot {
		a.hot = append(a.hot, account{id, version})
	} else {
		a.cold = append(a.cold, account{id, version})
	}
}

// pick returns an account. Of the cold ones it is mostly one of the newest.
func (a *accounts) pick(rng *rand.Rand) (_ account, hot bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.cold) == 0 || rng.IntN(3) == 0 {
		return a.hot[rng.IntN(len(a.hot))], true
	}
	n := len(a.cold)
	if rng.IntN(4) > 0 {
		return a.cold[n-1-rng.IntN(min(n, 20))], false
	}
	return a.cold[rng.IntN(n)], false
}

// saw notes the version of an account.
func (a *accounts) saw(id uuid.UUID, version int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, list := range [][]account{a.hot, a.cold} {
		for i := len(list) - 1; i >= max(0, len(list)-200); i-- {
			if list[i].id == id {
				list[i].version = version
				return
			}
		}
	}
}

// decided says whether an answer ends the attempts with a key.
func decided(status int) bool {
	return status != 0 && status != http.StatusTooManyRequests && status < 500
}

// A caller sends commands over HTTP: each to any replica, and again with the same key until it gets a decision.
type caller struct {
	number int
	world  *world
	rng    *rand.Rand
	http   *http.Client
	count  int
}

func (w *world) newCaller(number int) *caller {
	return &caller{
		number: number, world: w, rng: w.random(uint64(number)),
		http: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 2}},
	}
}

// startContext is the context of new accounts.
const startContext = `{"steps":0,"sum":0}`

// run sends commands until stopping ends. ctx, which ends later, bounds the last command's attempts.
func (c *caller) run(ctx, stopping context.Context) {
	for stopping.Err() == nil {
		op := c.choose()
		replica := -1 // Any.
		if op.Kind == "get" {
			c.attempt(ctx, replica, op)
		} else {
			c.insist(ctx, replica, op)
		}
		if !sleep(stopping, c.world.think(c.rng)) {
			return
		}
	}
}

// choose draws the next command.
func (c *caller) choose() check.Op {
	c.count++
	op := check.Op{Client: c.number, Key: fmt.Sprintf("%d-%d-%d", c.world.seed, c.number, c.count), Kind: "fire"}
	draw := c.rng.IntN(100)
	if draw < 15 {
		op.Kind, op.Payload = "create", json.RawMessage(startContext)
		return op
	}
	at, hot := c.world.accounts.pick(c.rng)
	op.Instance = at.id
	switch {
	case draw < 25:
		op.Kind, op.Key = "get", ""
		return op
	case draw < 33:
		op.Event = "pause"
	case draw < 38:
		op.Event = "resume"
	case draw < 41 && !hot:
		op.Event = "close"
	default:
		op.Event = "add"
		op.Payload = json.RawMessage(`{"amount":` + strconv.Itoa(c.rng.IntN(50)) + `}`) // Of 0 the guard refuses.
	}
	if c.rng.IntN(5) == 0 {
		op.IfMatch = at.version
	}
	return op
}

// insist attempts a command until it is decided or ctx ends, and sometimes once more. It returns the last answer.
func (c *caller) insist(ctx context.Context, replica int, op check.Op) check.Op {
	for {
		answer := c.attempt(ctx, replica, op)
		op.Retry = true
		if decided(answer.Status) {
			if c.rng.IntN(10) == 0 {
				c.attempt(ctx, replica, op) // As a client does that has lost the answer.
			}
			return answer
		}
		if !sleep(ctx, time.Duration(20+c.rng.IntN(200))*time.Millisecond) {
			return answer
		}
	}
}

// attempt sends a command to a replica, or to any if it is negative, and records the answer.
func (c *caller) attempt(ctx context.Context, replica int, op check.Op) check.Op {
	if replica < 0 {
		replica = c.rng.IntN(len(c.world.replicas))
	}
	op.Begin = time.Now()
	c.send(ctx, c.world.replicas[replica].base(), &op)
	if op.Status != 0 {
		op.End = time.Now()
	}
	if op.Kind == "create" && op.Status == http.StatusCreated && !op.Retry {
		c.world.accounts.add(op.Instance, op.Version, false)
	} else if op.Version > 0 {
		c.world.accounts.saw(op.Instance, op.Version)
	}
	c.world.record.op(op)
	return op
}

// send makes the request of a command, and fills in the answer if there is a whole one.
func (c *caller) send(ctx context.Context, base string, op *check.Op) {
	method, path, body := http.MethodPost, "", map[string]json.RawMessage{}
	switch op.Kind {
	case "create":
		path, body["context"] = "/v1/workflows/account/instances", op.Payload
	case "fire":
		path = "/v1/instances/" + op.Instance.String() + "/actions/" + op.Event
		if op.Payload != nil {
			body["payload"] = op.Payload
		}
	case "get":
		method, path = http.MethodGet, "/v1/instances/"+op.Instance.String()
	}
	data, err := json.Marshal(body)
	if err != nil {
		panic(err) // All of it is JSON.
	}
	request, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(data))
	if err != nil {
		panic(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if op.Key != "" {
		request.Header.Set("Idempotency-Key", op.Key)
	}
	if op.IfMatch != 0 {
		request.Header.Set("If-Match", `"`+strconv.FormatInt(op.IfMatch, 10)+`"`)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	if err != nil {
		return
	}
	answer(op, response.StatusCode, raw)
}

// answer fills an answer in: the instance, or a problem.
func answer(op *check.Op, status int, body []byte) {
	var got struct {
		ID      uuid.UUID       `json:"id"`
		Code    string          `json:"code"`
		Version int64           `json:"version"`
		State   string          `json:"state"`
		Context json.RawMessage `json:"context"`
	}
	if json.Unmarshal(body, &got) != nil {
		return // Not a whole answer.
	}
	op.Status, op.Code, op.Version, op.State, op.Context = status, got.Code, got.Version, got.State, got.Context
	if status < 300 {
		op.Instance = got.ID
	}
}

// prepare makes a request of the run's own, which must succeed within a minute.
func (c *caller) prepare(ctx context.Context, method, path, body string, into any) error {
	return until(ctx, time.Minute, method+" "+path, func(ctx context.Context) (bool, error) {
		request, err := http.NewRequestWithContext(ctx, method, c.world.replicas[0].base()+path, bytes.NewReader([]byte(body)))
		if err != nil {
			return false, err
		}
		request.Header.Set("Content-Type", "application/json")
		response, err := c.http.Do(request)
		if err != nil {
			return false, err
		}
		defer response.Body.Close()
		raw, err := io.ReadAll(response.Body)
		if err != nil {
			return false, err
		}
		if response.StatusCode >= 300 {
			return false, fmt.Errorf("%s %s: %d %s", method, path, response.StatusCode, raw)
		}
		return true, json.Unmarshal(raw, into)
	})
}
