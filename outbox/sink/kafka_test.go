package sink_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// kafkaCluster runs brokers within the test that speak Kafka's protocol: kfake, by the author of
// the client.
func kafkaCluster(t *testing.T, options ...kfake.Opt) (_ *kfake.Cluster, hosts string) {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{
		kfake.NumBrokers(3), kfake.SeedTopics(4, "steps"), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "bob", "hunter2"),
		kfake.Superuser("PLAIN", "eve", "hunter2"),
	}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster, strings.Join(cluster.ListenAddrs(), ",")
}

// consumed reads a topic until the order of every message is known.
func consumed(t *testing.T, cluster *kfake.Cluster, topic string, messages []outbox.Message) (got []received) {
	t.Helper()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumeTopics(topic), kgo.SASL(plainAuth("eve", "hunter2")),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	seen := make(map[string]bool)
	partition := make(map[string]int32)
	ctx := bounded.Context(t)
	// bounded: by the deadline of the context
	for len(seen) < len(messages) {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %d of %d messages: %v", len(seen), len(messages), err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			d := received{key: string(r.Key), body: r.Value}
			for _, h := range r.Headers {
				if h.Key == "content-type" {
					d.contentType = string(h.Value)
				}
			}
			var e struct {
				ID string `json:"id"`
			}
			unmarshal(t, r.Value, &e)
			d.id = e.ID
			if !strings.HasPrefix(d.id, d.key+":") {
				t.Errorf("the key of %s is %s", d.id, d.key)
			}
			if other, ok := partition[d.key]; ok && other != r.Partition {
				t.Errorf("%s is in two partitions", d.key)
			}
			partition[d.key] = r.Partition
			seen[d.id] = true
			got = append(got, d)
		})
	}
	return got
}

func plainAuth(user, password string) sasl.Mechanism {
	return plain.Auth{User: user, Pass: password}.AsMechanism()
}

func portsOf(t *testing.T, addrs []string) (ports []int) {
	t.Helper()
	for _, addr := range addrs {
		a, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, a.Port)
	}
	return ports
}

func kafkaURL(hosts, topic string) string { return "kafka://bob:hunter2@" + hosts + "/" + topic }

// Every message arrives once and in order, though connections are cut.
func TestKafka(t *testing.T) {
	t.Parallel()

	t.Run("pages arrive in order", func(t *testing.T) {
		cluster, hosts := kafkaCluster(t)
		sink := openSink(t, kafkaURL(hosts, "steps"))
		messages := page("default", 20, 75) // more than are sent at once
		for _, tenant := range outboxtest.OddTenants {
			messages = append(messages, page(tenant, 1, 2)...)
		}
		messages = append(messages, audit(100, outboxtest.OddTenants...)...)
		publish(t, sink, messages)
		got := consumed(t, cluster, "steps", messages)
		if len(got) != len(messages) {
			t.Errorf("the topic has %d records, want %d", len(got), len(messages))
		}
		checkOrder(t, messages, got)
		checkBodies(t, messages, got)
	})

	t.Run("connections that are cut, and answers that are lost", func(t *testing.T) {
		cluster, hosts := kafkaCluster(t)
		sink := openSink(t, kafkaURL(hosts, "steps"))
		messages := page("default", 50, 20)
		var cuts atomic.Int32
		cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			if cuts.Add(1) > 3 {
				return nil, nil, false
			}
			cluster.KeepControl()
			return nil, errors.New("cut"), true
		})
		publish(t, sink, messages)
		if cuts.Load() < 4 {
			t.Error("nothing was cut")
		}
		got := consumed(t, cluster, "steps", messages)
		if len(got) != len(messages) {
			t.Errorf("the topic has %d records, want %d: the client's own retries are dropped", len(got), len(messages))
		}
		checkOrder(t, messages, got)
	})
}

