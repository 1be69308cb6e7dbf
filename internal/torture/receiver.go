package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/pawl-fsm/pawl/internal/torture/check"
)

// cloudEvent is what is looked at of a message of a sink or a webhook.
type cloudEvent struct {
	ID       string          `json:"id"`
	Subject  uuid.UUID       `json:"subject"`
	Sequence string          `json:"sequence"`
	Epoch    int64           `json:"epoch"`
	Data     json.RawMessage `json:"data"`
}

func (e cloudEvent) received(by string) (check.Received, error) {
	version, err := strconv.ParseInt(e.Sequence, 10, 64)
	if err != nil {
		return check.Received{}, fmt.Errorf("the sequence of %s: %w", e.ID, err)
	}
	return check.Received{Receiver: by, Instance: e.Subject, Version: version, Epoch: e.Epoch, ID: e.ID, Data: e.Data}, nil
}

// sunk takes a line of the sink.
func (w *world) sunk(line []byte) {
	var e cloudEvent
	if err := json.Unmarshal(line, &e); err != nil {
		w.record.violation("sink", fmt.Sprintf("want a CloudEvent a line, got %.100q: %v", line, err))
		return
	}
	m, err := e.received("sink")
	if err != nil {
		w.record.violation("sink", err.Error())
		return
	}
	w.record.received(m)
}

// A webhookReceiver takes deliveries, and refuses some of them, which must then come again.
type webhookReceiver struct {
	record *record
	url    string
	close  func() error

	mu     sync.Mutex
	rng    *rand.Rand
	verify *standardwebhooks.Webhook // Nil until the subscription's secret is known.
}

func newWebhookReceiver(record *record, rng *rand.Rand) (*webhookReceiver, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &webhookReceiver{record: record, rng: rng, url: "http://" + listener.Addr().String() + "/"}
	server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	r.close = server.Close
	go func() { _ = server.Serve(listener) }() // It returns when the server is closed.
	return r, nil
}

// secret sets the secret that signs deliveries.
func (r *webhookReceiver) secret(secret string) error {
	verify, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verify = verify
	return nil
}

func (r *webhookReceiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return // The sender has gone, and will send it again.
	}
	r.mu.Lock()
	verify, refuse := r.verify, r.rng.IntN(50) == 0
	r.mu.Unlock()
	if verify == nil || refuse {
		http.Error(w, "come again", http.StatusInternalServerError)
		return
	}
	if err := verify.Verify(body, request.Header); err != nil {
		r.record.violation("webhook", fmt.Sprintf("want a signed delivery, got %s: %v", request.Header.Get("webhook-id"), err))
	}
	var e cloudEvent
	m := check.Received{}
	if err = json.Unmarshal(body, &e); err == nil {
		m, err = e.received("webhook")
	}
	if err != nil {
		r.record.violation("webhook", fmt.Sprintf("want a CloudEvent, got %.100q: %v", body, err))
		return
	}
	m.WebhookID = request.Header.Get("webhook-id")
	r.record.received(m)
	w.WriteHeader(http.StatusNoContent)
}

// A streamer reads the stream of the tenant from its start, and resumes behind the last id that it has got.
type streamer struct {
	name  string
	world *world
	rng   *rand.Rand
	// restless: it leaves after some events, again and again. Else it stays as long as it can.
	restless bool
	last     string
}

func (s *streamer) run(ctx context.Context) {
	for ctx.Err() == nil {
		r := s.world.replicas[s.rng.IntN(len(s.world.replicas))]
		if err := s.read(ctx, r.base()); err != nil {
			s.world.record.note(s.name + ": " + err.Error())
			sleep(ctx, time.Duration(10+s.rng.IntN(100))*time.Millisecond)
		}
	}
}

// silentFor is how long a stream may be silent: it has a heartbeat at least every 15 s.
const silentFor = 25 * time.Second

// read reads a stream until it ends or the reader leaves.
func (s *streamer) read(ctx context.Context, base string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	path := "/v1/events"
	if s.last == "" {
		path += "?from=start"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return err
	}
	if s.last != "" {
		request.Header.Set("Last-Event-ID", s.last)
	}
	watchdog := time.AfterFunc(silentFor, cancel)
	defer watchdog.Stop()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 500))
		if response.StatusCode < 500 && response.StatusCode != http.StatusTooManyRequests {
			s.world.record.violation("resume", fmt.Sprintf("%s: want status 200 for the id %q, got %d %s", s.name, s.last, response.StatusCode, body))
			s.last = ""
		}
		return errors.New(response.Status)
	}
	leave := -1
	if s.restless {
		leave = 1 + s.rng.IntN(50) // More than are made while it comes back.
	}
	lines := bufio.NewReader(response.Body)
	var e event
	for leave != 0 {
		line, err := lines.ReadString('\n')
		if err != nil {
			return err // What came of an event is not an event.
		}
		watchdog.Reset(silentFor)
		if !e.take(strings.TrimRight(line, "\r\n")) {
			continue
		}
		if e.kind == "error" {
			return s.failed(e)
		}
		if e.hasID {
			s.last = e.id
		}
		if e.data != "" {
			if err := s.got(e); err != nil {
				return err
			}
			leave--
		}
		e = event{}
	}
	return nil
}

// An event is a block of the stream (WHATWG HTML, 9.2.6).
type event struct {
	id, kind, data string
	hasID          bool
}

// take takes a line, and reports whether it ends the block.
func (e *event) take(line string) bool {
	field, value, _ := strings.Cut(line, ":")
	value = strings.TrimPrefix(value, " ")
	switch field {
	case "id":
		e.id, e.hasID = value, true
	case "event":
		e.kind = value
	case "data":
		e.data += value
	}
	return line == ""
}

func (s *streamer) got(e event) error {
	var step struct {
		Instance uuid.UUID `json:"instance_id"`
		Version  int64     `json:"version"`
	}
	if err := json.Unmarshal([]byte(e.data), &step); err != nil {
		s.world.record.violation("stream", fmt.Sprintf("%s: want a step, got %.100q: %v", s.name, e.data, err))
		return err
	}
	epoch, _, _ := check.Place(e.id)
	s.world.record.received(check.Received{
		Receiver: s.name, Instance: step.Instance, Version: step.Version, Epoch: epoch, ID: e.id, Data: json.RawMessage(e.data),
	})
	return nil
}

// failed does what a client does about an error event: after steps-lost it goes on behind the last common position,
// and after other losses of its place it begins anew.
func (s *streamer) failed(e event) error {
	var problem struct {
		Code       string `json:"code"`
		LastCommon string `json:"last_common"`
	}
	if err := json.Unmarshal([]byte(e.data), &problem); err != nil {
		s.world.record.violation("stream", fmt.Sprintf("%s: want a problem, got %.100q: %v", s.name, e.data, err))
		return err
	}
	switch problem.Code {
	case "steps-lost":
		if e.id != problem.LastCommon || e.id == "" {
			s.world.record.violation("resume", fmt.Sprintf("%s: want the last common id in both places, got id %q and last_common %q", s.name, e.id, problem.LastCommon))
		}
		s.world.record.received(check.Received{Receiver: s.name, Lost: true, LastCommon: problem.LastCommon})
		s.last = problem.LastCommon
	case "unknown-event-id", "event-id-too-old":
		s.world.record.violation("resume", fmt.Sprintf("%s: want the id %q to resume, got %s", s.name, s.last, problem.Code))
		s.last = ""
	}
	return errors.New(problem.Code)
}
