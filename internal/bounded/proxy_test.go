package bounded_test

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

// echo starts a server that sends back what it gets.
func echo(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return listener.Addr().String()
}

// talk sends a text to a proxy and returns what comes back before the connection ends, or is as long as the text.
func talk(t *testing.T, p *bounded.Proxy, text string) (conn net.Conn, back string) {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(bounded.Limit))
	_, _ = io.WriteString(conn, text) // It may be cut.
	answer := make([]byte, len(text))
	n, _ := io.ReadFull(conn, answer)
	return conn, string(answer[:n])
}

func TestProxy(t *testing.T) {
	t.Parallel()
	p := bounded.NewProxy(t, "tcp", echo(t), func(c bounded.Chunk) ([]byte, bool) {
		if i := bytes.IndexByte(c.Data, '#'); c.FromServer && i >= 0 {
			return c.Data[:i], false
		}
		if c.Conn == 2 && !c.FromServer {
			return bytes.ToUpper(c.Data), true
		}
		return c.Data, true
	})
	first, back := talk(t, p, "one")
	if back != "one" {
		t.Errorf("it passes on %q", back)
	}
	if _, back := talk(t, p, "two"); back != "TWO" {
		t.Errorf("the hook of the second connection passes on %q", back)
	}
	if _, back := talk(t, p, "three#four"); back != "three" {
		t.Errorf("a connection that is cut passes on %q", back)
	}
	p.Refuse(true)
	if n, err := first.Read(make([]byte, 1)); err == nil || n > 0 {
		t.Errorf("a connection lives on: %d, %v", n, err)
	}
	if _, back := talk(t, p, "five"); back != "" {
		t.Errorf("a connection that is refused passes on %q", back)
	}
	p.Refuse(false)
	if _, back := talk(t, p, "six"); back != "six" {
		t.Errorf("afterwards it passes on %q", back)
	}
	if _, back := talk(t, bounded.NewProxy(t, "tcp", echo(t), nil), "seven"); back != "seven" {
		t.Errorf("without a hook it passes on %q", back)
	}
	// A server that is away refuses.
	if _, back := talk(t, bounded.NewProxy(t, "tcp", "127.0.0.1:"+bounded.Port(t), nil), "eight"); back != "" {
		t.Errorf("without a server it passes on %q", back)
	}
}

func TestDatabaseProxy(t *testing.T) {
	t.Parallel()
	var seen bounded.Lines
	_, through := bounded.NewDatabaseProxy(t, dbtest.NewDSN(t), func(c bounded.Chunk) ([]byte, bool) {
		_, _ = seen.Write(c.Data)
		return c.Data, true
	})
	conn, err := pgx.Connect(t.Context(), through)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(bounded.Context(t)) })
	if n := bounded.Value[int](t, conn, "select 4711"); n != 4711 || !bytes.Contains([]byte(seen.String()), []byte("select 4711")) {
		t.Errorf("%d came, and the proxy saw %q", n, seen.String())
	}
}
