package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/pawl-fsm/pawl/outbox"
)

// openAMQP returns the sink of an exchange of an AMQP 0-9-1 broker, such as RabbitMQ. Messages are
// persistent, mandatory (a message that reaches no queue is an error) and confirmed by the broker.
// AMQP brokers do not drop repeats, so consumers must: the message-id is Message.ID.
func openAMQP(u URL, _ io.Writer) (outbox.Sink, error) {
	prefix, err := u.prefix("key")
	if err != nil {
		return nil, err
	}
	exchange := u.query.Get("exchange")
	if exchange == "" || len(exchange) > 127 {
		return nil, u.kind.errUsage("the name of an exchange is missing or wrong")
	}
	vhost := u.path
	if vhost == "" {
		vhost = "/"
	}
	user, password := "guest", "guest" // The defaults of AMQP.
	if u.user != nil {
		user = u.user.Username()
		password, _ = u.user.Password()
	}
	config := amqp.Config{
		SASL:  []amqp.Authentication{&amqp.PlainAuth{Username: user, Password: password}},
		Vhost: vhost, TLSClientConfig: u.tls, Properties: amqp.NewConnectionProperties(),
	}
	config.Properties.SetClientConnectionName("pawl")
	servers := make([]string, len(u.hosts))
	for i, host := range u.hosts {
		servers[i] = (&url.URL{Scheme: u.kind.scheme, Host: host}).String()
	}
	return &broker{name: "AMQP", prefix: prefix, connect: func(ctx context.Context) (connection, error) {
		return connectAMQP(ctx, servers, exchange, u.flag("create"), config)
	}}, nil
}

type amqpConnection struct {
	exchange string
	wire     *wire
	conn     *amqp.Connection
	channel  *amqp.Channel
	// returned gets each message that no queue took, before its confirmation comes. closed gets
	// the reason for which the broker closed the channel.
	returned chan amqp.Return
	closed   chan *amqp.Error
}

// amqpRound is the most messages in a round, and so the most that can be returned before the
// round is confirmed. The client stops reading when its channel of returned messages is full.
const amqpRound = 1000

func connectAMQP(
	ctx context.Context, servers []string, exchange string, create bool, config amqp.Config,
) (_ connection, err error) {
	c := &amqpConnection{exchange: exchange, wire: &wire{ctx: ctx}}
	defer context.AfterFunc(ctx, c.wire.cut)()
	config.Dial = c.wire.Dial
	for _, server := range servers {
		if config.TLSClientConfig != nil {
			config.TLSClientConfig = config.TLSClientConfig.Clone() // The client sets ServerName in it.
		}
		if c.conn, err = amqp.DialConfig(server, config); err == nil {
			break
		}
	}
	if err != nil {
		c.wire.cut()
		return nil, err
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.channel, err = c.conn.Channel(); err != nil {
		return nil, err
	}
	if create {
		err = c.channel.ExchangeDeclare(exchange, amqp.ExchangeTopic, true, false, false, false, nil)
	} else {
		err = c.channel.ExchangeDeclarePassive(exchange, amqp.ExchangeTopic, true, false, false, false, nil)
	}
	var refused *amqp.Error
	if errors.As(err, &refused) && refused.Code == amqp.NotFound {
		err = fmt.Errorf("there is no exchange %s: declare it, or add create=true to the sink: %w", exchange, err)
	}
	if err != nil {
		return nil, err
	}
	c.returned = c.channel.NotifyReturn(make(chan amqp.Return, amqpRound))
	c.closed = c.channel.NotifyClose(make(chan *amqp.Error, 1))
	return c, c.channel.Confirm(false)
}

func (c *amqpConnection) alive() bool { return !c.conn.IsClosed() && !c.channel.IsClosed() }

func (c *amqpConnection) close() {
	c.wire.cut()
	_ = c.conn.Close()
}

func (c *amqpConnection) publish(ctx context.Context, items []item) error {
	defer context.AfterFunc(ctx, c.wire.cut)()
	for round := range rounds(items) {
		confirmations := make([]*amqp.DeferredConfirmation, len(round))
		for i, m := range round {
			var err error
			confirmations[i], err = c.channel.PublishWithDeferredConfirm(c.exchange, m.subject, true, false, amqp.Publishing{
				ContentType: outbox.CloudEventType, DeliveryMode: amqp.Persistent, MessageId: m.id, Timestamp: m.at,
				AppId: "pawl", Body: m.body,
			})
			if err != nil {
				return c.explain(err)
			}
		}
		for i, confirmation := range confirmations {
			switch acknowledged, err := confirmation.WaitContext(ctx); {
			case err != nil:
				return err
			case !acknowledged:
				return c.explain(fmt.Errorf("the broker refuses message %s", round[i].id))
			}
		}
		select {
		case r := <-c.returned:
			return fmt.Errorf("no queue takes message %s: bind one to the exchange %s for %s (%s)", r.MessageId, c.exchange, r.RoutingKey, r.ReplyText)
		default:
		}
	}
	return nil
}

// explain returns the reason for which the broker closed the channel, if it did, and not the
// error that followed from it. The client passes the reason on shortly after its calls begin to
// fail.
func (c *amqpConnection) explain(err error) error {
	if !c.channel.IsClosed() {
		return err
	}
	select {
	case closed, ok := <-c.closed:
		if ok {
			return closed
		}
	case <-time.After(time.Second):
	}
	return errors.New("the connection is lost")
}
