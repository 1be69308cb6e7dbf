package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
)

// slowest is how many bytes of an answer a client must take in a second, beyond Config.AnswerPatience.
const slowest = 256 << 10

// A response sends an answer to a client that may be slow. It records the status.
//
// The status is sent with the first byte of the body. Until then the answer may still become a problem: because the
// handler fails, or because the tenant's clients have too much left to read.
type response struct {
	http.ResponseWriter
	server  *server
	ctx     context.Context
	request *request
	status  int
	begun   bool // The status was sent.
	refused bool // Another answer was sent, and the body is dropped.
	written int64
	first   time.Time // When the first byte was sent.
}

// WriteHeader sets the status.
func (w *response) WriteHeader(status int) {
	if !w.begun {
		w.status = status
	}
}

// Write sends a part of the body. It fails when the client takes it too slowly.
func (w *response) Write(b []byte) (int, error) {
	w.begin(len(b))
	if w.refused {
		return len(b), nil
	}
	if w.request.streaming {
		return w.ResponseWriter.Write(b)
	}
	sent := 0
	for len(b) > 0 {
		part := b[:min(len(b), small)]
		w.wait()
		n, err := w.ResponseWriter.Write(part)
		sent += n
		w.written += int64(n)
		if err != nil {
			return sent, err
		}
		b = b[n:]
	}
	return sent, nil
}

// begin sends the status, for a body that begins with n bytes. If the tenant may not hold so much, it sends a problem.
func (w *response) begin(n int) {
	if w.begun {
		return
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	w.begun, w.first = true, time.Now()
	w.wait()
	if n > small && !w.request.hold(int64(n)) {
		w.refused, w.status = true, http.StatusServiceUnavailable
		for _, name := range []string{"Content-Length", "ETag", "Link", "Location", "Preference-Applied", "Idempotent-Replayed"} {
			w.Header().Del(name)
		}
		w.server.fail(w.ctx, w.ResponseWriter, errHeld)
		return
	}
	w.ResponseWriter.WriteHeader(w.status)
}

var errHeld = &fsm.Error{Kind: fsm.Unavailable, Message: "too many bytes of bodies and answers are held for clients that are slow to send or to read; try again"}

// wait gives the client time for the next part.
func (w *response) wait() {
	patience := w.server.config.AnswerPatience + time.Duration(w.written)*time.Second/slowest
	// A response recorder supports no deadline.
	_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(w.first.Add(patience))
}

// end sends the status if there was no body.
func (w *response) end() {
	if w.status != 0 {
		w.begin(0)
	}
}

// FlushError sends what was written. It is for http.ResponseController.
func (w *response) FlushError() error {
	w.begin(0)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap gives http.ResponseController access to the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// sent reports whether the response has begun.
func (w *response) sent() bool { return w.begun }
