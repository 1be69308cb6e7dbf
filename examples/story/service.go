package story

import (
	"os"
	"regexp"
	"testing"

	"github.com/pawl-fsm/pawl/internal/bounded"
)

// A Service is `pawl serve`, in a process of its own.
type Service struct {
	*Story
	*bounded.Process
	program string
}

var serving = regexp.MustCompile(`msg=serving address=(\S+)\s`)

// Serve starts the program on a database and a free port, and returns when it serves. It may call services on this
// machine, and has these variables beside its own. It is killed when the test ends.
func Serve(t testing.TB, program, dsn string, env ...string) *Service {
	t.Helper()
	p := bounded.Start(t, bounded.Program{
		Path: program, Args: []string{"serve", "--listen", "127.0.0.1:0", "--webhook-allow-private"}, Env: append(env, "DATABASE_URL="+dsn), Ready: serving,
	})
	return &Service{Story: &Story{t: t, url: "http://" + p.Ready[1]}, Process: p, program: program}
}

// Pawl runs a command against the service, and returns what it prints. The command must succeed.
func (s *Service) Pawl(args ...string) string {
	s.t.Helper()
	cmd := bounded.Command(s.t, s.program, args...)
	cmd.Env = append(os.Environ(), "PAWL_SERVER="+s.url)
	cmd.Stderr = s.t.Output()
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("pawl %v: %v", args, err)
	}
	return string(out)
}
