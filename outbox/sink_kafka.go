package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// openKafka returns the Sink of a topic. The key of a record is the instance, so that its
// steps are in one partition, in their order. The producer is idempotent, so that the
// client's own retries are dropped; what is published again after an error is not, and has
// the same Event.ID.
func openKafka(u SinkURL, _ io.Writer) (Sink, error) {
	if u.path == "" || strings.Contains(u.path, "/") {
		return nil, u.kind.errUsage("the name of a topic is missing or wrong")
	}
	options := []kgo.Opt{
		kgo.SeedBrokers(u.hosts...),
		kgo.ClientID("pawl"),
		kgo.DefaultProduceTopic(u.path),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchMaxBytes(kafkaBatch),
		// A page is sent when all of it is buffered: if a batch fails, the client fails what is
		// buffered behind it in its partition, but not what comes later.
		kgo.ManualFlushing(),
		kgo.MaxBufferedRecords(kafkaFlush),
		kgo.RequestRetries(2),
		kgo.DialTimeout(handshake),
	}
	if u.flag("create") {
		options = append(options, kgo.AllowAutoTopicCreation())
	}
	if u.tls != nil {
		options = append(options, kgo.DialTLSConfig(u.tls))
	}
	if u.user != nil {
		password, _ := u.user.Password()
		var mechanism sasl.Mechanism
		switch scrams := (scram.Auth{User: u.user.Username(), Pass: password}); cmp.Or(u.query.Get("sasl"), "scram-sha-512") {
		case "plain":
			mechanism = plain.Auth{User: u.user.Username(), Pass: password}.AsMechanism()
		case "scram-sha-256":
			mechanism = scrams.AsSha256Mechanism()
		case "scram-sha-512":
			mechanism = scrams.AsSha512Mechanism()
		default:
			return nil, u.kind.errUsage("sasl is plain, scram-sha-256 or scram-sha-512")
		}
		options = append(options, kgo.SASL(mechanism))
	} else if u.query.Has("sasl") {
		return nil, u.kind.errUsage("sasl is for a user")
	}
	return &broker{name: "Kafka", connect: func(ctx context.Context) (connection, error) {
		return connectKafka(ctx, u.path, u.flag("create"), options)
	}}, nil
}

const (
	// kafkaBatch is the largest batch, a little below what brokers take if nobody has told them
	// otherwise, and kafkaRecord the largest body: the rest is for key, headers and the batch.
	kafkaBatch  = 1000012
	kafkaRecord = kafkaBatch - 1024
	// kafkaFlush is how many records are sent at once.
	kafkaFlush = 1000
)

type kafkaConnection struct {
	client *kgo.Client
}

// connectKafka asks for the topic, which the client would do for itself, to say at once what
// is wrong.
func connectKafka(ctx context.Context, topic string, create bool, options []kgo.Opt) (connection, error) {
	client, err := kgo.NewClient(options...)
	if err != nil {
		return nil, err
	}
	ask := kmsg.NewPtrMetadataRequest()
	ask.Topics = []kmsg.MetadataRequestTopic{{Topic: kmsg.StringPtr(topic)}}
	ask.AllowAutoTopicCreation = create
	answer, err := ask.RequestWith(ctx, client)
	if err == nil && len(answer.Topics) == 1 {
		err = kerr.ErrorForCode(answer.Topics[0].ErrorCode)
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) && !create {
		err = fmt.Errorf("there is no topic %s: create it, or add create=true to the sink: %w", topic, err)
	}
	// A topic that has just been made has no leader yet, which the producer waits for.
	if err != nil && !(create && kerr.IsRetriable(err)) {
		client.Close()
		return nil, err
	}
	return &kafkaConnection{client}, nil
}

// alive: the client reconnects by itself, and knows what it has sent.
func (c *kafkaConnection) alive() bool { return true }

func (c *kafkaConnection) close() { c.client.Close() }

func (c *kafkaConnection) publish(ctx context.Context, messages []brokerMessage) error {
	// A record that the client refuses for its size would not hold up those behind it.
	var tooLarge error
	for i, m := range messages {
		if len(m.body) > kafkaRecord {
			tooLarge = fmt.Errorf("event %s has %d bytes, and a record at most %d", m.id, len(m.body), kafkaRecord)
			messages = messages[:i]
			break
		}
	}
	for len(messages) > 0 {
		n := min(len(messages), kafkaFlush)
		if err := c.flush(ctx, messages[:n]); err != nil {
			return err
		}
		messages = messages[n:]
	}
	return tooLarge
}

func (c *kafkaConnection) flush(ctx context.Context, messages []brokerMessage) error {
	type outcome struct {
		index int
		err   error
	}
	outcomes := make(chan outcome, len(messages))
	for i, m := range messages {
		record := &kgo.Record{
			Key: []byte(m.instance.String()), Value: m.body, Timestamp: m.at,
			Headers: []kgo.RecordHeader{{Key: "content-type", Value: []byte(CloudEventType)}},
		}
		c.client.Produce(ctx, record, func(_ *kgo.Record, err error) { outcomes <- outcome{i, err} })
	}
	if err := c.client.Flush(ctx); err != nil {
		return err
	}
	// What fails first in a partition fails the rest of it.
	first := outcome{index: len(messages)}
	for range messages {
		if o := <-outcomes; o.err != nil && o.index < first.index {
			first = o
		}
	}
	if first.err != nil {
		return fmt.Errorf("event %s: %w", messages[first.index].id, first.err)
	}
	return nil
}
