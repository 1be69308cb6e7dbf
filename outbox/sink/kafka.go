package sink

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

	"github.com/pawl-fsm/pawl/outbox"
)

// openKafka returns the sink of a topic. The key of a record is Message.Key, so all messages of
// an instance, and the whole audit, are in one partition each, in order. The producer is idempotent, so the broker drops the
// client's own retries. It does not drop a page that the relay publishes again; consumers can,
// since the CloudEvent has the same id.
func openKafka(u URL, _ io.Writer) (outbox.Sink, error) {
	if u.path == "" || strings.Contains(u.path, "/") {
		return nil, u.kind.errUsage("the name of a topic is missing or wrong")
	}
	options := []kgo.Opt{
		kgo.SeedBrokers(u.hosts...),
		kgo.ClientID("pawl"),
		kgo.DefaultProduceTopic(u.path),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchMaxBytes(kafkaBatch),
		// A page is sent when all of it is buffered. If a batch fails, the client fails the records
		// that are buffered behind it in its partition, but not records that are added later.
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
	// kafkaBatch is the most bytes of a batch, a little below the brokers' default limit.
	// kafkaRecord is the most bytes of a body: the rest is for the key, headers and the batch.
	kafkaBatch  = 1000012
	kafkaRecord = kafkaBatch - 1024
	// kafkaFlush is the most records that are sent at once.
	kafkaFlush = 1000
)

type kafkaConnection struct {
	client *kgo.Client
}

// connectKafka asks for the topic first, so that a missing topic or a wrong password is an error
// at once. The client itself would keep asking.
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
	// A topic that has just been created has no leader yet. The producer waits for one.
	if err != nil && !(create && kerr.IsRetriable(err)) {
		client.Close()
		return nil, err
	}
	return &kafkaConnection{client}, nil
}

// alive is always true: the client reconnects by itself, and knows what it has sent.
func (c *kafkaConnection) alive() bool { return true }

func (c *kafkaConnection) close() { c.client.Close() }

func (c *kafkaConnection) publish(ctx context.Context, items []item) error {
	// The client would refuse a record that is too large and accept those behind it, out of their
	// order. So nothing from that record on is sent.
	var tooLarge error
	for i, m := range items {
		if len(m.body) > kafkaRecord {
			tooLarge = fmt.Errorf("message %s has %d bytes, and a record at most %d", m.id, len(m.body), kafkaRecord)
			items = items[:i]
			break
		}
	}
	for len(items) > 0 {
		n := min(len(items), kafkaFlush)
		if err := c.flush(ctx, items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return tooLarge
}

func (c *kafkaConnection) flush(ctx context.Context, items []item) error {
	type outcome struct {
		index int
		err   error
	}
	outcomes := make(chan outcome, len(items))
	for i, m := range items {
		record := &kgo.Record{
			Key: []byte(m.key), Value: m.body, Timestamp: m.at,
			Headers: []kgo.RecordHeader{{Key: "content-type", Value: []byte(outbox.CloudEventType)}},
		}
		c.client.Produce(ctx, record, func(_ *kgo.Record, err error) { outcomes <- outcome{i, err} })
	}
	if err := c.client.Flush(ctx); err != nil {
		return err
	}
	// The first record that fails in a partition is the reason that the rest of it fails.
	first := outcome{index: len(items)}
	for range items {
		if o := <-outcomes; o.err != nil && o.index < first.index {
			first = o
		}
	}
	if first.err != nil {
		return fmt.Errorf("message %s: %w", items[first.index].id, first.err)
	}
	return nil
}
