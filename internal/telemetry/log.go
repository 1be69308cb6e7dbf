package telemetry

import (
	"log/slog"

	"github.com/go-logr/logr"
)

// A quiet sink logs what OpenTelemetry says about itself, without the values that it says it of. These may be secrets: it
// shows variables that it cannot read, and they have the URL of the collector and the headers that it wants.
type quiet struct{ log *slog.Logger }

// Init does nothing.
func (quiet) Init(logr.RuntimeInfo) {}

// Enabled admits warnings, and no more.
func (quiet) Enabled(level int) bool { return level <= 1 }

// Info logs a warning.
func (q quiet) Info(_ int, about string, _ ...any) { q.warn(about) }

// Error logs a warning. The error may have the value in its text.
func (q quiet) Error(_ error, about string, _ ...any) { q.warn(about) }

func (q quiet) warn(about string) {
	q.log.Warn("OpenTelemetry passes over something, such as a variable OTEL_* that it cannot read", "about", about)
}

// WithValues leaves the values out.
func (q quiet) WithValues(...any) logr.LogSink { return q }

// WithName leaves the name out.
func (q quiet) WithName(string) logr.LogSink { return q }
