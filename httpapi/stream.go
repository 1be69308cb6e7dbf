package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/live"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

const (
	// collect is the least time between two reads that a signal caused. Steps committed
	// meanwhile share one page and one write.
	collect = 50 * time.Millisecond
	// retry tells the client how long to wait before it connects again, in milliseconds. The
	// default of browsers is several seconds.
	retry = "1000"
	// silence is how long a stream may read steps that the filter does not choose before it
	// sends the client the id that it has reached.
	silence = time.Second
)

// eventFilter converts the filter parameters of a stream.
func eventFilter(workflow, event, state *string, terminalOnly *bool) live.Filter {
	return live.Filter{
		Workflows: list(workflow), Events: list(event), States: list(state), TerminalOnly: value(terminalOnly),
	}
}

// lastEventID returns the id that a stream starts behind: Last-Event-ID, else the beginning
// or "", which means now. The header wins over from=start: a browser that reconnects repeats the
// query.
func (r *request) lastEventID(fromStart bool) string {
	id := r.header.Get("Last-Event-ID")
	if id == "" && fromStart {
		return live.FromStart
	}
	return id
}

// openStream counts a stream of the request's tenant until the request ends, or refuses it.
func (s *server) openStream(r *request) (err error) {
	r.endStream, err = s.streams.begin(r.principal.tenant, r.principal.limits.Streams)
	return err
}

// StreamInstance streams the steps of one instance until it is final.
func (s *server) StreamInstance(ctx context.Context, in StreamInstanceRequestObject) (StreamInstanceResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	r, p := requestOf(ctx), in.Params
	last := r.lastEventID(value(p.From) == api.StreamInstanceParamsFromStart)
	tenant := r.principal.tenant
	if err := s.openStream(r); err != nil {
		return nil, err
	}
	stream, err := s.live.StreamInstance(ctx, tenant, id, eventFilter(nil, p.Event, p.State, p.TerminalOnly), last)
	if err != nil {
		if isOfStream(err) {
			return &eventStream{server: s, ctx: ctx, err: err}, nil
		}
		return nil, err
	}
	if stream.Ended() {
		stream.Close()
		return StreamInstance204Response{}, nil
	}
	return &eventStream{server: s, ctx: ctx, stream: stream}, nil
}

// StreamEvents streams the steps of all instances of the tenant.
func (s *server) StreamEvents(ctx context.Context, in StreamEventsRequestObject) (StreamEventsResponseObject, error) {
	r, p := requestOf(ctx), in.Params
	last := r.lastEventID(value(p.From) == api.StreamEventsParamsFromStart)
	if err := s.openStream(r); err != nil {
		return nil, err
	}
	filter := eventFilter(p.Workflow, p.Event, p.State, p.TerminalOnly)
	filter.Workflows = r.narrowed(filter.Workflows)
	stream, err := s.live.StreamTenant(ctx, r.principal.tenant, filter, last)
	if err != nil && !isOfStream(err) {
		return nil, err
	}
	return &eventStream{server: s, ctx: ctx, stream: stream, err: err, all: r.principal.tenant == fsm.Deployment}, nil
}

// isOfStream reports whether an error is sent as an event: a browser that gets an error status reads nothing of it, and
// does not come again.
func isOfStream(err error) bool {
	return errors.Is(err, fsm.EventIDTooOld) || errors.Is(err, fsm.UnknownEventID) || errors.Is(err, fsm.StepsLost)
}

// An eventStream is a response of Server-Sent Events (WHATWG HTML, 9.2). It writes pages: what
// has been read is collected in page and sent by flush.
type eventStream struct {
	server *server
	ctx    context.Context // Of the request; the response lasts as long.
	stream *live.Stream    // Nil if err is set.
	err    error           // Sent as an error event instead of the stream.
	out    http.ResponseWriter
	page   bytes.Buffer
	sent   string // The last id that was sent.
	all    bool   // The stream is that of all tenants.
	// flushed is when a page was last sent. read is when a signal last caused a read. admitted is when the caller was last
	// found to be allowed the stream.
	flushed, read, admitted time.Time
}

// VisitStreamInstanceResponse writes the response.
func (s *eventStream) VisitStreamInstanceResponse(w http.ResponseWriter) error { return s.write(w) }

// VisitStreamEventsResponse writes the response.
func (s *eventStream) VisitStreamEventsResponse(w http.ResponseWriter) error { return s.write(w) }

// write sends the stream until it ends. It returns no error, since the status has been sent
// by then: a failure becomes an error event.
func (s *eventStream) write(w http.ResponseWriter) error {
	if s.stream != nil {
		defer s.stream.Close()
	}
	s.out = w
	requestOf(s.ctx).streaming = true
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would buffer the events.
	w.WriteHeader(http.StatusOK)
	if requestOf(s.ctx).head {
		return nil
	}
	// The deadline of flush has passed by the time that the end of the answer is sent.
	defer s.extend()
	ctx, cancel := s.server.draining(s.ctx)
	defer cancel()
	if s.page.WriteString("retry: " + retry + "\n"); s.err != nil {
		s.fail(s.err)
		return nil
	}
	s.admitted = time.Now()
	s.move()
	for s.flush() && s.follow(ctx) {
	}
	return nil
}

