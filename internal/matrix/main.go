// Command matrix runs the tests on each supported PostgreSQL, one after the other.
//
//	go run ./internal/matrix [flags] [PACKAGE ...]
//
// The server of a version is the first of these that is there:
//
//  1. the one whose bin folder PAWL_PG_BIN_<version> names, or that this machine has installed;
//  2. a container of postgres:<version>-alpine, if Docker runs and has the image or can pull it. Tests that need a
//     server of their own, to stop or to configure it, still run on the one that is installed, or are skipped;
//  3. the binaries that the npm registry has, which are kept in .tools/postgres. They are the server alone: tests that
//     need a client program, such as pg_dump, take the one in PATH.
//
// Tests that need several versions at once, such as an upgrade, find all of them by PAWL_PG_BIN_<version>.
//
// A version that cannot be had is skipped, and the output says so. The exit code is 0 if no test failed and at least
// the oldest and the newest of the versions ran; with -all, if every one ran.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pawl-fsm/pawl/db/localpg"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("matrix", flag.ContinueOnError)
	versions := flags.String("versions", "", "major versions of PostgreSQL, separated by spaces (default all that are supported)")
	where := flags.Bool("where", false, "print the bin folders of the servers, and run nothing")
	all := flags.Bool("all", false, "fail unless every version ran, not only the oldest and the newest")
	race := flags.Bool("race", false, "use the race detector")
	short := flags.Bool("short", false, "leave out what takes long")
	timeout := flags.Duration("timeout", 10*time.Minute, "limit for one package")
	if err := flags.Parse(args); err != nil {
		return err
	}
	majors, err := parseVersions(*versions)
	if err != nil {
		return err
	}
	test := []string{"test", "-json", "-count=1", "-timeout", timeout.String(), "-race=" + strconv.FormatBool(*race), "-short=" + strconv.FormatBool(*short)}
	if flags.NArg() == 0 {
		test = append(test, "./...")
	}
	test = append(test, flags.Args()...)

	// All are found first, since a test may need several.
	servers := map[int]server{}
	for _, major := range majors {
		s, err := find(ctx, major)
		if err != nil {
			fmt.Fprintf(out, "PostgreSQL %d cannot be had: %v\n", major, err)
			continue
		}
		servers[major] = s
	}
	// What cannot pass is not begun.
	if missing := missing(majors, servers, *all); len(missing) > 0 {
		return fmt.Errorf("PostgreSQL %s must run: install it, or name its bin folder in %s",
			join(missing), localpg.MajorEnv(missing[0]))
	}

	if *where {
		for _, major := range majors {
			fmt.Fprintln(out, servers[major].dir)
		}
		return nil
	}

	failed := 0
	var lines []string
	for _, major := range majors {
		s, found := servers[major]
		if !found {
			lines = append(lines, fmt.Sprintf("PostgreSQL %d: did not run", major))
			continue
		}
		fmt.Fprintf(out, "--- PostgreSQL %d: %s\n", major, s.name)
		start := time.Now()
		result, err := runTests(ctx, test, s.env(), out)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		line := fmt.Sprintf("PostgreSQL %d: %s: %s, %.0f s", major, s.name, result, time.Since(start).Seconds())
		if err != nil {
			failed++
			line += ", " + err.Error()
		}
		lines = append(lines, line)
	}
	fmt.Fprintf(out, "---\n%s\n", strings.Join(lines, "\n"))
	if failed > 0 {
		return fmt.Errorf("the tests failed on %d of %d versions", failed, len(servers))
	}
	return nil
}

// parseVersions returns the major versions to run, in ascending order.
func parseVersions(text string) (majors []int, err error) {
	for _, field := range strings.Fields(text) {
		major, err := strconv.Atoi(field)
		if err != nil || major < localpg.OldestMajor {
			return nil, fmt.Errorf("version %q: give major versions of PostgreSQL from %d on", field, localpg.OldestMajor)
		}
		majors = append(majors, major)
	}
	if majors == nil {
		for major := localpg.OldestMajor; major <= localpg.NewestMajor; major++ {
			majors = append(majors, major)
		}
	}
	slices.Sort(majors)
	return slices.Compact(majors), nil
}

// missing returns the versions that must run and were not found: the oldest and the newest, or all.
func missing(majors []int, servers map[int]server, all bool) (missing []int) {
	for i, major := range majors {
		if _, found := servers[major]; !found && (all || i == 0 || i == len(majors)-1) {
			missing = append(missing, major)
		}
	}
	return missing
}

func join(numbers []int) string {
	return strings.Trim(fmt.Sprint(numbers), "[]")
}

// runTests runs go test with changes of the environment. The error says that it failed.
func runTests(ctx context.Context, args, env []string, out io.Writer) (result, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	// go passes an interrupt on to the tests, which stop their servers.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = out
	events, err := cmd.StdoutPipe()
	if err != nil {
		return result{}, err
	}
	if err := cmd.Start(); err != nil {
		return result{}, err
	}
	var r result
	err = errors.Join(r.read(events, out), cmd.Wait())
	if err == nil && r.passed == 0 {
		err = errors.New("no test ran")
	}
	return r, err
}
