package bench

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
	//go:embed sql/writes.sql
	writesScript string
	//go:embed sql/fire.sql
	fireScript string
)

// pgbenchScale is the size of pgbench's own tables: a million accounts.
const pgbenchScale = 10

// reference is a measurement by pgbench on the same server.
type reference struct {
	Name        string  `json:"name"`
	Connections int     `json:"connections"`
	Rate        float64 `json:"rate"`
	Mean        float64 `json:"mean_ms"`
	Operations  int     `json:"operations"`
	usage
	// Ratio is the rate of transitions over HTTP divided by this rate.
	Ratio *float64 `json:"ratio"`
}

// references are pgbench's builtin script of one update and one insert, the engine's writes as plain
// statements, and the engine called directly.
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

// pgbench runs the program on a database. The tables of the program are in the benchmark's schema.
type pgbench struct {
	program, dsn string
	env          []string
}

// findPgbench returns nil if the program is missing. A password is passed in the environment, since
// every user of the machine can read the command line of a process.
func findPgbench(bin localpg.Binaries, dsn, password string) *pgbench {
	program, err := bin.Path("pgbench")
	if err != nil {
		return nil
	}
	p := &pgbench{program: program, dsn: withoutPassword(dsn)}
	p.env = append(os.Environ(), "PGOPTIONS=-c search_path="+schema)
	if password != "" {
		p.env = append(p.env, "PGPASSWORD="+password)
	}
	return p
}

var passwordPair = regexp.MustCompile(`\bpassword\s*=\s*('(\\.|[^'\\])*'|\S+)`)

// withoutPassword removes the password from a connection URL, or from a string of key=value pairs.
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

// run returns what the program prints.
func (p *pgbench) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.program, append(args, p.dsn)...)
	cmd.Env = p.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("pgbench: %w: %s", err, lastLine(out))
	}
	return string(out), nil
}

// lastLine is where pgbench prints the error that ended it.
func lastLine(out []byte) []byte {
	out = bytes.TrimSpace(out)
	return out[bytes.LastIndexByte(out, '\n')+1:]
}

// initialise makes and fills the tables of pgbench.
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

// measure runs one script for a duration, rounded up to whole seconds, which are all that pgbench
// knows. A duration of a second or more is preceded by a second of warm-up, which does not count
// towards the rate. run is the prefix of the idempotency keys; slice is the number of instances of
// each client.
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
			rate, _ := strconv.ParseFloat(line[1], 64) // The pattern admits nothing else.
			sum += rate
		}
		r.Rate = sum / float64(len(lines)-1)
	}
	return r, err
}

// matched returns the number that a pattern finds in the output of pgbench.
func matched(pattern *regexp.Regexp, out string) (float64, error) {
	m := pattern.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench: no %s in: %s", pattern, cmp.Or(strings.TrimSpace(out), "nothing"))
	}
	return strconv.ParseFloat(m[1], 64)
}
