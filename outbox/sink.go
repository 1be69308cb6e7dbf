package outbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// A Sink is where events are published: a broker, or a stream.
type Sink interface {
	// Publish returns when the receiver has all of the events for good, in their order per
	// instance at least. With an error some of them may have got there; the same events, and
	// none after them, are then published again. The events are not kept after the call.
	Publish(ctx context.Context, events []Event) error
	// Close lets go of the receiver. Nothing is published after it.
	Close() error
}

// A brokerMessage is an event as a broker gets it.
type brokerMessage struct {
	tenant   string
	instance uuid.UUID
	id       string
	subject  string
	at       time.Time
	body     []byte
}

// messagesOf writes the events, with subjects that begin with prefix.
func messagesOf(events []Event, prefix string) ([]brokerMessage, error) {
	out := make([]brokerMessage, len(events))
	for i, e := range events {
		body, err := e.CloudEvent()
		if err != nil {
			return nil, fmt.Errorf("event %s: %w", e.ID(), err)
		}
		out[i] = brokerMessage{
			tenant: e.Tenant, instance: e.Instance.ID, id: e.ID(), subject: subject(prefix, e), at: e.Step.At, body: body,
		}
	}
	return out, nil
}

// subject is what subscribers choose by: prefix.tenant.workflow.type, where type is what comes
// last in that of the CloudEvent, such as transitioned. It has at most 255 bytes, which is all
// that a routing key of AMQP has room for, since maxPrefix bounds the prefix.
func subject(prefix string, e Event) string {
	kind := e.Type()[strings.LastIndexByte(e.Type(), '.')+1:]
	return prefix + "." + token(e.Tenant) + "." + token(e.Instance.Workflow) + "." + token(kind)
}

// token makes any string one token of a subject: what is not an ASCII letter, a digit, - or _
// is percent-encoded, so that neither dots nor wildcards nor spaces are left. Of what would
// be longer than 80 bytes the end gives way to a digest, after a tilde.
func token(s string) string {
	const longest, digest, hexes = 80, 16, "0123456789ABCDEF"
	var b strings.Builder
	keep := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '-', c == '_', '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', hexes[c>>4], hexes[c&15]})
		}
		if b.Len() <= longest-digest-1 {
			keep = b.Len()
		}
	}
	if b.Len() <= longest {
		return b.String()
	}
	sum := sha256.Sum256([]byte(s))
	return b.String()[:keep] + "~" + hex.EncodeToString(sum[:digest/2])
}

// maxPrefix is how long the first part of a subject may be.
const maxPrefix = 64

// rounds cuts messages into runs of which a broker may get all at once and accept any: no run
// has two of one instance, and what comes after a message of its instance is in a later run.
// A broker that refuses or loses one in the middle (a full stream, a change of leaders) may
// accept those behind it, and what it has is not published again where it deduplicates: so
// an instance's next step is sent when the one before is acknowledged, not earlier.
func rounds(messages []brokerMessage) iter.Seq[[]brokerMessage] {
	const (
		most  = 1000
		bytes = 16 << 20 // Servers bound what they buffer for a connection or a stream.
	)
	type instance struct {
		tenant string
		id     uuid.UUID
	}
	steps := make(map[instance]int)
	var out [][]brokerMessage
	for _, m := range messages {
		i := instance{m.tenant, m.instance}
		n := steps[i]
		steps[i]++
		if n == len(out) {
			out = append(out, nil)
		}
		out[n] = append(out[n], m)
	}
	return func(yield func([]brokerMessage) bool) {
		for _, round := range out {
			for len(round) > 0 {
				n, size := 0, 0
				for n < len(round) && n < most && (n == 0 || size+len(round[n].body) <= bytes) {
					size += len(round[n].body)
					n++
				}
				if !yield(round[:n]) {
					return
				}
				round = round[n:]
			}
		}
	}
}

// A connection is to a broker.
type connection interface {
	// publish returns when the broker has the messages for good.
	publish(ctx context.Context, messages []brokerMessage) error
	// alive is false once the connection is known to be lost.
	alive() bool
	// close cuts it, at once.
	close()
}

// A broker is the Sink of what is connected to. It connects when there is something to
// publish, and anew after any error: so nothing that was given up is sent later, between
// what another process publishes, and a broker that was away is found again.
type broker struct {
	name, prefix string
	connect      func(context.Context) (connection, error)
	conn         connection
	closed       bool
}

var errClosed = errors.New("the sink is closed")

func (b *broker) Publish(ctx context.Context, events []Event) error {
	if err := b.publish(ctx, events); err != nil {
		b.drop()
		if ctx.Err() != nil {
			// Of the ways in which a client fails when it is cut, this one says why.
			err = ctx.Err()
		}
		return fmt.Errorf("%s: %w", b.name, err)
	}
	return nil
}

func (b *broker) publish(ctx context.Context, events []Event) error {
	if b.closed {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	messages, err := messagesOf(events, b.prefix)
	if err != nil || len(messages) == 0 {
		return err
	}
	if b.conn != nil && !b.conn.alive() {
		b.drop()
	}
	if b.conn == nil {
		if b.conn, err = b.connect(ctx); err != nil {
			b.conn = nil
			return err
		}
	}
	return b.conn.publish(ctx, messages)
}

func (b *broker) drop() {
	if b.conn != nil {
		b.conn.close()
		b.conn = nil
	}
}

func (b *broker) Close() error {
	b.drop()
	b.closed = true
	return nil
}

// A wire dials for a client that takes no context, and is cut when one ends: clients block
// on a socket that takes no more, whatever they are told.
type wire struct {
	ctx   context.Context // that of the dialling
	mu    sync.Mutex
	conns []net.Conn
	isCut bool
}

// handshake is the longest that a server may take to greet.
const handshake = 10 * time.Second

// Dial is net.Dial, bounded. Clients clear the deadline when they have greeted.
func (w *wire) Dial(network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: handshake}
	conn, err := dialer.DialContext(w.ctx, network, address)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isCut {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	w.conns = append(w.conns, conn)
	return conn, conn.SetDeadline(time.Now().Add(handshake))
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = true
	for _, conn := range w.conns {
		_ = conn.Close()
	}
	w.conns = nil
}
