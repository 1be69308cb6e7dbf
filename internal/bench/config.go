package bench

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"
)

// The bounds of a run in count and time.
const (
	maxInstances      = 10_000_000
	maxConnections    = 1000
	maxWorkflows      = 10_000
	maxConnectionsSet = 10 // Numbers in Config.Connections.
	minDuration       = 100 * time.Millisecond
	maxDuration       = 5 * time.Minute
)

// Config says what a run measures. Instances, Duration and Connections must be set; the zero value
// of every other field works.
type Config struct {
	// Instances is the number of instances to create before anything is measured: 1 to
	// 10,000,000, and not less than any of Connections.
	Instances int
	// Duration is the time of each measurement: 100 ms to 5 min.
	Duration time.Duration
	// Connections are the numbers of connections to fire transitions from: 1 to 10 different
	// numbers, each from 1 to 1000.
	Connections []int
	// Only names the measurements to make, see Names. Default: all of them.
	Only []string
	// Workflows is how many workflows of five versions to register after all other measurements, to measure
	// transitions before and after: 0 to 10,000. Default 0: none.
	Workflows int
	// Grown fills the tables to 1,000,000 instances, 10,000,000 steps and 5,000,000 keys after
	// all other measurements, and measures transitions again. It takes about four minutes and
	// 8 GB of disk.
	Grown bool
	// Find is how many open instances to make for the measurement "find", with ten steps each: 0 to 10,000,000. Default
	// 100,000. A million takes about fifteen minutes and 10 GB of disk.
	Find int
	// DatabaseURL is an empty database to use, as its owner. It is left empty. Default: a private
	// PostgreSQL server is started for the run.
	DatabaseURL string
	// Program is the path of the pawl program that runs the service, as `Program serve`.
	// Default: the program of this process.
	Program string
	// Version is the program's version, for the report.
	Version string
	// Output gets the figures as a table while they are measured. Default: they are discarded.
	Output io.Writer
	// Figures gets all figures as one JSON object when the run ends. Default: they are discarded.
	Figures io.Writer
	// Logger gets the progress of what takes long. Default: slog.Default().
	Logger *slog.Logger
}

// Validate returns an error if the values are out of their bounds. Its message begins with the
// name of the field in lower case.
func (c Config) Validate() error {
	switch {
	case c.Instances < 1 || c.Instances > maxInstances:
		return fmt.Errorf("instances must be from 1 to %d", maxInstances)
	case c.Duration < minDuration || c.Duration > maxDuration:
		return fmt.Errorf("duration must be from %s to %s", minDuration, maxDuration)
	case c.Workflows < 0 || c.Workflows > maxWorkflows:
		return fmt.Errorf("workflows must be from 0 to %d", maxWorkflows)
	case c.Find < 0 || c.Find > maxInstances:
		return fmt.Errorf("find must be from 0 to %d", maxInstances)
	case len(c.Connections) == 0 || len(c.Connections) > maxConnectionsSet:
		return fmt.Errorf("connections must have from 1 to %d numbers", maxConnectionsSet)
	}
	for i, n := range c.Connections {
		switch {
		case n < 1 || n > maxConnections:
			return fmt.Errorf("connections must be from 1 to %d each", maxConnections)
		case n > c.Instances:
			return errors.New("instances must not be less than connections: each connection fires at instances of its own")
		case slices.Contains(c.Connections[:i], n):
			return fmt.Errorf("connections has %d twice", n)
		}
	}
	names := Names()
	for _, name := range c.Only {
		if !slices.Contains(names, name) {
			return fmt.Errorf("only: there is no %q; want some of %s", name, strings.Join(names, ", "))
		}
	}
	return nil
}

func (c Config) withDefaults() (Config, error) {
	if c.Find == 0 {
		c.Find = 100_000
	}
	if c.Output == nil {
		c.Output = io.Discard
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Program == "" {
		var err error
		if c.Program, err = os.Executable(); err != nil {
			return c, err
		}
	}
	return c, nil
}
