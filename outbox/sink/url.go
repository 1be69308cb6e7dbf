package sink

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/pawl-fsm/pawl/outbox"
)

// A URL says where and how to publish. The schemes, with optional parts in brackets:
//
//	stdout:
//	nats://[user:password@]host[:4222][,host…]/STREAM     tls:// for TLS
//	kafka://[user:password@]host[:9092][,host…]/TOPIC
//	amqp://[user:password@]host[:5672][,host…][/vhost]    amqps:// for TLS
//
// Every scheme takes four options as its query: consumer=NAME gives the consumer another name,
// from=start makes a new consumer begin with the first step, or row of the audit, that there is,
// findings=true publishes the findings that are opened too, and audit=true the rows of the audit. Users and passwords are percent-encoded where a URL
// requires it. The other options:
//
//   - subject=pawl (nats), key=pawl (amqp): the prefix of subjects and routing keys. Behind it
//     come the tenant, the workflow and the last word of the message's type, as in
//     pawl.default.door.transitioned. In each of these, everything but letters, digits, - and _
//     is percent-encoded.
//   - exchange=NAME (amqp): the exchange; required.
//   - create=true: creates the stream, the topic or the exchange if it is missing.
//   - token=…, creds=FILE (nats): credentials other than user and password.
//   - sasl=plain, scram-sha-256 or scram-sha-512 (kafka): how a user logs in. Default
//     scram-sha-512.
//   - tls=true (kafka), and cacertfile, certfile, keyfile (all but stdout): TLS, with PEM files.
type URL struct {
	// Consumer is the name of the consumer for [outbox.NewRelay]: "sink " and then NAME of
	// consumer=NAME, or else the URL without credentials and query. A receiver that moves to
	// another host is a new consumer unless it has such a name.
	Consumer string
	// FromStart and Findings are for [outbox.RelayConfig].
	FromStart, Findings bool
	// AuditConsumer is the name of the consumer of the audit: as Consumer, with "audit " for "sink ". It is empty without
	// audit=true.
	AuditConsumer string

	kind  *kind
	user  *url.Userinfo
	hosts []string
	path  string
	query url.Values
	tls   *tls.Config
}

// A kind is what one scheme means.
type kind struct {
	scheme, port, usage string
	options             []string
	open                func(URL, io.Writer) (outbox.Sink, error)
}

var (
	tlsOptions = []string{"cacertfile", "certfile", "keyfile"}

	natsOptions  = append([]string{"subject", "create", "token", "creds"}, tlsOptions...)
	kafkaOptions = append([]string{"create", "sasl", "tls"}, tlsOptions...)
	amqpOptions  = append([]string{"exchange", "key", "create"}, tlsOptions...)

	kinds = []*kind{
		{"stdout", "", "stdout:", nil, openStdout},
		{"nats", "4222", "nats://[user:password@]host[:4222]/STREAM[?subject=pawl]", natsOptions, openNATS},
		{"tls", "4222", "tls://[user:password@]host[:4222]/STREAM[?subject=pawl]", natsOptions, openNATS},
		{"kafka", "9092", "kafka://[user:password@]host[:9092]/TOPIC", kafkaOptions, openKafka},
		{"amqp", "5672", "amqp://[user:password@]host[:5672]/vhost?exchange=NAME", amqpOptions, openAMQP},
		{"amqps", "5671", "amqps://[user:password@]host[:5671]/vhost?exchange=NAME", amqpOptions, openAMQP},
	}
)

// errUsage returns the error of a URL that is refused. It shows no part of the URL, which may hold
// a password even where none belongs.
func (k *kind) errUsage(why string) error {
	return fmt.Errorf("sink %s: %s; write %s", k.scheme, why, k.usage)
}

// Parse reads a URL, and the files that it names. An error is one line, says what to write, and
// shows no credentials.
func Parse(raw string) (URL, error) {
	scheme, rest, found := strings.Cut(raw, ":")
	i := slices.IndexFunc(kinds, func(k *kind) bool { return k.scheme == strings.ToLower(scheme) })
	if !found || i < 0 {
		return URL{}, errors.New("sink: unknown scheme; write stdout:, nats://…, tls://…, kafka://…, amqp://… or amqps://…")
	}
	u := URL{kind: kinds[i]}
	rest, found = strings.CutPrefix(rest, "//")
	if !found && u.kind.port != "" {
		return u, u.kind.errUsage("// is missing")
	}
	// net/url reads one host with one port only, so the hosts are read here.
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	authority := rest[:end]
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		parsed, err := url.Parse("//" + authority[:at] + "@host")
		if err != nil || parsed.User == nil {
			return u, u.kind.errUsage("the user or the password is not percent-encoded")
		}
		u.user, authority = parsed.User, authority[at+1:]
	}
	parsed, err := url.Parse("//host" + rest[end:])
	if err != nil || parsed.Fragment != "" || strings.Contains(parsed.EscapedPath(), "@") {
		return u, u.kind.errUsage("what follows the host cannot be read (/, ?, #, @ and % in a password are percent-encoded)")
	}
	if u.path, u.query = strings.TrimPrefix(parsed.Path, "/"), parsed.Query(); !validQuery(parsed.RawQuery) {
		return u, u.kind.errUsage("its query cannot be read")
	}
	if err := u.readHosts(authority); err != nil {
		return u, err
	}
	if err := u.readOptions(); err != nil {
		return u, err
	}
	name := cmp.Or(u.query.Get("consumer"), u.String())
	u.Consumer = "sink " + name
	if u.flag("audit") {
		u.AuditConsumer = "audit " + name
	}
	if len(name) > 255-len("audit ") {
		return u, u.kind.errUsage("the name of its consumer is too long: give it a shorter one with consumer=NAME")
	}
	_, err = u.Open(io.Discard) // Checks the rules of the kind. It does not connect.
	return u, err
}

