package sink_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	command "os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// rabbitMQ runs a real RabbitMQ in a folder of its own and returns its address. It runs as the user
// nobody if the tests run as root. The steps are one function since each needs what the one before
// has made, and undoes it at the end. Debian has it as rabbitmq-server: apt-get install rabbitmq-server.
func rabbitMQ(t *testing.T) (addr string) {
	t.Helper()
	script := "/usr/lib/rabbitmq/bin/rabbitmq-server" // Debian's in PATH runs for one user only.
	if _, err := os.Stat(script); err != nil {
		if script, err = command.LookPath("rabbitmq-server"); err != nil {
			t.Skip("there is no rabbitmq-server: apt-get install rabbitmq-server, or brew install rabbitmq")
		}
	}
	epmd, err := command.LookPath("epmd")
	if err != nil {
		t.Skip("there is no epmd beside rabbitmq-server")
	}
	dir, err := os.MkdirTemp("", "pawl-rabbit-") // t.TempDir is below a folder that is ours alone.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	as := &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() == 0 {
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Skip("there is no user nobody to run RabbitMQ as")
		}
		uid, _ := strconv.Atoi(nobody.Uid)
		gid, _ := strconv.Atoi(nobody.Gid)
		as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	ports := []string{bounded.Port(t), bounded.Port(t), bounded.Port(t)}
	addr = "127.0.0.1:" + ports[0]
	for name, text := range map[string]string{
		"rabbitmq.conf": "listeners.tcp.1 = " + addr + "\ndistribution.listener.interface = 127.0.0.1\n",
		"plugins":       "[].\n", "env": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) *bounded.Process {
		p := bounded.Start(t, bounded.Program{
			Path: name, Args: args, Dir: dir, System: as, Env: []string{
				"HOME=" + dir, "ERL_EPMD_PORT=" + ports[1], "RABBITMQ_DIST_PORT=" + ports[2],
				"RABBITMQ_NODENAME=pawl" + ports[0] + "@localhost", "RABBITMQ_MNESIA_BASE=" + dir, "RABBITMQ_LOG_BASE=" + dir, "RABBITMQ_LOGS=-",
				"RABBITMQ_CONFIG_FILE=" + filepath.Join(dir, "rabbitmq.conf"), "RABBITMQ_CONF_ENV_FILE=" + filepath.Join(dir, "env"),
				"RABBITMQ_ENABLED_PLUGINS_FILE=" + filepath.Join(dir, "plugins"),
			},
		})
		t.Cleanup(func() { _ = syscall.Kill(-p.PID, syscall.SIGKILL) }) // With the processes that the script has started.
		return p
	}
	// The broker would leave one behind.
	run(epmd, "-port", ports[1], "-address", "127.0.0.1")
	broker := run(script)
	// It does not say when it listens.
	bounded.True(t, "RabbitMQ to be ready", func() bool {
		if broker.Ended() {
			t.Fatalf("RabbitMQ does not start: %s", broker.Output)
		}
		conn, err := amqp.Dial("amqp://" + addr)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
	return addr
}

// A rabbitQueue is a queue that a consumer has bound to an exchange.
type rabbitQueue struct {
	channel *amqp.Channel
	name    string
}

func bindQueue(t *testing.T, addr, exchange string, keys ...string) *rabbitQueue {
	t.Helper()
	conn, err := amqp.Dial("amqp://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := channel.ExchangeDeclare(exchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	queue, err := channel.QueueDeclare(exchange, true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	q := &rabbitQueue{channel, queue.Name}
	q.bind(t, exchange, keys...)
	return q
}

func (q *rabbitQueue) bind(t *testing.T, exchange string, keys ...string) {
	t.Helper()
	for _, key := range keys {
		if err := q.channel.QueueBind(q.name, key, exchange, false, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// take empties the queue.
func (q *rabbitQueue) take(t *testing.T) (got []received) {
	t.Helper()
	// bounded: it takes one message in each round
	for {
		d, ok, err := q.channel.Get(q.name, true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return got
		}
		if d.DeliveryMode != amqp.Persistent {
			t.Errorf("%s is not persistent", d.MessageId)
		}
		got = append(got, received{id: d.MessageId, subject: d.RoutingKey, contentType: d.ContentType, body: d.Body})
	}
}

func amqpURL(addr, exchange string) string {
	return "amqp://guest:guest@" + addr + "/%2F?exchange=" + exchange + "&key=" + exchange
}

// The parts are one test because they share a broker, which takes seconds to start.
func TestAMQP(t *testing.T) {
	t.Parallel()
	addr := rabbitMQ(t)

	t.Run("a page arrives in order", func(t *testing.T) {
		q := bindQueue(t, addr, "page", "page.#")
		sink := openSink(t, amqpURL(addr, "page"))
		messages := append(page("default", 10, 100), audit(100, "default", "acme")...)
		publish(t, sink, messages)
		got := q.take(t)
		if len(got) != len(messages) {
			t.Errorf("the queue has %d messages, want %d", len(got), len(messages))
		}
		checkOrder(t, messages, got)
		checkBodies(t, messages, got)
		if want := "page.default.flight-booking.created"; got[0].subject != want {
			t.Errorf("the routing key is %s, want %s", got[0].subject, want)
		}
	})

	t.Run("tenants are words", func(t *testing.T) {
		q := bindQueue(t, addr, "odd", "odd.*.*.*")
		var messages []outbox.Message
		for _, tenant := range outboxtest.OddTenants {
			messages = append(messages, page(tenant, 1, 2)...)
		}
		publish(t, openSink(t, amqpURL(addr, "odd")), messages)
		got := q.take(t)
		checkOrder(t, messages, got)
		checkBodies(t, messages, got)
		checkSubjects(t, got)
	})

	t.Run("a connection that is cut in the middle", func(t *testing.T) {
		q := bindQueue(t, addr, "cut", "#")
		p := newProxy(t, addr)
		messages := page("default", 50, 20)
		publishCut(t, openSink(t, amqpURL(p.Addr, "cut")), p, messages)
		checkOrder(t, messages, q.take(t))
	})

	t.Run("a broker that takes no more", func(t *testing.T) {
		q := bindQueue(t, addr, "stall", "#")
		p := newProxy(t, addr)
		sink := openSink(t, amqpURL(p.Addr, "stall"))
		messages := page("default", 50, 20)
		for _, after := range []int{1, 300 << 10} {
			publishStalled(t, sink, p, messages, after)
		}
		publish(t, sink, messages)
		checkOrder(t, messages, q.take(t))
	})

	t.Run("a message that no queue takes holds up what follows it", func(t *testing.T) {
		q := bindQueue(t, addr, "picky", "#.created", "#.timed-out")
		messages := page("default", 1, 3)
		messages[2].Step.Kind = "timeout"
		sink := openSink(t, amqpURL(addr, "picky"))
		refuses(t, sink.Publish(bounded.Context(t), messages),
			"AMQP: no queue takes message "+messages[1].ID(), "bind one to the exchange picky for picky.default.flight-booking.transitioned")
		got := q.take(t)
		if len(got) != 1 {
			t.Errorf("the queue has %d messages, want the first step", len(got))
		}
		q.bind(t, "picky", "#.transitioned")
		publish(t, sink, messages)
		checkOrder(t, messages, append(got, q.take(t)...))
	})

	t.Run("what is missing or wrong is said", func(t *testing.T) {
		messages := page("default", 3, 2)
		refuses(t, openSink(t, amqpURL(addr, "none")).Publish(bounded.Context(t), messages),
			"AMQP: there is no exchange none: declare it, or add create=true")
		refuses(t, openSink(t, amqpURL(addr, "made")+"&create=true").Publish(bounded.Context(t), messages), "AMQP: no queue takes")
		q := bindQueue(t, addr, "made", "#")
		sink := openSink(t, amqpURL(addr, "made")+"&create=true")
		publish(t, sink, messages)
		got := q.take(t)
		checkOrder(t, messages, got)
		// An exchange that is deleted is an error, until it is declared again.
		if err := q.channel.ExchangeDelete("made", false, false); err != nil {
			t.Fatal(err)
		}
		refuses(t, openSink(t, amqpURL(addr, "made")).Publish(bounded.Context(t), messages), "there is no exchange made")
		refuses(t, sink.Publish(bounded.Context(t), messages), "AMQP: ", "NOT_FOUND")
		bindQueue(t, addr, "made", "#")
		publish(t, sink, messages)

		err := openSink(t, fmt.Sprintf("amqp://guest:hunter3@%s/%%2F?exchange=made", addr)).Publish(bounded.Context(t), messages)
		refuses(t, err, "AMQP: ", "403")
		if err != nil && strings.Contains(err.Error(), "hunter3") {
			t.Errorf("the error has the password: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := openSink(t, amqpURL(addr, "made")).Publish(ctx, messages); !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	})
}
