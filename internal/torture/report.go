package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/pawl-fsm/pawl/internal/torture/check"
)

// A result is what a run has found.
type result struct {
	scenario                        string
	seed                            uint64
	attempts, acknowledged, unknown int
	// lost counts acknowledged commands whose step is not in history, lostAsync those that were committed with
	// synchronous_commit off.
	lost, lostAsync int
	violations      []check.Violation
	healed          time.Duration
	slowest         string // What took the longest to heal.
	never           bool   // Something did not heal.
	repeats         int
	internal        int // Answers with the status 500.
	took            time.Duration
}

const header = "scenario\tseed\tattempts\tacknowledged\tunknown\tlost\tviolations\thealed\trepeats\tduration"

// line is a row of the table.
func (r result) line() string {
	healed := r.healed.Round(100 * time.Millisecond).String()
	if r.never {
		healed = "never"
	}
	return fmt.Sprintf("%s\t%d\t%d\t%d\t%d\t%d+%d\t%d\t%s\t%d\t%s", r.scenario, r.seed, r.attempts, r.acknowledged, r.unknown,
		r.lost, r.lostAsync, len(r.violations), healed, r.repeats, r.took.Round(time.Second))
}

// shown is how many violations of one check are written out. All of them are in the folder.
const shown = 5

// slow is a time to heal after which the report says what took it: more than a lease, and the time until the next
// leader has begun.
const slow = 15 * time.Second

// write writes the table of some results.
func write(out io.Writer, results []result) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, header)
	for _, r := range results {
		fmt.Fprintln(table, r.line())
	}
	_ = table.Flush() // To a terminal or a file; nobody is left to tell.
}

// writeViolations writes what was expected and what was seen, some of each check.
func (r result) writeViolations(out io.Writer) {
	count := map[string]int{}
	for _, v := range r.violations {
		if count[v.Check]++; count[v.Check] <= shown {
			fmt.Fprintf(out, "  %s: %s\n", v.Check, v.Detail)
		}
	}
	for _, v := range r.violations {
		if n := count[v.Check]; n > shown {
			fmt.Fprintf(out, "  %s: and %d more\n", v.Check, n-shown)
			count[v.Check] = 0
		}
	}
	if r.healed > slow {
		fmt.Fprintf(out, "  note: the slowest to heal was %s\n", r.slowest)
	}
	if r.internal > 0 {
		fmt.Fprintf(out, "  note: %d answers had the status 500\n", r.internal)
	}
}
