package httpapi

import (
	"context"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// GetHealth is the liveness probe. It succeeds whenever the process can answer, whatever the
// state of the database.
func (s *server) GetHealth(context.Context, GetHealthRequestObject) (GetHealthResponseObject, error) {
	return GetHealth200JSONResponse{Status: api.HealthStatusOk}, nil
}

// isLeaving reports whether the process was told to stop.
func (s *server) isLeaving() bool { return s.config.Leaving != nil && s.config.Leaving.Err() != nil }

// notNumbered is the warning of a ready process if nobody holds the sequencer's lease, as far as can be seen.
const notNumbered = "no process gives steps their positions, so streams, webhooks and sinks are told of none: " +
	"no process runs the workers, or the one that does is waiting for a synchronous standby"

// GetReadiness is the readiness probe. It fails with unavailable if the process was told to stop, if the database does
// not answer or takes no writes, or if it lacks the schema or the privileges that the service needs.
func (s *server) GetReadiness(ctx context.Context, _ GetReadinessRequestObject) (GetReadinessResponseObject, error) {
	if s.isLeaving() {
		return nil, fsm.Errorf(fsm.Unavailable, "the process is shutting down; send requests to another one")
	}
	numbered, err := s.probe(ctx)
	if err != nil {
		return nil, err
	}
	out := GetReadiness200JSONResponse{Status: api.ReadinessStatusReady}
	if !numbered {
		out.Warnings = append(out.Warnings, notNumbered)
	}
	return out, nil
}

// probe asks the database whether the process is ready, and whether the log is numbered. It takes several statements, and
// whoever reaches the service may send probes. So those that come meanwhile share the answer, and hold no connection.
func (s *server) probe(ctx context.Context) (numbered bool, err error) {
	shared := s.probes.DoChan("", func() (any, error) {
		ctx := context.WithoutCancel(ctx) // Others wait for it, too. The calls have a time limit of their own.
		if err := s.service.Ping(ctx); err != nil {
			return false, err
		}
		return s.live.IsNumbered(ctx)
	})
	select {
	case <-ctx.Done():
		return false, fsm.AsError(ctx.Err())
	case answer := <-shared:
		return answer.Val.(bool), answer.Err
	}
}
