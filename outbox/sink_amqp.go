package outbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// openAMQP returns the Sink of an exchange of an AMQP 0-9-1 broker, such as RabbitMQ. The
// message-id is Event.ID: brokers of AMQP drop no duplicates, so consumers tell by it. Messages are
// persistent and confirmed, and one that goes to no queue is an error.
func openAMQP(u SinkURL, _ io.Writer) (Sink, error) {
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
	user, password := "guest", "guest" // as AMQP has it
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
	// returned has what no queue took, before its confirmation; closed why the broker closed
	// the channel.
	returned chan amqp.Return
	closed   chan *amqp.Error
}

// amqpRound bounds what is sent before a confirmation, and so what can be returned: the client
// stops reading while nobody takes that.
const amqpRound = 1000

func connectAMQP(
	ctx context.Context, servers []string, exchange string, create bool, config amqp.Config,
) (_ connection, err error) {
	c := &amqpConnection{exchange: exchange, wire: &wire{ctx: ctx}}
	defer context.AfterFunc(ctx, c.wire.cut)()
	config.Dial = c.wire.Dial
	for _, server := range servers {
		if config.TLSClientConfig != nil {
			config.TLSClientConfig = config.TLSClientConfig.Clone() // The client writes the server's name to it.
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

func (c *amqpConnection) publish(ctx context.Context, messages []brokerMessage) error {
	defer context.AfterFunc(ctx, c.wire.cut)()
	for round := range rounds(messages) {
		confirmations := make([]*amqp.DeferredConfirmation, len(round))
		for i, m := range round {
			var err error
			confirmations[i], err = c.channel.PublishWithDeferredConfirm(c.exchange, m.subject, true, false, amqp.Publishing{
				ContentType: CloudEventType, DeliveryMode: amqp.Persistent, MessageId: m.id, Timestamp: m.at,
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
				return c.explain(fmt.Errorf("the broker refuses event %s", round[i].id))
			}
		}
		select {
		case r := <-c.returned:
			return fmt.Errorf("no queue takes event %s: bind one to the exchange %s for %s (%s)", r.MessageId, c.exchange, r.RoutingKey, r.ReplyText)
		default:
		}
	}
	return nil
}

// explain prefers why the broker has closed the channel to what came of that. The client says
// so a moment after it has begun to refuse.
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
