package sink

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

	"github.com/pawl-fsm/pawl/outbox"
)

// An item is a message in the form in which a receiver gets it.
type item struct {
	key, id, subject string
	at               time.Time
	body             []byte
}

// itemsOf writes the messages as CloudEvents, with subjects that begin with prefix.
func itemsOf(messages []outbox.Message, prefix string) ([]item, error) {
	out := make([]item, len(messages))
	for i, m := range messages {
		body, err := m.CloudEvent()
		if err != nil {
			return nil, fmt.Errorf("message %s: %w", m.ID(), err)
		}
		out[i] = item{key: m.Key(), id: m.ID(), subject: subject(prefix, m), at: m.At(), body: body}
	}
	return out, nil
}

// subject is what subscribers filter by: prefix.tenant.workflow.type, where type is the last word
// of the CloudEvent's type, such as transitioned; of a finding it is opened. That of a row of the audit is
// prefix.tenant.action.audit. It has at most 255 bytes, the most that an AMQP
// routing key may have: maxPrefix bounds the prefix, and token each of the other parts.
func subject(prefix string, m outbox.Message) string {
	kind := m.Type()[strings.LastIndexByte(m.Type(), '.')+1:]
	about := m.Workflow()
	if m.Audit != nil {
		about = m.Audit.Action
	}
	return prefix + "." + token(m.Tenant) + "." + token(about) + "." + token(kind)
}

// token turns any string into one token of a subject. It percent-encodes everything but ASCII
// letters, digits, - and _, so that neither dots nor wildcards nor spaces are left. If that is
// longer than 80 bytes, the end is replaced by a tilde and a digest of the whole string.
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

// maxPrefix is the most bytes that the prefix of a subject may have.
const maxPrefix = 64

// rounds splits items into rounds that are sent one after the other, each when the one before is
// confirmed. No round has two items of one key, and an item comes in a later round than
// those of its key before it. A broker may refuse or lose an item in the middle of a round (a
// full stream, a change of leaders) and accept those behind it, and it drops repeats of what it
// has accepted. Since none of those has the same key, the order within the key holds.
func rounds(items []item) iter.Seq[[]item] {
	const (
		most  = 1000
		bytes = 16 << 20 // Servers bound what they buffer for a connection or a stream.
	)
	sent := make(map[string]int)
	var out [][]item
	for _, m := range items {
		n := sent[m.key]
		sent[m.key]++
		if n == len(out) {
			out = append(out, nil)
		}
		out[n] = append(out[n], m)
	}
	return func(yield func([]item) bool) {
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

// A connection is a connection to a broker.
type connection interface {
	// publish returns nil when the broker has confirmed all of the items.
	publish(ctx context.Context, items []item) error
	// alive is false once the connection is known to be lost.
	alive() bool
	// close cuts the connection at once. Nothing that is buffered is sent.
	close()
}

// A broker is the sink of everything that must be connected to. It connects when there is
// something to publish, and anew after any error. So nothing that was given up is sent later,
// between the messages of another process, and a broker that was away is found again.
type broker struct {
	name, prefix string
	connect      func(context.Context) (connection, error)
	conn         connection
	closed       bool
}

var errClosed = errors.New("the sink is closed")

func (b *broker) Publish(ctx context.Context, messages []outbox.Message) error {
	if err := b.publish(ctx, messages); err != nil {
		b.drop()
		if ctx.Err() != nil {
			// A client that is cut fails in many ways. This is the reason.
			err = ctx.Err()
		}
		return fmt.Errorf("%s: %w", b.name, err)
	}
	return nil
}

func (b *broker) publish(ctx context.Context, messages []outbox.Message) error {
	if b.closed {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	items, err := itemsOf(messages, b.prefix)
	if err != nil || len(items) == 0 {
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
	return b.conn.publish(ctx, items)
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

// A wire dials for a client that takes no context. Cutting it unblocks the client: clients block
// on a socket whose peer reads nothing, and ignore the context meanwhile.
type wire struct {
	ctx   context.Context // Bounds the dialling.
	mu    sync.Mutex
	conns []net.Conn
	isCut bool
}

// handshake is the most time that a server may take to accept a client.
const handshake = 10 * time.Second

// Dial is net.Dial with a bound. The deadline that it sets is cleared by the client after the
// handshake.
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
