package bounded

import (
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A Chunk is what a Proxy has read from one side of a connection at once.
type Chunk struct {
	// Conn numbers the connections, from 1 on.
	Conn int
	// FromServer says which side has sent it.
	FromServer bool
	// Data is valid until the hook returns.
	Data []byte
}

// A Hook decides what a Proxy does with a chunk: it passes on what the hook returns, which may be less or nothing, and
// cuts the connection unless the hook wants to keep it. A proxy calls its hook for one chunk at a time.
type Hook func(Chunk) (pass []byte, keep bool)

// A Proxy stands between a client and a server, and fails as a test wants it.
type Proxy struct {
	// Addr is where the proxy listens.
	Addr string

	network, address string
	hook             Hook
	hooks            sync.Mutex // held by the hook that runs
	listener         net.Listener
	running          sync.WaitGroup

	mu       sync.Mutex
	accepted int
	refuses  bool
	conns    map[net.Conn]bool
}

// NewProxy starts a proxy for a server, until the end of the test. Without a hook it passes everything on.
func NewProxy(t testing.TB, network, address string, hook Hook) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if hook == nil {
		hook = func(c Chunk) ([]byte, bool) { return c.Data, true }
	}
	p := &Proxy{
		Addr: listener.Addr().String(), network: network, address: address, hook: hook, listener: listener,
		conns: map[net.Conn]bool{},
	}
	p.running.Go(p.serve)
	t.Cleanup(func() {
		_ = listener.Close() // This ends serve.
		p.Refuse(true)
		Wait(t, "the proxy to end", p.running.Wait)
	})
	return p
}

// NewDatabaseProxy starts a proxy for the server of a connection string, and returns the string that leads through it.
// The proxy sees what is sent in plain text.
func NewDatabaseProxy(t testing.TB, dsn string, hook Hook) (p *Proxy, through string) {
	t.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	network, address := pgconn.NetworkAddress(config.Host, config.Port)
	p = NewProxy(t, network, address, hook)
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(config.User, config.Password), Host: p.Addr,
		Path: "/" + config.Database, RawQuery: "sslmode=disable",
	}
	return p, u.String()
}

// Refuse makes the proxy cut all connections and close each new one at once, until it is told otherwise. A hook may
// call it.
func (p *Proxy) Refuse(refuses bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuses = refuses; !refuses {
		return
	}
	for conn := range p.conns {
		_ = conn.Close() // This ends the goroutines in forward.
	}
	clear(p.conns)
}

func (p *Proxy) serve() {
	// bounded: the cleanup closes the listener
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.DialTimeout(p.network, p.address, Limit)
		if err != nil {
			_ = client.Close() // As if the server had refused it.
			continue
		}
		if n, ok := p.admit(client, server); ok {
			p.running.Go(func() { p.forward(server, client, Chunk{Conn: n}) })
			p.running.Go(func() { p.forward(client, server, Chunk{Conn: n, FromServer: true}) })
		}
	}
}

// admit keeps both ends of a connection, or closes them if the proxy refuses it.
func (p *Proxy) admit(client, server net.Conn) (number int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuses {
		_, _ = client.Close(), server.Close()
		return 0, false
	}
	p.conns[client], p.conns[server] = true, true
	p.accepted++
	return p.accepted, true
}

func (p *Proxy) forward(to, from net.Conn, c Chunk) {
	defer func() {
		_, _ = to.Close(), from.Close() // One of them may be closed already.
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, to)
		delete(p.conns, from)
	}()
	buffer := make([]byte, 64<<10)
	// bounded: whoever refuses the connection closes it
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		c.Data = buffer[:n]
		p.hooks.Lock()
		pass, keep := p.hook(c)
		p.hooks.Unlock()
		if len(pass) > 0 {
			if _, err := to.Write(pass); err != nil {
				return
			}
		}
		if !keep {
			return
		}
	}
}
