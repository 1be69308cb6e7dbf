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
)

const (
	// pace is the least time between two reads of a stream that has caught up.
	pace = 50 * time.Millisecond
	// retry is when to connect again, in milliseconds. Browsers would take some seconds.
	retry = "1000"
	// silence is how long to read steps that are not chosen before telling where the stream is.
	silence = time.Second
)

// A StreamedStep is the data of an event: a history item, and whose it is.
type StreamedStep struct {
	InstanceID string `json:"instance_id"`
	Workflow   string `json:"workflow"`
	HistoryItem
}

// eventFilter is what the parameters of a stream choose.
func eventFilter(workflow, event, state *string, terminalOnly *bool) live.Filter {
	return live.Filter{
		Workflows: list(workflow), Events: list(event), States: list(state), TerminalOnly: value(terminalOnly),
	}
}

// lastEventID says where a stream begins.
func (r *request) lastEventID(fromStart bool) (string, error) {
	ids := r.header.Values("Last-Event-ID")
	switch {
	case len(ids) > 1:
		return "", malformed("Last-Event-ID", "must be sent once")
	case len(ids) == 1 && ids[0] != "":
		return ids[0], nil // A browser that resumes repeats the query too.
	case fromStart:
		return live.FromStart, nil
	}
	return "", nil
}

// StreamInstance follows an instance until it is final.
func (s *server) StreamInstance(ctx context.Context, in StreamInstanceRequestObject) (StreamInstanceResponseObject, error) {
	id, err := instanceID(in.ID)
	if err != nil {
		return nil, err
	}
	r, p := requestOf(ctx), in.Params
	last, err := r.lastEventID(value(p.From) == StreamInstanceParamsFromStart)
	if err != nil {
		return nil, err
	}
	tenant := r.principal.tenant
	stream, err := s.live.StreamInstance(ctx, tenant, id, eventFilter(nil, p.Event, p.State, p.TerminalOnly), last)
	if err != nil {
		return nil, err
	}
	if stream.Ended() {
		stream.Close()
		return StreamInstance204Response{}, nil
	}
	return &streaming{server: s, ctx: ctx, stream: stream}, nil
}

// StreamEvents follows all instances of the tenant.
func (s *server) StreamEvents(ctx context.Context, in StreamEventsRequestObject) (StreamEventsResponseObject, error) {
	r, p := requestOf(ctx), in.Params
	last, err := r.lastEventID(value(p.From) == StreamEventsParamsFromStart)
	if err != nil {
		return nil, err
	}
	stream, err := s.live.StreamTenant(ctx, r.principal.tenant, eventFilter(p.Workflow, p.Event, p.State, p.TerminalOnly), last)
	if err != nil && !errors.Is(err, fsm.EventIDTooOld) {
		return nil, err
	}
	return &streaming{server: s, ctx: ctx, stream: stream, err: err}, nil
}

// streaming is the answer that goes on.
type streaming struct {
	server *server
	ctx    context.Context // The request's, which the answer lasts as long as.
	stream *live.Stream    // Nil if err is not.
	err    error           // What there is to tell instead.
	out    http.ResponseWriter
	page   bytes.Buffer
	sent   string // The id that the client has.
	// flushed is when something was sent last, and read when a signal was followed.
	flushed, read time.Time
}

// VisitStreamInstanceResponse writes it.
func (s *streaming) VisitStreamInstanceResponse(w http.ResponseWriter) error { return s.write(w) }

// VisitStreamEventsResponse writes it.
func (s *streaming) VisitStreamEventsResponse(w http.ResponseWriter) error { return s.write(w) }

// write answers, and returns no error: the answer has begun.
func (s *streaming) write(w http.ResponseWriter) error {
	if s.stream != nil {
		defer s.stream.Close()
	}
	s.out = w
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // What nginx would hold back.
	w.WriteHeader(http.StatusOK)
	if requestOf(s.ctx).head {
		return nil
	}
	// The connection may serve another request.
	defer func() { _ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) }()
	ctx, cancel := s.server.draining(s.ctx)
	defer cancel()
	if s.page.WriteString("retry: " + retry + "\n"); s.err != nil {
		s.fail(s.err)
		return nil
	}
	s.move()
	for s.flush() && s.follow(ctx) {
	}
	return nil
}

// follow adds to the page what comes next, when it comes. It returns false when nothing does
// any more.
func (s *streaming) follow(ctx context.Context) bool {
	events, more, err := s.stream.Next(ctx)
	// If it is Unavailable, the client could do no more than try again, and a browser would
	// not even do that.
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
		// The last step may not be chosen; only behind it the answer is 204.
		s.move()
		s.flush()
		return false
	}
	idle := s.server.config.Heartbeat - time.Since(s.flushed)
	switch {
	case len(events) > 0:
		return true
	case idle <= 0:
		s.page.WriteString(": still here\n\n")
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
	timer := time.NewTimer(min(idle, s.stream.Alone()))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.stream.C():
	case <-ctx.Done():
		return false
	}
	// What else comes now shares the next page.
	select {
	case <-time.After(pace - time.Since(s.read)):
	case <-ctx.Done():
		return false
	}
	s.read = time.Now()
	return true
}

// event adds an event to the page.
func (s *streaming) event(e live.Message) {
	data, err := json.Marshal(StreamedStep{
		InstanceID: e.InstanceID.String(), Workflow: e.Workflow, HistoryItem: HistoryItemOf(e.Step),
	})
	if err != nil {
		panic(err) // What came out of the database as JSON is JSON.
	}
	s.page.WriteString("id: " + e.ID + "\nevent: " + e.Kind + "\ndata: ")
	s.page.Write(data)
	s.page.WriteString("\n\n")
	s.sent = e.ID
}

// move tells the client a later place to go on from than that of the last event, if there
// is one, and says whether there is. To a browser a block without data is no event.
func (s *streaming) move() bool {
	id := s.stream.ID()
	if id == s.sent {
		return false
	}
	s.page.WriteString("id: " + id + "\n\n")
	s.sent = id
	return true
}

// fail ends the stream with an event that says why. Where the id is to blame it is taken
// back, so that a browser, which connects again by itself, begins now.
func (s *streaming) fail(err error) {
	p, _ := problemOf(s.ctx, err)
	if p.Status == http.StatusInternalServerError {
		s.server.config.Logger.ErrorContext(s.ctx, "stream failed", "request_id", p.RequestID, "error", err)
	}
	data, marshalErr := json.Marshal(p)
	if marshalErr != nil {
		data = []byte(`{}`) // Strings and numbers only: it cannot happen.
	}
	if errors.Is(err, fsm.EventIDTooOld) {
		s.page.WriteString("id:\n")
	}
	s.page.WriteString("event: error\ndata: ")
	s.page.Write(data)
	s.page.WriteString("\n\n")
	s.flush()
}

// flush sends the page, unless the client does not take it in time, or is gone.
func (s *streaming) flush() bool {
	if s.page.Len() == 0 {
		return true
	}
	s.flushed = time.Now()
	out := http.NewResponseController(s.out)
	_ = out.SetWriteDeadline(time.Now().Add(s.server.config.StreamPatience)) // A test's recorder has none.
	if _, err := s.out.Write(s.page.Bytes()); err != nil {
		return false
	}
	if s.page.Reset(); s.page.Cap() > 64<<10 {
		s.page = bytes.Buffer{}
	}
	return out.Flush() == nil
}
