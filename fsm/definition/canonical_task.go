package definition

import "time"

type writtenTask struct {
	Description string              `json:"description,omitempty"`
	HTTP        *writtenRequest     `json:"http,omitempty"`
	Work        *writtenWork        `json:"work,omitempty"`
	Idempotency *writtenIdempotency `json:"idempotency,omitempty"`
	Timeout     string              `json:"timeout,omitempty"`
	Deadline    string              `json:"deadline"`
	Retry       *writtenRetry       `json:"retry,omitempty"`
	Success     Guard               `json:"success,omitempty"`
	Reconcile   *writtenReconcile   `json:"reconcile,omitempty"`
	Done        []writtenTransition `json:"done,omitempty"`
	Error       []writtenTransition `json:"error,omitempty"`
	Unknown     []writtenTransition `json:"unknown,omitempty"`
	Late        *writtenLate        `json:"late,omitempty"`
	Compensate  *writtenTask        `json:"compensate,omitempty"`
	IfUnknown   string              `json:"if_unknown,omitempty"`
}

type writtenRequest struct {
	Connection string           `json:"connection"`
	Method     string           `json:"method"`
	Path       string           `json:"path"`
	Query      map[string]Value `json:"query,omitempty"`
	Headers    map[string]Value `json:"headers,omitempty"`
	Body       Value            `json:"body,omitempty"`
}

type writtenWork struct {
	Topic string `json:"topic"`
	Lease string `json:"lease,omitempty"`
	Input Value  `json:"input,omitempty"`
}

type writtenIdempotency struct {
	Header string `json:"header"`
	Window string `json:"window"`
}

type writtenRetry struct {
	Max  int    `json:"max"`
	Base string `json:"base"`
	Cap  string `json:"cap"`
}

type writtenReconcile struct {
	HTTP        *writtenRequest `json:"http"`
	Every       []string        `json:"every"`
	Done        Guard           `json:"done"`
	Failed      Guard           `json:"failed,omitempty"`
	Absent      Guard           `json:"absent,omitempty"`
	Result      Value           `json:"result,omitempty"`
	AbsentAfter string          `json:"absent_after,omitempty"`
}

type writtenLate struct {
	Event string `json:"event"`
}

type writtenUndoing struct {
	What      string `json:"what"`
	OnFailure string `json:"on_failure"`
}

// written returns the task as it is written in JSON, or nil if there is none.
func (t *Task) written() *writtenTask {
	if t == nil {
		return nil
	}
	w := writtenTask{
		Description: t.Description, HTTP: t.HTTP.written(), Timeout: FormatDuration(t.Timeout), Deadline: FormatDuration(t.Deadline),
		Success: t.Success, Done: writtenTransitions(t.Done), Error: writtenTransitions(t.Error), Unknown: writtenTransitions(t.Unknown),
		Compensate: t.Compensate.written(),
	}
	if t.Work != nil {
		w.Work = &writtenWork{Topic: t.Work.Topic, Lease: FormatDuration(t.Work.Lease), Input: t.Work.Input}
	}
	if i := t.Idempotency; i != nil {
		w.Idempotency = &writtenIdempotency{Header: i.Header, Window: FormatDuration(i.Window)}
	}
	if r := t.Retry; r != nil {
		w.Retry = &writtenRetry{Max: r.Max, Base: FormatDuration(r.Base), Cap: FormatDuration(r.Cap)}
	}
	if r := t.Reconcile; r != nil {
		w.Reconcile = &writtenReconcile{
			HTTP: r.HTTP.written(), Every: writtenDurations(r.Every), Done: r.Done, Failed: r.Failed, Absent: r.Absent, Result: r.Result,
			AbsentAfter: FormatDuration(r.AbsentAfter),
		}
	}
	if t.Late != "" {
		w.Late = &writtenLate{Event: t.Late}
	}
	if t.RunIfUnknown {
		w.IfUnknown = "run"
	}
	return &w
}

func (r *Request) written() *writtenRequest {
	if r == nil {
		return nil
	}
	return &writtenRequest{r.Connection, r.Method, r.Path, r.Query, r.Headers, r.Body}
}

func writtenDurations(list []time.Duration) []string {
	texts := make([]string, len(list))
	for i, duration := range list {
		texts[i] = FormatDuration(duration)
	}
	return texts
}

func (u *Undoing) written() *writtenUndoing {
	if u == nil {
		return nil
	}
	w := writtenUndoing{What: "all", OnFailure: "stop"}
	if u.ContinueOnFailure {
		w.OnFailure = "continue"
	}
	return &w
}
