package fsm

import "context"

// ReachedLimit is a limit of a tenant that is reached.
type ReachedLimit struct {
	// Name is that of the limit, as TenantLimits has it in JSON.
	Name string `json:"name"`
	// Limit is how much the tenant may use, and Used how much it uses. Used may be some seconds old.
	Limit int64 `json:"limit"`
	Used  int64 `json:"used"`
}

type limitsKey struct{}

// WithLimits returns a context for the commands of a tenant that has limits.
func WithLimits(ctx context.Context, limits TenantLimits) context.Context {
	if limits == (TenantLimits{}) {
		return ctx
	}
	return context.WithValue(ctx, limitsKey{}, limits)
}

// limitsOf returns the limits of a context.
func limitsOf(ctx context.Context) TenantLimits {
	limits, _ := ctx.Value(limitsKey{}).(TenantLimits)
	return limits
}
