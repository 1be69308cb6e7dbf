package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-fsm/pawl/db/localpg"
)

var (
	//go:embed bench/writes.sql
	writesScript string
	//go:embed bench/fire.sql
	fireScript string
)

// pgbenchScale is that of its own tables: a million accounts.
const pgbenchScale = 10

// A reference is what pgbench measures on the same server.
type reference struct {
	Name        string  `json:"name"`
	Connections int     `json:"connections"`
	Rate        float64 `json:"rate"`
	Mean        float64 `json:"mean_ms"`
	Operations  int     `json:"operations"`
	usage
	// Ratio is the rate of transitions over HTTP to this one.
	Ratio *float64 `json:"ratio"`
}

// references are pgbench's builtin of one update and one insert, the engine's writes as
// plain statements, and the engine itself.
func references() []pgbenchScript {
	return []pgbenchScript{
		{name: "simple-update", args: []string{"--skip-some-updates"}},
		{name: "writes", script: writesScript},
		{name: "fire", script: fireScript},
	}
}

type pgbenchScript struct {
	name, script string
	args         []string
}

// pgbench runs the program on a database. Its own tables are kept in the bench's schema,
// away from those that the database may have.
type pgbench struct {
	program, dsn string
	env          []string
}

// findPgbench returns nil if there is none. Passwords are kept from the command line,
// which everybody may read.
func findPgbench(bin localpg.Binaries, dsn, password string) *pgbench {
	program, err := bin.Path("pgbench")
	if err != nil {
		return nil
	}
	p := &pgbench{program: program, dsn: withoutPassword(dsn)}
	p.env = append(os.Environ(), "PGOPTIONS=-c search_path="+benchSchema)
	if password != "" {
		p.env = append(p.env, "PGPASSWORD="+password)
	}
	return p
}

var passwordPair = regexp.MustCompile(`\bpassword\s*=\s*('(\\.|[^'\\])*'|\S+)`)

func withoutPassword(dsn string) string {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" {
		return passwordPair.ReplaceAllString(dsn, "")
	}
	if u.User != nil {
		u.User = url.User(u.User.Username())
	}
	return u.String()
}

func (p *pgbench) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.program, append(args, p.dsn)...)
	cmd.Env = p.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("pgbench: %w: %s", err, lastLine(out))
	}
	return string(out), nil
}

// lastLine is where pgbench says what ended it.
func lastLine(out []byte) []byte {
	out = bytes.TrimSpace(out)
	return out[bytes.LastIndexByte(out, '\n')+1:]
}

func (p *pgbench) initialise(ctx context.Context) error {
	_, err := p.run(ctx, "--initialize", "--quiet", "--scale", strconv.Itoa(pgbenchScale))
	return err
}

var (
	pgbenchRate     = regexp.MustCompile(`(?m)^tps = ([0-9.]+) `)
	pgbenchMean     = regexp.MustCompile(`(?m)^latency average = ([0-9.]+) ms`)
	pgbenchCount    = regexp.MustCompile(`(?m)^number of transactions actually processed: ([0-9]+)`)
	pgbenchProgress = regexp.MustCompile(`(?m)^progress: [0-9.]+ s, ([0-9.]+) tps`)
)

// measure runs one script for a time, and from a second on for a second more to warm up,
// which does not count towards the rate: pgbench knows whole seconds. run makes keys unique; slice is how many instances each client has.
func (p *pgbench) measure(ctx context.Context, s pgbenchScript, connections int, d time.Duration, run string, slice int) (*reference, error) {
	seconds := 1
	if d >= time.Second {
		seconds += int(math.Ceil(d.Seconds()))
	}
	args := append([]string{
		"--no-vacuum", "--protocol", "prepared", "--progress", "1", "--time", strconv.Itoa(seconds),
		"--client", strconv.Itoa(connections), "--jobs", "2",
	}, s.args...)
	if s.script != "" {
		file, err := os.CreateTemp("", "pawl-bench-*.sql")
		if err != nil {
			return nil, err
		}
		defer func() { _ = os.Remove(file.Name()) }()
		_, err = file.WriteString(s.script)
		if err := errors.Join(err, file.Close()); err != nil {
			return nil, err
		}
		args = append(args, "--file", file.Name(),
			"--define", "i=0", "--define", "run="+run, "--define", "slice="+strconv.Itoa(slice))
	}
	out, err := p.run(ctx, args...)
	if err != nil {
		return nil, err
	}
	r := &reference{Name: s.name, Connections: connections}
	if r.Rate, err = matched(pgbenchRate, out); err != nil {
		return nil, err
	}
	if r.Mean, err = matched(pgbenchMean, out); err != nil {
		return nil, err
	}
	count, err := matched(pgbenchCount, out)
	r.Operations = int(count)
	if lines := pgbenchProgress.FindAllStringSubmatch(out, -1); len(lines) > 1 {
		sum := 0.0
		for _, line := range lines[1:] {
			rate, _ := strconv.ParseFloat(line[1], 64) // The pattern sees to its form.
			sum += rate
		}
		r.Rate = sum / float64(len(lines)-1)
	}
	return r, err
}

func matched(pattern *regexp.Regexp, out string) (float64, error) {
	m := pattern.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench: no %s in: %s", pattern, cmp.Or(strings.TrimSpace(out), "nothing"))
	}
	return strconv.ParseFloat(m[1], 64)
}
