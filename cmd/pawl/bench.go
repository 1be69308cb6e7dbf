package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/pawl-fsm/pawl/internal/bench"
)

// benchCommand is `pawl bench`. Package bench makes the measurements; it runs this program again as
// the service that is measured.
type benchCommand struct {
	Instances   int           `default:"100000" help:"Number of instances to create before anything is measured."`
	Duration    time.Duration `default:"5s" help:"Time of each measurement."`
	Connections []int         `default:"1,8,64,256" help:"Numbers of connections to fire transitions from."`
	Only        []string      `placeholder:"NAME" help:"Make only these measurements: ${measurements}. The references are by pgbench and follow the transitions."`
	Workflows   int           `default:"0" placeholder:"N" help:"Register N workflows of five versions each at the end, and measure transitions before and after."`
	Grown       bool          `help:"Fill the tables to 1,000,000 instances, 10,000,000 steps and 5,000,000 keys at the end, and measure again. Takes about four minutes and 8 GB of disk."`
	Find        int           `default:"100000" placeholder:"N" help:"Number of open instances, with ten steps each, among which the measurement find reads. A million takes about fifteen minutes and 10 GB of disk."`
	JSON        string        `name:"json" type:"path" placeholder:"FILE" help:"Write the figures to a file as JSON too."`
	DatabaseURL string        `env:"DATABASE_URL,PAWL_DATABASE_URL" type:"secret" placeholder:"URL" help:"An empty database to use as its owner; it is left empty. By default a private Postgres is started."`
}

func (b *benchCommand) config() bench.Config {
	return bench.Config{
		Instances: b.Instances, Duration: b.Duration, Connections: b.Connections, Only: b.Only, Workflows: b.Workflows,
		Grown: b.Grown, Find: b.Find, DatabaseURL: b.DatabaseURL, Version: version,
	}
}

// Validate refuses what package bench would. Its messages begin with the name of the flag.
func (b *benchCommand) Validate() error {
	if err := b.config().Validate(); err != nil {
		return fmt.Errorf("--%w", err)
	}
	return nil
}

// Run opens the file before the run, so that a wrong name fails at once and not after minutes.
func (b *benchCommand) Run(c *console) (err error) {
	config := b.config()
	config.Output, config.Logger = c.out, c.log
	if b.JSON != "" {
		file, failed := os.Create(b.JSON)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		config.Figures = file
	}
	return bench.Run(c, config)
}