func validQuery(raw string) bool {
	_, err := url.ParseQuery(raw)
	return err == nil
}

func (u *URL) readHosts(authority string) error {
	if u.kind.port == "" {
		if authority != "" || u.user != nil || u.path != "" {
			return u.kind.errUsage("nothing but a query may follow")
		}
		return nil
	}
	for host := range strings.SplitSeq(authority, ",") {
		name, port, err := net.SplitHostPort(host)
		if err != nil {
			name, port = strings.Trim(host, "[]"), u.kind.port
			if strings.Contains(name, ":") && !strings.HasPrefix(host, "[") {
				return u.kind.errUsage("a host has more than one port")
			}
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil || strings.ContainsAny(name, " \t\r\n%@") {
			return u.kind.errUsage("a host or its port is wrong")
		}
		if name == "" {
			return u.kind.errUsage("a host is missing")
		}
		u.hosts = append(u.hosts, net.JoinHostPort(name, port))
	}
	return nil
}

func (u *URL) readOptions() error {
	known := append([]string{"consumer", "from", "findings", "audit"}, u.kind.options...)
	for _, name := range slices.Sorted(maps.Keys(u.query)) {
		if !slices.Contains(known, name) || len(u.query[name]) > 1 {
			return u.kind.errUsage(fmt.Sprintf("its query has %s, each once", strings.Join(known, ", ")))
		}
	}
	switch u.query.Get("from") {
	case "start":
		u.FromStart = true
	case "":
	default:
		return u.kind.errUsage("from is start, or left out")
	}
	for _, name := range []string{"create", "tls", "findings", "audit"} {
		if value := u.query.Get(name); value != "" && value != "true" && value != "false" {
			return u.kind.errUsage(name + " is true or false")
		}
	}
	u.Findings = u.flag("findings")
	return u.readTLS()
}

// readTLS sets tls if the connection is to be encrypted.
func (u *URL) readTLS() error {
	files := slices.ContainsFunc(tlsOptions, u.query.Has)
	if !files && !u.flag("tls") && u.kind.scheme != "tls" && u.kind.scheme != "amqps" {
		return nil
	}
	if files && u.kind.scheme == "amqp" {
		return u.kind.errUsage("files for TLS are for amqps://")
	}
	u.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	if name := u.query.Get("cacertfile"); name != "" {
		pem, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("sink %s: cacertfile: %w", u.kind.scheme, err)
		}
		u.tls.RootCAs = x509.NewCertPool()
		if !u.tls.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("sink %s: cacertfile: %s holds no certificate", u.kind.scheme, name)
		}
	}
	if cert, key := u.query.Get("certfile"), u.query.Get("keyfile"); cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("sink %s: certfile and keyfile: %w", u.kind.scheme, err)
		}
		u.tls.Certificates = []tls.Certificate{pair}
	}
	return nil
}

func (u URL) flag(name string) bool { return u.query.Get(name) == "true" }

// prefix returns the prefix of subjects.
func (u URL) prefix(option string) (string, error) {
	prefix := cmp.Or(u.query.Get(option), "pawl")
	for word := range strings.SplitSeq(prefix, ".") {
		if word == "" || word != token(word) || len(prefix) > maxPrefix {
			return "", u.kind.errUsage(fmt.Sprintf("%s is words of letters, digits, - and _ with dots between, at most %d bytes",
				option, maxPrefix))
		}
	}
	return prefix, nil
}

// String returns the URL without credentials and query.
func (u URL) String() string {
	if u.kind.port == "" {
		return u.kind.scheme + ":"
	}
	hosts := make([]string, len(u.hosts))
	for i, host := range u.hosts {
		hosts[i] = strings.TrimSuffix(host, ":"+u.kind.port)
	}
	return u.kind.scheme + "://" + strings.Join(hosts, ",") + "/" + url.PathEscape(u.path)
}

// Open returns the sink. It connects when there is something to publish. stdout is what the
// scheme of that name writes to.
func (u URL) Open(stdout io.Writer) (outbox.Sink, error) { return u.kind.open(u, stdout) }

// Open parses a URL and opens its sink.
func Open(raw string, stdout io.Writer) (outbox.Sink, error) {
	u, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	return u.Open(stdout)
}
