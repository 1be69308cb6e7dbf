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
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		stop()
		os.Exit(1)
	}
}

// run draws the dashboard, of a world of its own unless the command line names a Prometheus.
func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("dashboard", flag.ContinueOnError)
	flags.SetOutput(out)
	url := flags.String("prometheus", "", "the URL of a Prometheus; by default one is run, with all that it scrapes")
	duration := flags.Duration("duration", 5*time.Minute, "the time that is drawn")
	interval := flags.Duration("scrape-interval", 5*time.Second, "how often the Prometheus scrapes")
	source := flags.String("dashboard", "deploy/grafana/dashboard.json", "what to draw")
	rules := flags.String("rules", "deploy/prometheus/rules.yaml", "the alert rules that the Prometheus has")
	target := flags.String("out", "docs/dashboard.svg", "the picture")
	program := flags.String("pawl", "bin/pawl", "the program to measure")
	if err := flags.Parse(args); err != nil {
		return err
	}
	text, err := os.ReadFile(*source)
	if err != nil {
		return err
	}
	var board dashboard
	if err := json.Unmarshal(text, &board); err != nil {
		return fmt.Errorf("%s: %w", *source, err)
	}
	if *url == "" {
		w, err := begin(ctx, *program, *rules, *interval)
		if err != nil {
			return err
		}
		defer w.end()
		// The first rates need some scrapes.
		if err := w.load(ctx, *duration+6**interval); err != nil {
			return err
		}
		*url = w.prometheus
	}
	p := prometheus{url: *url, interval: *interval}
	now := time.Now()
	faults := p.fill(ctx, &board, now.Add(-*duration), now)
	ruled, err := p.rules(ctx, out)
	if err != nil {
		return err
	}
	if err := os.WriteFile(*target, board.draw(now.Add(-*duration), now), 0o644); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: %d panels\n", *target, len(board.Panels))
	return errors.Join(append(faults, ruled...)...)
}