// A message that a broker refuses holds up those behind it, and the error says what is wrong.
func TestKafkaRefusals(t *testing.T) {
	t.Parallel()

	t.Run("a batch that is refused holds up what follows it", func(t *testing.T) {
		cluster, hosts := kafkaCluster(t)
		sink := openSink(t, kafkaURL(hosts, "steps"))
		messages := page("default", 50, 60)
		var n atomic.Int32
		cluster.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			if n.Add(1) != 2 {
				return nil, nil, false
			}
			produce := req.(*kmsg.ProduceRequest)
			answer := produce.ResponseKind().(*kmsg.ProduceResponse)
			for _, topic := range produce.Topics {
				out := kmsg.NewProduceResponseTopic()
				out.Topic, out.TopicID = topic.Topic, topic.TopicID
				for _, p := range topic.Partitions {
					partition := kmsg.NewProduceResponseTopicPartition()
					partition.Partition, partition.ErrorCode = p.Partition, kerr.PolicyViolation.Code
					out.Partitions = append(out.Partitions, partition)
				}
				answer.Topics = append(answer.Topics, out)
			}
			return answer, nil, true
		})
		refuses(t, sink.Publish(bounded.Context(t), messages), "Kafka: message ", "POLICY_VIOLATION")
		publish(t, sink, messages)
		checkOrder(t, messages, consumed(t, cluster, "steps", messages))
	})

	t.Run("a message that is too large holds up what follows it", func(t *testing.T) {
		cluster, hosts := kafkaCluster(t)
		sink := openSink(t, kafkaURL(hosts, "steps"))
		messages := page("default", 2, 5)
		large := &messages[4]
		large.Step.Reason = ptr(strings.Repeat("x", 1000000))
		refuses(t, sink.Publish(bounded.Context(t), messages), "Kafka: message "+large.ID()+" has 1", "at most")
		got := consumed(t, cluster, "steps", messages[:4])
		if len(got) != 4 {
			t.Errorf("the topic has %d records, want 4", len(got))
		}
		large.Step.Reason = nil
		publish(t, sink, messages)
		checkOrder(t, messages, consumed(t, cluster, "steps", messages))
	})

	t.Run("what is missing or wrong is said", func(t *testing.T) {
		cluster, hosts := kafkaCluster(t, kfake.AllowAutoTopicCreation())
		messages := page("default", 3, 2)
		refuses(t, openSink(t, kafkaURL(hosts, "none")).Publish(bounded.Context(t), messages),
			"Kafka: there is no topic none: create it, or add create=true")
		publish(t, openSink(t, kafkaURL(hosts, "made")+"?create=true"), messages)
		checkOrder(t, messages, consumed(t, cluster, "made", messages))
		publish(t, openSink(t, "kafka://eve:hunter2@"+hosts+"/steps?sasl=plain"), messages)
		// kfake closes the connection, where Kafka would give the reason.
		err := openSink(t, "kafka://bob:hunter3@"+hosts+"/steps").Publish(bounded.Context(t), messages)
		refuses(t, err, "Kafka: ")
		if err != nil && strings.Contains(err.Error(), "hunter3") {
			t.Errorf("the error has the password: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := openSink(t, kafkaURL(hosts, "steps")).Publish(ctx, slices.Clone(messages)); !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	})
}

// A broker that hangs or is away does not hold up Publish beyond its context, and is found again.
func TestKafkaOutages(t *testing.T) {
	t.Parallel()

	t.Run("a broker that says nothing", func(t *testing.T) {
		cluster, hosts := kafkaCluster(t)
		sink := openSink(t, kafkaURL(hosts, "steps"))
		messages := page("default", 3, 3)
		asked := make(chan struct{}, 1)
		for _, key := range []kmsg.Key{kmsg.Metadata, kmsg.Produce} {
			cluster.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
				asked <- struct{}{}
				return nil, nil, true
			})
			ctx, cancel := context.WithCancel(bounded.Context(t))
			done := make(chan error, 1)
			go func() { done <- sink.Publish(ctx, messages) }()
			bounded.Receive(t, "the broker to be asked", asked)
			cancel()
			if err := bounded.Receive(t, "the page that is given up", done); !errors.Is(err, context.Canceled) {
				t.Fatalf("the error is %v, want that of the context", err)
			}
		}
		publish(t, sink, messages)
		checkOrder(t, messages, consumed(t, cluster, "steps", messages))
	})

	t.Run("brokers that restart", func(t *testing.T) {
		dir := t.TempDir()
		cluster, hosts := kafkaCluster(t, kfake.DataDir(dir))
		sink := openSink(t, kafkaURL(hosts, "steps"))
		messages := page("default", 10, 10)
		publish(t, sink, messages[:50])
		ports := cluster.ListenAddrs()
		cluster.Close()
		// The client would retry for ever.
		ctx, cancel := context.WithCancel(bounded.Context(t))
		done := make(chan error, 1)
		go func() { done <- sink.Publish(ctx, messages) }()
		cancel()
		if err := bounded.Receive(t, "the page that is given up", done); !errors.Is(err, context.Canceled) {
			t.Fatalf("the error is %v, want that of the context", err)
		}
		refuses(t, sink.Publish(bounded.Context(t), messages), "Kafka: ", "connection refused")
		cluster, _ = kafkaCluster(t, kfake.DataDir(dir), kfake.Ports(portsOf(t, ports)...))
		publish(t, sink, messages)
		checkOrder(t, messages, consumed(t, cluster, "steps", messages))
	})
}
