package dbtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/modules/postgres"
	"github.com/testcontainers/testcontainers-go/wait"
)

const (
	dockerEnv    = "PAWL_TEST_DOCKER"
	imageEnv     = "PAWL_TEST_POSTGRES_IMAGE"
	defaultImage = "postgres:18-alpine"
	answerWithin = 3 * time.Second
	reachWithin  = 20 * time.Second
)

// errNoDocker says that no daemon answers. It is not logged, since most machines have none.
var errNoDocker = errors.New("no Docker daemon answers")

// startDocker runs PostgreSQL in a container.
func startDocker(ctx context.Context, keep bool) (*server, error) {
	if os.Getenv(dockerEnv) == "off" {
		return nil, errNoDocker
	}
	if keep {
		// The reaper would remove the container soon after this process.
		if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
			return nil, err
		}
	}
	if err := askDocker(ctx); err != nil {
		return nil, err
	}

	image := cmp.Or(os.Getenv(imageEnv), defaultImage)
	var args []string
	for name, value := range withDefaults(nil) {
		args = append(args, "-c", name+"="+value)
	}
	// The image starts the server twice, first to set it up. awaitServer then connects, which shows that the server
	// can be reached from here; the module's own check needs a shell and tools in the image.
	ready := wait.ForLog("database system is ready to accept connections").WithOccurrence(2)
	container, err := postgres.Run(ctx, image, testcontainers.WithCmdArgs(args...), testcontainers.WithWaitStrategy(ready))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("run %s: %w", image, err), testcontainers.TerminateContainer(container))
	}
	dsn, err := container.ConnectionString(ctx, "sslmode=disable")
	if err == nil {
		err = awaitServer(ctx, dsn)
	}
	if err != nil {
		return nil, errors.Join(err, testcontainers.TerminateContainer(container))
	}
	return &server{
		dsn:    dsn,
		remove: "docker rm -fv " + container.GetContainerID(),
		stop: func(ctx context.Context) error {
			return testcontainers.TerminateContainer(container, testcontainers.StopContext(ctx))
		},
	}, nil
}

// awaitServer returns when the server accepts a connection: Docker publishes a port a moment after the container
// starts.
func awaitServer(ctx context.Context, dsn string) error {
	ctx, cancel := context.WithTimeout(ctx, reachWithin)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, dsn)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reach the container: %w", err)
		case <-tick.C:
		}
	}
}

// askDocker returns nil if a daemon answers. The library takes no deadline for that, so another goroutine asks. If a
// daemon accepts the connection and never answers, that goroutine lives as long as the process.
func askDocker(ctx context.Context) error {
	answer := make(chan error, 1)
	go func() {
		defer func() {
			if reason := recover(); reason != nil { // the library may panic if it finds no daemon
				answer <- fmt.Errorf("%v", reason)
			}
		}()
		provider, err := testcontainers.NewDockerProvider()
		if err == nil {
			err = errors.Join(provider.Health(ctx), provider.Close())
		}
		answer <- err
	}()
	select {
	case err := <-answer:
		if err != nil {
			return fmt.Errorf("%w: %w", errNoDocker, err)
		}
		return nil
	case <-time.After(answerWithin):
		return errNoDocker
	}
}
