package httpapi

import (
	"context"
	"errors"
	"net/http"

	"github.com/pawl-fsm/pawl/fsm"
)

// The caller of commands need not be looked up. It is let in by what this process remembers of it, and the engine, which is
// called anyway, refuses the commands if that is out of date. Then the caller is looked up, and the request is answered anew.
// So is a request that is refused before the engine is asked.

// commands reports whether all that the operation changes is changed by commands of fsm, unless it is a dry run.
func (op *operation) commands() bool {
	switch op.id {
	case "createInstance", "fireEvent", "fireEventByKey", "runBatch":
		return true
	}
	return false
}

// context returns the context for what the principal does.
func (r *request) context() context.Context {
	ctx := fsm.WithLimits(fsm.ForTenant(r.base, r.principal.tenant), r.principal.limits)
	return fsm.WithAdmission(fsm.WithCaller(ctx, r.caller()), r.admission)
}

// doubts reports whether an error may have another reason than what is true of the caller now. Whether a request that is
// unavailable was carried out is not known; it may be sent again.
func (r *request) doubts(err error) bool {
	switch {
	case r.admission == nil:
		return false
	case errors.Is(err, fsm.ErrPrincipalChanged):
		return true
	}
	return !r.admission.Confirmed() && !errors.Is(err, fsm.Unavailable)
}

// lookUp looks the caller of commands up that was let in by what is remembered, and returns the context for what it does.
func (s *server) lookUp(r *request) (context.Context, error) {
	err := s.identify(r.base, r, http.MethodPost, false)
	return r.context(), err
}
