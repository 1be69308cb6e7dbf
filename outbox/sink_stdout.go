package outbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
)

// stdoutSink writes a CloudEvent per line.
type stdoutSink struct {
	out io.Writer
	// idle has a token while nothing is written.
	idle chan struct{}
	// torn says that the last write ended within a line, maybe.
	torn   bool
	closed bool
}

func openStdout(_ SinkURL, out io.Writer) (Sink, error) {
	return NewWriterSink(out), nil
}

// NewWriterSink returns a Sink that writes JSON lines, each page in one write. The writer is
// neither flushed nor closed. A write cannot be called back: one that a reader holds up
// beyond the context goes on, and what comes after waits for it.
func NewWriterSink(out io.Writer) Sink {
	s := &stdoutSink{out: out, idle: make(chan struct{}, 1)}
	s.idle <- struct{}{}
	return s
}

func (s *stdoutSink) Publish(ctx context.Context, events []Event) error {
	if err := s.publish(ctx, events); err != nil {
		return fmt.Errorf("stdout: %w", err)
	}
	return nil
}

func (s *stdoutSink) publish(ctx context.Context, events []Event) error {
	if s.closed {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	messages, err := messagesOf(events, "")
	if err != nil || len(messages) == 0 {
		return err
	}
	select {
	case <-s.idle:
	case <-ctx.Done():
		return ctx.Err()
	}
	var lines bytes.Buffer
	if s.torn {
		lines.WriteByte('\n')
	}
	for _, m := range messages {
		lines.Write(m.body)
		lines.WriteByte('\n')
	}
	written := make(chan error, 1)
	go func() {
		n, err := s.out.Write(lines.Bytes())
		s.torn = err != nil && (n > 0 || s.torn)
		s.idle <- struct{}{}
		written <- err
	}()
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *stdoutSink) Close() error {
	s.closed = true
	return nil
}
