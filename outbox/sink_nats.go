package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// openNATS returns the Sink of a JetStream stream. Event.ID is the Nats-Msg-Id: within the
// stream's window for duplicates (two minutes, if it does not say otherwise) what is published
// again is dropped. Structured mode is named as the CloudEvents binding for NATS has it.
func openNATS(u SinkURL, _ io.Writer) (Sink, error) {
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
		// The client would send what it has buffered when it has reconnected, which may be
		// when another process publishes. broker reconnects.
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
	// lost is closed with the connection, and refused has what the server says by itself,
	// such as that it does not permit a subject.
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
			err = nil // It is there, made otherwise.
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
	// Close would send what is buffered.
	c.wire.cut()
	c.conn.Close()
}

func (c *natsConnection) publish(ctx context.Context, messages []brokerMessage) error {
	defer context.AfterFunc(ctx, c.wire.cut)()
	for round := range rounds(messages) {
		acks := make([]jetstream.PubAckFuture, len(round))
		for i, m := range round {
			msg := nats.NewMsg(m.subject)
			msg.Data = m.body
			msg.Header.Set("Content-Type", CloudEventType)
			var err error
			// What the client tries again while a stream has no leader comes behind later
			// messages of the round, of which none is of the same instance.
			acks[i], err = c.stream.PublishMsgAsync(msg,
				jetstream.WithMsgID(m.id), jetstream.WithExpectStream(c.target.stream))
			if err != nil {
				return fmt.Errorf("event %s: %w", m.id, err)
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

func (c *natsConnection) explain(m brokerMessage, err error) error {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("no stream takes %s: create %s for %s, or add create=true to the sink", m.subject, c.target.stream, c.target.subjects)
	case errors.As(err, &api) && api.ErrorCode == jetstream.ErrorCode(10060): // as the server names it: JSStreamNotMatchErr
		return fmt.Errorf("another stream than %s takes %s", c.target.stream, m.subject)
	default:
		return fmt.Errorf("event %s: %w", m.id, err)
	}
}
