package bench

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"slices"
	"strconv"
)

// The load generator writes and reads HTTP/1.1 (RFC 9112) by itself, into buffers that it uses
// again. It knows no more of it than the service sends.

// answer is the part of an answer that the load generator looks at.
type answer struct {
	status               int
	replayed, retryAfter bool
	closing, chunked     bool
	length               int
	body                 []byte
}

// batch writes the request POST /v1/batch with the commands that command appends for each n.
func (c *client) batch(first, last int, command func(n int)) {
	c.body = append(c.body[:0], `{"commands":[`...)
	for n := first; n < last; n++ {
		if n > first {
			c.body = append(c.body, ',')
		}
		command(n)
	}
	c.body = append(c.body, "]}"...)
	c.post("/v1/batch", "", "", "", 0, c.body)
}

// get writes the request GET path+id.
func (c *client) get(path, id string) {
	c.out = append(c.out[:0], "GET "...)
	c.out = append(append(c.out, path...), id...)
	c.out = append(c.out, " HTTP/1.1\r\nHost: localhost\r\n"...)
	c.authorize()
	c.out = append(c.out, "\r\n"...)
}

// authorize writes the header with the client's token, if it has one.
func (c *client) authorize() {
	if c.token != "" {
		c.out = append(append(append(c.out, "Authorization: Bearer "...), c.token...), "\r\n"...)
	}
}

// post writes the request POST before+id+after with a JSON body. It has an idempotency key unless
// the prefix of its keys is empty.
func (c *client) post(before, id, after, prefix string, i int, body []byte) {
	c.out = append(c.out[:0], "POST "...)
	c.out = append(append(append(c.out, before...), id...), after...)
	c.out = append(c.out, " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"...)
	if prefix != "" {
		c.out = append(c.out, "Idempotency-Key: "...)
		c.out = c.key(c.out, prefix, i)
		c.out = append(c.out, "\r\n"...)
	}
	c.authorize()
	c.out = append(c.out, "Content-Length: "...)
	c.out = strconv.AppendInt(c.out, int64(len(body)), 10)
	c.out = append(append(c.out, "\r\n\r\n"...), body...)
}

// key appends an idempotency key, which differs for each client and each i.
func (c *client) key(to []byte, prefix string, i int) []byte {
	to = append(append(to, prefix...), '-')
	to = append(strconv.AppendInt(to, int64(c.number), 10), '-')
	return strconv.AppendInt(to, int64(i), 10)
}

var errNotHTTP = errors.New("the answer is not HTTP/1.1")

// read reads an answer: its status, the header fields that matter, and its body.
func (a *answer) read(in *bufio.Reader) error {
	*a = answer{body: a.body[:0]}
	line, err := readLine(in)
	if err != nil {
		return err
	}
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return errNotHTTP
	}
	if a.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return errNotHTTP
	}
	for {
		if line, err = readLine(in); err != nil {
			return err
		}
		if len(line) == 0 {
			break
		}
		if err := a.header(line); err != nil {
			return err
		}
	}
	if a.chunked {
		return a.readChunks(in)
	}
	return a.readBody(in, a.length)
}

func (a *answer) header(line []byte) (err error) {
	name, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimSpace(value)
	switch {
	case bytes.EqualFold(name, []byte("content-length")):
		a.length, err = strconv.Atoi(string(value))
	case bytes.EqualFold(name, []byte("transfer-encoding")):
		a.chunked = true
	case bytes.EqualFold(name, []byte("connection")):
		a.closing = bytes.EqualFold(value, []byte("close"))
	case bytes.EqualFold(name, []byte("retry-after")):
		a.retryAfter = true
	case bytes.EqualFold(name, []byte("idempotent-replayed")):
		a.replayed = string(value) == "true"
	}
	return err
}

func (a *answer) readChunks(in *bufio.Reader) error {
	for {
		line, err := readLine(in)
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(line), 16, 32)
		if err != nil {
			return errNotHTTP
		}
		if err := a.readBody(in, int(size)); err != nil {
			return err
		}
		// This is the end of the chunk's data, or of the trailers after the last chunk, of which
		// the service sends none.
		if _, err := readLine(in); err != nil || size == 0 {
			return err
		}
	}
}

func (a *answer) readBody(in *bufio.Reader, n int) error {
	old := len(a.body)
	a.body = slices.Grow(a.body, n)[:old+n]
	_, err := io.ReadFull(in, a.body[old:])
	return err
}

// readLine returns a line without its end. The line is valid until the next read.
func readLine(in *bufio.Reader) ([]byte, error) {
	line, err := in.ReadSlice('\n')
	return bytes.TrimRight(line, "\r\n"), err
}
