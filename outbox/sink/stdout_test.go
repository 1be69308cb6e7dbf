package sink_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
	"github.com/pawl-fsm/pawl/outbox/sink"
)

// A gate is a writer that waits until it is opened, and may fail in the middle of a write.
type gate struct {
	bytes.Buffer
	*bounded.Gate
	entered  chan struct{}
	failWith error
}

func (g *gate) Write(p []byte) (int, error) {
	g.entered <- struct{}{}
	g.Pass()
	if g.failWith != nil {
		n, _ := g.Buffer.Write(p[:len(p)/2])
		return n, g.failWith
	}
	return g.Buffer.Write(p)
}

func lines(t *testing.T, r io.Reader) (got []received) {
	t.Helper()
	scanner := bufio.NewScanner(r)
	// bounded: the reader has what was written, and ends
	for scanner.Scan() {
		var e struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(scanner.Bytes(), &e) == nil {
			got = append(got, received{id: e.ID, contentType: outbox.CloudEventType, body: bytes.Clone(scanner.Bytes())})
		}
	}
	return got
}

func TestStdout(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	sink, err := sink.Open("stdout:", &out)
	if err != nil {
		t.Fatal(err)
	}
	var messages []outbox.Message
	for _, tenant := range outboxtest.OddTenants {
		messages = append(messages, page(tenant, 2, 40)...)
	}
	publish(t, sink, messages)
	publish(t, sink, nil)
	if n := strings.Count(out.String(), "\n"); n != len(messages) {
		t.Errorf("there are %d lines, want %d", n, len(messages))
	}
	got := lines(t, &out)
	checkOrder(t, messages, got)
	checkBodies(t, messages, got)
	for range 2 {
		if err := sink.Close(); err != nil {
			t.Error(err)
		}
	}
	refuses(t, sink.Publish(t.Context(), messages), "stdout: the sink is closed")
}

// Publish returns when its context ends, though a reader holds up the stream. After a write that
// failed within a line, the next lines are whole.
func TestStdoutThatStalls(t *testing.T) {
	t.Parallel()
	out := &gate{Gate: bounded.NewGate(t, "the write"), entered: make(chan struct{}, 3)}
	sink := sink.NewWriter(out)
	messages := page("default", 1, 3)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- sink.Publish(ctx, messages) }()
	bounded.Receive(t, "a write", out.entered)
	cancel()
	if err := bounded.Receive(t, "the page that is given up", done); !errors.Is(err, context.Canceled) {
		t.Fatalf("the error is %v", err)
	}
	// The write goes on, and no other begins.
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- sink.Publish(ctx, messages) }()
	cancel()
	if err := bounded.Receive(t, "the page that is given up", done); !errors.Is(err, context.Canceled) {
		t.Fatalf("the error is %v", err)
	}
	select {
	case <-out.entered:
		t.Fatal("two writes at once")
	default:
	}
	out.failWith = errors.New("the disk is full")
	out.Open()
	refuses(t, sink.Publish(t.Context(), messages), "stdout: the disk is full")
	bounded.Receive(t, "another write", out.entered)
	out.failWith = nil
	publish(t, sink, messages)
	got := lines(t, &out.Buffer)
	last := got[len(got)-len(messages):]
	checkOrder(t, messages, last)
	checkBodies(t, messages, last)
}

// Steps are relayed from the database to lines, each once.
func TestRelayToStdout(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewPool(t)
	var out bounded.Lines
	stop := outboxtest.Relay(t, pool, "sink stdout:", sink.NewWriter(&out), outboxtest.Quick)
	var want []string
	for range 3 {
		id := outboxtest.Create(t, pool)
		outboxtest.Add(t, pool, id)
		want = append(want, outboxtest.IDs(id, 1, 2)...)
	}
	var got []string
	for range want {
		var e struct {
			ID string `json:"id"`
		}
		if err := json.Unmarshal([]byte(out.Next(t)), &e); err != nil {
			t.Fatal(err)
		}
		got = append(got, e.ID)
	}
	stop()
	if !slices.Equal(got, want) {
		t.Errorf("the lines are of %s, want %s", fmt.Sprint(got), fmt.Sprint(want))
	}
}
