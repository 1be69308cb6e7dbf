package sink

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/pawl-fsm/pawl/outbox"
)

// A writer is the sink that writes one CloudEvent per line.
type writer struct {
	out io.Writer
	// idle holds a token while no write is under way.
	idle chan struct{}
	// torn is set if the last write may have ended within a line.
	torn   bool
	closed bool
}

func openStdout(_ URL, out io.Writer) (outbox.Sink, error) {
	return NewWriter(out), nil
}

// NewWriter returns a sink that writes JSON lines, each page in one Write. The writer is neither
// flushed nor closed. A Write cannot be interrupted: if a reader holds it up beyond the context,
// Publish returns and the Write goes on, and the next Publish waits for its end.
func NewWriter(out io.Writer) outbox.Sink {
	w := &writer{out: out, idle: make(chan struct{}, 1)}
	w.idle <- struct{}{}
	return w
}

func (w *writer) Publish(ctx context.Context, messages []outbox.Message) error {
	if err := w.publish(ctx, messages); err != nil {
		return fmt.Errorf("stdout: %w", err)
	}
	return nil
}

func (w *writer) publish(ctx context.Context, messages []outbox.Message) error {
	if w.closed {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	items, err := itemsOf(messages, "")
	if err != nil || len(items) == 0 {
		return err
	}
	select {
	case <-w.idle:
	case <-ctx.Done():
		return ctx.Err()
	}
	var lines bytes.Buffer
	if w.torn {
		lines.WriteByte('\n')
	}
	for _, m := range items {
		lines.Write(m.body)
		lines.WriteByte('\n')
	}
	written := make(chan error, 1)
	go func() {
		n, err := w.out.Write(lines.Bytes())
		w.torn = err != nil && (n > 0 || w.torn)
		w.idle <- struct{}{}
		written <- err
	}()
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *writer) Close() error {
	w.closed = true
	return nil
}
