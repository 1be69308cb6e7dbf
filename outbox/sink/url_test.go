package sink_test

import (
	"io"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/outbox/sink"
)

func TestSinkURLs(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 251)
	for _, c := range []struct{ raw, want string }{
		{"stdout:", "sink stdout:"},
		{"stdout://", "sink stdout:"},
		{"stdout:?from=start&consumer=lines", "sink lines"},
		{"stdout:?audit=true", "sink stdout:"},
		{"kafka://host/steps?audit=true&consumer=lines", "sink lines"},
		{"stdout:?audit=false", "sink stdout:"},
		{"stdout:?findings=true", "sink stdout:"},
		{"stdout:?findings=false&audit=true", "sink stdout:"},
		{"nats://bob:hunter2@host:4222/STEPS?subject=a.b&create=true", "sink nats://host/STEPS"},
		{"nats://bob:hunter2@one,two:4333/STEPS", "sink nats://one,two:4333/STEPS"},
		{"tls://host/STEPS?token=hunter2", "sink tls://host/STEPS"},
		{"kafka://bob:hunter2@[::1]:9092,two:9093/steps?sasl=plain", "sink kafka://[::1],two:9093/steps"},
		{"amqps://bob:h%40%2Funter2@host/%2Fv?exchange=x", "sink amqps://host/%2Fv"},
		{"AMQP://host?exchange=x", "sink amqp://host/"},
	} {
		u, err := sink.Parse(c.raw)
		if err != nil || u.Consumer != c.want || u.FromStart != strings.Contains(c.raw, "from=start") {
			t.Errorf("%s is the consumer %q, want %q: %v", c.raw, u.Consumer, c.want, err)
		}
		audit := ""
		if strings.Contains(c.raw, "audit=true") {
			audit = "audit " + strings.TrimPrefix(c.want, "sink ")
		}
		if u.Findings != strings.Contains(c.raw, "findings=true") {
			t.Errorf("%s asks for findings: %v", c.raw, u.Findings)
		}
		if u.AuditConsumer != audit {
			t.Errorf("%s reads the audit as %q, want %q", c.raw, u.AuditConsumer, audit)
		}
	}
	for _, c := range []struct{ raw, want string }{
		{"", "write stdout:, nats://"},
		{"nats", "write stdout:, nats://"},
		{"redis://bob:hunter2@host", "unknown scheme"},
		{"hunter2", "unknown scheme"},
		{"stdout:hunter2", "write stdout:"},
		{"stdout:?subject=a", "its query has consumer, from, findings, audit, each once"},
		{"nats:host/STEPS", "// is missing"},
		{"nats://bob:hunter2@host", "the name of a stream"},
		{"nats://bob:hunter2@host/a.b", "the name of a stream"},
		{"nats://bob:hunter2@/STEPS", "a host is missing"},
		{"nats://bob:hunter2@host:99999/STEPS", "a host or its port is wrong"},
		{"nats://bob:hunter2@one:1:2/STEPS", "more than one port"},
		{"nats://bob:hun/ter2@host/STEPS", "cannot be read"},
		{"nats://bob:1/hunter2@host/STEPS", "cannot be read"},
		{"nats://bob:hun%zzter2@host/STEPS", "percent-encoded"},
		{"nats://bob:hunter2@host/STEPS#a", "cannot be read"},
		{"nats://host/STEPS?token=hunter2&x%zz", "its query cannot be read"},
		{"nats://host/STEPS?token=hunter2&hunter2=1", "its query has consumer, from, findings, audit, subject"},
		{"nats://host/STEPS?from=hunter2", "from is start"},
		{"nats://host/STEPS?create=hunter2", "create is true or false"},
		{"nats://host/STEPS?audit=hunter2", "audit is true or false"},
		{"nats://host/STEPS?findings=hunter2", "findings is true or false"},
		{"nats://host/STEPS?subject=a..b", "subject is words"},
		{"nats://host/STEPS?subject=" + long, "subject is words"},
		{"nats://host/STEPS?consumer=" + long, "consumer=NAME"},
		{"kafka://bob:hunter2@host", "the name of a topic"},
		{"kafka://bob:hunter2@host/t?sasl=none", "sasl is plain"},
		{"kafka://host/t?sasl=plain", "sasl is for a user"},
		{"kafka://host/t?cacertfile=/nowhere", "cacertfile"},
		{"amqp://bob:hunter2@host/v", "the name of an exchange"},
		{"amqp://host/v?exchange=x&key=a*", "key is words"},
		{"amqp://host/v?exchange=x&certfile=y", "amqps://"},
	} {
		_, err := sink.Open(c.raw, io.Discard)
		refuses(t, err, c.want)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s is refused with its password: %v", c.raw, err)
		}
	}
}
