package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/internal/torture/check"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := torture(ctx, os.Args[1:], os.Stdout)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "torture:", err)
		stop()
		os.Exit(1)
	}
}

// options are those of the command line.
type options struct {
	seed     uint64
	duration time.Duration
	only     string
	list     bool
	short    bool
	program  string
	dir      string
	plant    string
}

// torture runs what the command line says. It returns an error if a run failed.
func torture(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("torture", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.Uint64Var(&o.seed, "seed", 0, "decides what clients do and when faults happen; 0 draws one")
	flags.DurationVar(&o.duration, "duration", 0, "go round with new seeds until the time is over; 0 is one round")
	flags.StringVar(&o.only, "only", "", "names of scenarios, with commas between them; all by default")
	flags.BoolVar(&o.list, "list", false, "list the scenarios, and what --plant knows")
	flags.BoolVar(&o.short, "short", false, "few clients and few faults")
	flags.StringVar(&o.program, "pawl", "bin/pawl", "the program to torture")
	flags.StringVar(&o.dir, "dir", filepath.Join(os.TempDir(), "pawl-torture"), "the folder for the folders of runs")
	flags.StringVar(&o.plant, "plant", "", "falsify each run in a way that the checks know, to see that they find it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%s is not an option: see --help", flags.Arg(0))
	}
	chosen, err := choose(o.only)
	if err != nil {
		return err
	}
	plants, finds := check.Plants()
	if o.list {
		for _, s := range chosen {
			fmt.Fprintf(out, "%-22s %s\n", s.name, s.about)
		}
		fmt.Fprintln(out, "\n--plant knows these faults, each with the check that finds it:")
		for _, name := range plants {
			fmt.Fprintf(out, "%-22s %s\n", name, finds[name])
		}
		return nil
	}
	if o.plant != "" && finds[o.plant] == "" {
		return fmt.Errorf("there is no fault %q to plant: see --list", o.plant)
	}
	if o.program, err = filepath.Abs(o.program); err != nil {
		return err
	}
	if _, err := os.Stat(o.program); err != nil {
		return fmt.Errorf("%w: run make build", err)
	}
	if _, err := localpg.Find(); err != nil {
		return err
	}
	return o.rounds(ctx, chosen, out)
}

// choose returns the scenarios of these names.
func choose(only string) ([]scenario, error) {
	known := scenarios()
	if only == "" {
		return known, nil
	}
	var chosen []scenario
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(known, func(s scenario) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no scenario %q: see --list", name)
		}
		chosen = append(chosen, known[i])
	}
	return chosen, nil
}

// rounds runs the scenarios once, or until the time is over, and writes the table of all runs.
func (o options) rounds(ctx context.Context, chosen []scenario, out io.Writer) error {
	seed := o.seed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	fmt.Fprintf(out, "seed %d\n", seed)
	var results []result
	failed := 0
	for begin := time.Now(); ; seed++ {
		for _, s := range chosen {
			r, skipped, err := o.once(ctx, s, seed, out)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				return fmt.Errorf("%s: %w", s.name, err)
			case skipped:
				continue
			}
			if results = append(results, r); len(r.violations) > 0 {
				failed++
			}
		}
		if time.Since(begin) >= o.duration {
			break
		}
	}
	write(out, results)
	if failed > 0 {
		return fmt.Errorf("%d of %d runs failed", failed, len(results))
	}
	return nil
}

// once runs a scenario. The folder of a run that failed is kept.
func (o options) once(ctx context.Context, s scenario, seed uint64, out io.Writer) (_ result, skipped bool, err error) {
	if s.pooler != "" {
		if _, err := findPooler(); err != nil {
			fmt.Fprintf(out, "%s is skipped: %v\n", s.name, err)
			return result{}, true, nil
		}
	}
	dir := filepath.Join(o.dir, fmt.Sprintf("%s-%d", s.name, seed))
	if err := os.RemoveAll(dir); err != nil {
		return result{}, false, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return result{}, false, err
	}
	size := fullSize
	if o.short {
		size = shortSize
	}
	r, err := run(ctx, s, seed, size, o.program, dir, o.plant)
	if errors.Is(err, errSkip) {
		fmt.Fprintf(out, "%s is skipped: %v\n", s.name, err)
		return result{}, true, os.RemoveAll(dir)
	}
	if ctx.Err() != nil {
		return result{}, false, ctx.Err()
	}
	if err != nil { // Such as a replica that does not start. The other scenarios go on.
		r = result{scenario: s.name, seed: seed, violations: []check.Violation{{Check: "run", Detail: err.Error()}}}
	}
	fmt.Fprintln(out, strings.ReplaceAll(r.line(), "\t", "  "))
	r.writeViolations(out)
	if len(r.violations) == 0 {
		return r, false, os.RemoveAll(dir)
	}
	options := ""
	if o.short {
		options += " --short"
	}
	if o.plant != "" {
		options += " --plant " + o.plant
	}
	fmt.Fprintf(out, "  replay: make torture ARGS=\"--seed %d --only %s%s\"\n  folder: %s\n", seed, s.name, options, dir)
	data, err := json.MarshalIndent(r.violations, "", "  ")
	if err != nil {
		return r, false, err
	}
	return r, false, os.WriteFile(filepath.Join(dir, "violations.json"), data, 0o644)
}
