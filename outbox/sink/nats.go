package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pawl-fsm/pawl/outbox"
)

// openNATS returns the sink of a JetStream stream. The Nats-Msg-Id is Message.ID: the stream drops
// what is published again within its duplicate window (two minutes by default). The content type
// is that of the NATS protocol binding for CloudEvents in structured mode.
func openNATS(u URL, _ io.Writer) (outbox.Sink, error) {
	prefix, err := u.prefix("subject")
	switch {
	case err != nil:
		return nil, err
	case u.path == "" || strings.ContainsAny(u.path, " \t\r\n.*>/\\"):
		return nil, u.kind.errUsage("the name of a stream is missing or wrong")
	}
	servers := make([]string, len(u.hosts))
	for i, host := range u.hosts {
		servers[i] = "nats://" + host
	}
	options := []nats.Option{
		nats.Name("pawl"),
		// On reconnecting, the client would send what it has buffered, perhaps while another
		// process leads and publishes. The broker connects anew instead.
		nats.NoReconnect(),
		nats.Timeout(handshake),
	}
	if u.tls != nil {
		options = append(options, nats.Secure(u.tls))
	}
	if u.user != nil {
		password, _ := u.user.Password()
		options = append(options, nats.UserInfo(u.user.Username(), password))
	}
	if token := u.query.Get("token"); token != "" {
		options = append(options, nats.Token(token))
	}
	if file := u.query.Get("creds"); file != "" {
		options = append(options, nats.UserCredentials(file))
	}
	target := natsTarget{stream: u.path, subjects: prefix + ".>", create: u.flag("create")}
	return &broker{name: "JetStream", prefix: prefix, connect: func(ctx context.Context) (connection, error) {
		return connectNATS(ctx, strings.Join(servers, ","), target, options)
	}}, nil
}

type natsTarget struct {
	stream, subjects string
	create           bool
}

type natsConnection struct {
	target natsTarget
	wire   *wire
	conn   *nats.Conn
	stream jetstream.JetStream
	// lost is closed when the connection is. refused gets errors that the server sends without
	// being asked, such as that a subject is not permitted.
	lost    chan struct{}
	refused chan error
}

func connectNATS(ctx context.Context, servers string, target natsTarget, options []nats.Option) (connection, error) {
	c := &natsConnection{target: target, wire: &wire{ctx: ctx}, lost: make(chan struct{}), refused: make(chan error, 1)}
	defer context.AfterFunc(ctx, c.wire.cut)()
	options = append(options[:len(options):len(options)],
		nats.SetCustomDialer(c.wire),
		nats.ClosedHandler(func(*nats.Conn) { close(c.lost) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			select {
			case c.refused <- err:
			default:
			}
		}))
	var err error
	if c.conn, err = nats.Connect(servers, options...); err != nil {
		return nil, err
	}
	if c.stream, err = jetstream.New(c.conn); err == nil && target.create {
		_, err = c.stream.CreateStream(ctx, jetstream.StreamConfig{Name: target.stream, Subjects: []string{target.subjects}})
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			err = nil // It exists, with another configuration.
		}
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *natsConnection) alive() bool { return !c.conn.IsClosed() }

func (c *natsConnection) close() {
	// Close alone would send what is buffered.
	c.wire.cut()
	c.conn.Close()
}

func (c *natsConnection) publish(ctx context.Context, items []item) error {
	defer context.AfterFunc(ctx, c.wire.cut)()
	for round := range rounds(items) {
		acks := make([]jetstream.PubAckFuture, len(round))
		for i, m := range round {
			msg := nats.NewMsg(m.subject)
			msg.Data = m.body
			msg.Header.Set("Content-Type", outbox.CloudEventType)
			var err error
			// While a stream has no leader the client retries a message, which then comes behind
			// later ones of its round. None of those is of the same instance.
			acks[i], err = c.stream.PublishMsgAsync(msg,
				jetstream.WithMsgID(m.id), jetstream.WithExpectStream(c.target.stream))
			if err != nil {
				return fmt.Errorf("message %s: %w", m.id, err)
			}
		}
		for i, ack := range acks {
			select {
			case <-ack.Ok():
			case err := <-ack.Err():
				return c.explain(round[i], err)
			case err := <-c.refused:
				return err
			case <-c.lost:
				return errors.New("the connection is lost")
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

func (c *natsConnection) explain(m item, err error) error {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("no stream takes %s: create %s for %s, or add create=true to the sink", m.subject, c.target.stream, c.target.subjects)
	case errors.As(err, &api) && api.ErrorCode == jetstream.ErrorCode(10060): // JSStreamNotMatchErr in the server.
		return fmt.Errorf("another stream than %s takes %s", c.target.stream, m.subject)
	default:
		return fmt.Errorf("message %s: %w", m.id, err)
	}
}
