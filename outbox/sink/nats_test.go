package sink_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pawl-fsm/pawl/internal/bounded"
	"github.com/pawl-fsm/pawl/outbox"
	"github.com/pawl-fsm/pawl/outbox/outboxtest"
)

// natsServer runs the real server within the test.
func natsServer(t *testing.T, dir string, port int) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true,
		Username: "bob", Password: "hunter2",
	})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(bounded.Limit) {
		t.Fatal("nats-server does not start")
	}
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	return s
}

// natsClient returns the JetStream of a consumer.
func natsClient(t *testing.T, s *server.Server) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(s.ClientURL(), nats.UserInfo("bob", "hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// streamed reads all messages of a stream.
func streamed(t *testing.T, js jetstream.JetStream, name string) (got []received) {
	t.Helper()
	stream, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, received{
			id: m.Header.Get("Nats-Msg-Id"), subject: m.Subject, contentType: m.Header.Get("Content-Type"), body: m.Data,
		})
	}
	return got
}

func natsURL(addr, stream, query string) string {
	return "nats://bob:hunter2@" + addr + "/" + stream + query
}

// The parts are one test because they share a server.
func TestNATS(t *testing.T) {
	t.Parallel()
	s := natsServer(t, t.TempDir(), -1)
	addr := s.Addr().String()
	js := natsClient(t, s)

	t.Run("a page arrives once and in order, however often it is published", func(t *testing.T) {
		sink := openSink(t, natsURL(addr, "ONCE", "?subject=once&create=true"))
		messages := page("default", 10, 100)
		for range 2 {
			publish(t, sink, messages)
		}
		// The same holds for another process, which finds the stream there.
		publish(t, openSink(t, natsURL(addr, "ONCE", "?subject=once&create=true")), messages)
		got := streamed(t, js, "ONCE")
		if len(got) != len(messages) {
			t.Errorf("the stream has %d messages, want %d", len(got), len(messages))
		}
		checkOrder(t, messages, got)
		checkBodies(t, messages, got)
		if want := "once.default.flight-booking.created"; got[0].subject != want {
			t.Errorf("the subject is %s, want %s", got[0].subject, want)
		}
	})

	t.Run("the audit comes in its order, whatever the tenants", func(t *testing.T) {
		sink := openSink(t, natsURL(addr, "AUDIT", "?subject=audited&create=true"))
		messages := audit(50, outboxtest.OddTenants...)
		for range 2 {
			publish(t, sink, messages)
		}
		got := streamed(t, js, "AUDIT")
		if len(got) != len(messages) {
			t.Errorf("the stream has %d messages, want %d", len(got), len(messages))
		}
		checkOrder(t, messages, got)
		checkBodies(t, messages, got)
		if want := "audited.default.workflow%2Eregister.audit"; got[0].subject != want {
			t.Errorf("the subject is %s, want %s", got[0].subject, want)
		}
	})

	t.Run("tenants are tokens", func(t *testing.T) {
		sink := openSink(t, natsURL(addr, "ODD", "?subject=odd&create=true"))
		var messages []outbox.Message
		for _, tenant := range outboxtest.OddTenants {
			messages = append(messages, page(tenant, 1, 2)...)
		}
		publish(t, sink, messages)
		got := streamed(t, js, "ODD")
		checkOrder(t, messages, got)
		checkBodies(t, messages, got)
		checkSubjects(t, got)
	})

	t.Run("a connection that is cut in the middle", func(t *testing.T) {
		p := newProxy(t, addr)
		sink := openSink(t, natsURL(p.Addr, "CUT", "?subject=cut&create=true"))
		messages := page("default", 50, 20)
		publishCut(t, sink, p, messages)
		got := streamed(t, js, "CUT")
		if len(got) != len(messages) {
			t.Errorf("the stream has %d messages, want %d", len(got), len(messages))
		}
		checkOrder(t, messages, got)
	})

	t.Run("a server that takes no more", func(t *testing.T) {
		p := newProxy(t, addr)
		sink := openSink(t, natsURL(p.Addr, "STALL", "?subject=stall&create=true"))
		messages := page("default", 50, 20)
		for _, after := range []int{1, 300 << 10} {
			publishStalled(t, sink, p, messages, after)
		}
		publish(t, sink, messages)
		checkOrder(t, messages, streamed(t, js, "STALL"))
	})

	t.Run("a message that is refused holds up what follows it", func(t *testing.T) {
		config := jetstream.StreamConfig{Name: "SMALL", Subjects: []string{"small.>"}, MaxMsgSize: 20 << 10}
		if _, err := js.CreateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		sink := openSink(t, natsURL(addr, "SMALL", "?subject=small"))
		messages := page("default", 2, 5)
		large := &messages[4] // the third step of the first instance
		large.Step.Reason = ptr(strings.Repeat("x", 30<<10))
		err := sink.Publish(bounded.Context(t), messages)
		refuses(t, err, "JetStream: message "+large.ID(), "maximum")
		if got := streamed(t, js, "SMALL"); len(got) < 4 || len(got) > 5 {
			t.Errorf("the stream has %d messages, want what comes before %s, and the same step of the other", len(got), large.ID())
		}
		config.MaxMsgSize = -1
		if _, err := js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		publish(t, sink, messages)
		got := streamed(t, js, "SMALL")
		if len(got) != len(messages) {
			t.Errorf("the stream has %d messages, want %d", len(got), len(messages))
		}
		checkOrder(t, messages, got)
	})

	t.Run("what is missing or wrong is said", func(t *testing.T) {
		messages := page("default", 3, 2)
		refuses(t, openSink(t, natsURL(addr, "NONE", "?subject=none")).Publish(bounded.Context(t), messages),
			"JetStream: no stream takes none.default.flight-booking.created: create NONE for none.>, or add create=true")
		if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other.>"}}); err != nil {
			t.Fatal(err)
		}
		refuses(t, openSink(t, natsURL(addr, "MINE", "?subject=other")).Publish(bounded.Context(t), messages), "another stream than MINE takes")
		err := openSink(t, "nats://bob:hunter3@"+addr+"/NONE").Publish(bounded.Context(t), messages)
		refuses(t, err, "JetStream: ", "Authorization")
		if err != nil && strings.Contains(err.Error(), "hunter3") {
			t.Errorf("the error has the password: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := openSink(t, natsURL(addr, "ONCE", "?subject=once")).Publish(ctx, messages); !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	})
}

// A sink finds its server again after a restart.
func TestNATSRestarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := natsServer(t, dir, -1)
	addr, port := s.Addr().String(), s.Addr().(*net.TCPAddr).Port
	sink := openSink(t, natsURL(addr, "STEPS", "?create=true"))
	messages := page("default", 10, 10)
	publish(t, sink, messages[:50])
	s.Shutdown()
	s.WaitForShutdown()
	if err := sink.Publish(bounded.Context(t), messages); err == nil {
		t.Fatal("nobody noticed that the server is away")
	}
	s = natsServer(t, dir, port)
	publish(t, sink, messages)
	got := streamed(t, natsClient(t, s), "STEPS")
	if len(got) != len(messages) {
		t.Errorf("the stream has %d messages, want %d", len(got), len(messages))
	}
	checkOrder(t, messages, got)
}

// checkSubjects wants a subject of four plain tokens for each tenant.
func checkSubjects(t *testing.T, got []received) {
	t.Helper()
	tenants := make(map[string]string)
	for _, d := range got {
		tokens := strings.Split(d.subject, ".")
		if len(tokens) != 4 || len(d.subject) > 255 || bytes.ContainsAny([]byte(d.subject), " *>#\r\n\t") {
			t.Errorf("the subject is %q", d.subject)
			continue
		}
		var e struct {
			Tenant string `json:"tenantid"`
		}
		unmarshal(t, d.body, &e)
		if other, ok := tenants[tokens[1]]; ok && other != e.Tenant {
			t.Errorf("tenants %q and %q are both %s", other, e.Tenant, tokens[1])
		}
		tenants[tokens[1]] = e.Tenant
	}
	if len(tenants) != len(outboxtest.OddTenants) {
		t.Errorf("there are %d tenants, want %d", len(tenants), len(outboxtest.OddTenants))
	}
}

func ptr[T any](v T) *T { return &v }