// follow waits for new steps and adds them to the page, or adds a heartbeat when the stream
// has been idle. It returns false when the stream has ended.
func (s *eventStream) follow(ctx context.Context) bool {
	if time.Since(s.admitted) >= s.server.config.Heartbeat {
		if err := s.server.readmit(ctx); err != nil {
			s.fail(err)
			return false
		}
		s.admitted = time.Now()
	}
	events, more, err := s.stream.Next(ctx)
	// While the database is unavailable the stream stays open and tries again. A client could
	// do no better, and a browser that gets an error status does not even reconnect.
	away := errors.Is(err, fsm.Unavailable)
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil && !away:
		s.fail(err)
		return false
	}
	for _, e := range events {
		s.event(e)
	}
	if s.stream.Ended() {
		// The filter may have passed over the last step. Without its id the client would
		// reconnect for ever, since only behind that id the answer is 204.
		s.move()
		s.flush()
		return false
	}
	idle := s.server.config.Heartbeat - time.Since(s.flushed)
	switch {
	case len(events) > 0:
		return true
	case idle <= 0:
		s.page.WriteString(": heartbeat\n\n")
		s.move()
		return true
	case time.Since(s.flushed) > silence && s.move():
		return true
	case more:
		return true
	}
	if away {
		idle = min(idle, time.Second)
	}
	idle = min(idle, s.server.config.Heartbeat-time.Since(s.admitted))
	return s.wait(ctx, min(idle, s.stream.Alone()))
}

// wait returns true after a signal or after the timeout, and false when the context ends.
// After a signal it delays the next read until collect has passed since the last one.
func (s *eventStream) wait(ctx context.Context, timeout time.Duration) bool {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.stream.C():
	case <-ctx.Done():
		return false
	}
	select {
	case <-time.After(collect - time.Since(s.read)):
	case <-ctx.Done():
		return false
	}
	s.read = time.Now()
	return true
}

// event adds an event to the page.
func (s *eventStream) event(e live.Message) {
	step := api.StreamedStep{InstanceID: e.InstanceID.String(), Workflow: e.Workflow, HistoryItem: api.HistoryItemOf(e.Step)}
	if s.all {
		step.Tenant = e.Tenant
	}
	data, err := json.Marshal(step)
	if err != nil {
		panic(err) // Context and payload are JSON from the database, and the rest are strings and numbers.
	}
	s.page.WriteString("id: " + e.ID + "\nevent: " + e.Kind + "\ndata: ")
	s.page.Write(data)
	s.page.WriteString("\n\n")
	s.sent = e.ID
}

// move adds a block with an id alone if the stream has passed the last id that was sent. The
// client then resumes from there; a browser dispatches no event for a block without data. It
// returns whether it added one.
func (s *eventStream) move() bool {
	id := s.stream.ID()
	if id == s.sent {
		return false
	}
	s.page.WriteString("id: " + id + "\n\n")
	s.sent = id
	return true
}

// fail ends the stream with an event of the kind error, whose data is the problem. A browser reconnects by
// itself. If the client's id is too old, fail clears it, so that the browser starts now and does not fail again. If steps
// are lost, fail sends the last common id, so that it goes on behind that.
func (s *eventStream) fail(err error) {
	p, _ := problemOf(s.ctx, err)
	if p.Status == http.StatusInternalServerError {
		s.server.config.Logger.ErrorContext(s.ctx, "stream failed", "request_id", p.RequestID, "error", err)
	}
	data, marshalErr := json.Marshal(p)
	if marshalErr != nil {
		data = []byte(`{}`) // Unreachable: a problem has only strings and numbers.
	}
	switch {
	case errors.Is(err, fsm.EventIDTooOld):
		s.page.WriteString("id:\n")
	case p.LastCommon != nil:
		s.page.WriteString("id: " + *p.LastCommon + "\n")
	}
	s.page.WriteString("event: error\ndata: ")
	s.page.Write(data)
	s.page.WriteString("\n\n")
	s.flush()
}

// flush sends the page. It returns false if the client is gone or does not take the page
// within StreamPatience.
func (s *eventStream) flush() bool {
	if s.page.Len() == 0 {
		return true
	}
	n := int64(s.page.Len())
	if n <= small {
		n = 0
	}
	r := requestOf(s.ctx)
	if !r.hold(n) {
		// The client goes on behind the last event that it has got.
		s.page.Reset()
		s.fail(errHeld)
		return false
	}
	defer r.hold(-n)
	s.flushed = time.Now()
	s.extend()
	if _, err := s.out.Write(s.page.Bytes()); err != nil {
		return false
	}
	if s.page.Reset(); s.page.Cap() > 64<<10 {
		s.page = bytes.Buffer{} // A stream may be idle for hours and should not keep a large buffer.
	}
	return http.NewResponseController(s.out).Flush() == nil
}

// extend gives the client time to take what is sent next.
func (s *eventStream) extend() {
	// A response recorder supports no deadline.
	_ = http.NewResponseController(s.out).SetWriteDeadline(time.Now().Add(s.server.config.StreamPatience))
}
