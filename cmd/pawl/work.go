package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// workCommand is `pawl work`.
type workCommand struct {
	Claim     workClaim     `cmd:"" help:"Claim tasks of a topic and print each as a line of JSON. Exit code 0: there were some, 1: there was none, 2: it failed."`
	Heartbeat workHeartbeat `cmd:"" help:"Extend the lease of a task. Exit code 0: go on, 1: stop, since the lease is superseded, the task has ended or its instance has moved on, 2: it failed."`
	Complete  workComplete  `cmd:"" help:"End a task with its result, and print the instance. Exit code 0: done, 1: the lease is superseded or the task has ended, 2: it failed."`
	Fail      workFail      `cmd:"" help:"End an attempt that failed. Exit codes as of complete."`
	Release   workRelease   `cmd:"" help:"Give a task back to other workers. Exit codes as of complete."`
}

// workClaim claims tasks.
type workClaim struct {
	clientFlags
	Topic  string `arg:"" help:"Topic of the tasks."`
	Worker string `required:"" env:"PAWL_WORKER" help:"Name of the worker, for people."`
	Max    int    `default:"1" help:"Largest number of tasks, up to 100."`
	Lease  string `help:"Length of the leases, from 1s to 1h; by default what the task declares."`
	Wait   string `help:"How long to wait for a task if there is none, up to 60s."`
	Key    string `help:"Idempotency key; by default a new one. The same key gets the same tasks."`
}

func (w *workClaim) Run(c *console) error {
	body := members(map[string]string{"lease": w.Lease, "wait": w.Wait}, "", nil)
	body["worker"], body["max"] = w.Worker, w.Max
	request := call{method: http.MethodPost, path: "/v1/work/" + url.PathEscape(w.Topic) + "/claim", key: w.Key, body: body}
	request.wait, _ = definition.ParseDuration(w.Wait) // The service says what is wrong with it.
	var answer struct {
		Tasks []json.RawMessage `json:"tasks"`
	}
	if _, err := w.do(c, request, &answer); err != nil {
		return undecided{err}
	}
	for _, task := range answer.Tasks {
		c.print(string(task) + "\n")
	}
	if len(answer.Tasks) == 0 {
		return errReported
	}
	return nil
}

// leasedTask has the arguments of a command for a task that was claimed.
type leasedTask struct {
	clientFlags
	ID    string `arg:"" help:"Id of the task."`
	Lease string `arg:"" help:"Lease of the claim."`
}

// report sends what the worker says.
func (l *leasedTask) report(c *console, what string, body map[string]any, into any) error {
	body["lease"] = l.Lease
	_, err := l.do(c, call{method: http.MethodPost, path: "/v1/tasks/" + url.PathEscape(l.ID) + "/" + what, body: body}, into)
	var refused *problem
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused) && (refused.Code == "lease-superseded" || refused.Code == "task-ended"):
		return err
	}
	return undecided{err}
}

// workHeartbeat extends a lease.
type workHeartbeat struct {
	leasedTask
	Progress string `placeholder:"JSON|@FILE|-" help:"How far the work has come: JSON or YAML, @FILE to read it from a file, or - for standard input."`
}

func (w *workHeartbeat) Run(c *console) error {
	progress, err := c.input(w.Progress)
	if err != nil {
		return undecided{err}
	}
	var answer struct {
		LeaseExpiresAt  string `json:"lease_expires_at"`
		CancelRequested bool   `json:"cancel_requested"`
	}
	if err := w.report(c, "heartbeat", members(nil, "progress", progress), &answer); err != nil {
		return err
	}
	if w.JSON {
		err = c.printJSON(answer)
	} else {
		c.printf("the lease is over at %s\n", answer.LeaseExpiresAt)
	}
	if err == nil && answer.CancelRequested {
		c.complain("the instance has left the state of the task: stop\n")
		return errReported
	}
	return err
}

// workComplete ends a task with its result.
type workComplete struct {
	leasedTask
	Result string `placeholder:"JSON|@FILE|-" help:"Result: JSON or YAML, @FILE to read it from a file, or - for standard input."`
}

func (w *workComplete) Run(c *console) error {
	result, err := c.input(w.Result)
	if err != nil {
		return undecided{err}
	}
	var answer instanceAnswer
	if err := w.report(c, "complete", members(nil, "result", result), &answer); err != nil {
		return err
	}
	return c.printInstance(answer, w.JSON)
}

// workFail ends an attempt that failed.
type workFail struct {
	leasedTask
	Error     string `required:"" help:"Why it failed."`
	Retryable bool   `help:"Another attempt may succeed."`
	RetryIn   string `help:"With --retryable, when to try again at the earliest, such as 1m."`
	Outcome   string `enum:",error,unknown" default:"" help:"How the task ends if there is no other attempt: error, since it had no effect, or unknown."`
}

func (w *workFail) Run(c *console) error {
	body := members(map[string]string{"error": w.Error, "retry_in": w.RetryIn, "outcome": w.Outcome}, "", nil)
	body["retryable"] = w.Retryable
	var answer taskAnswer
	if err := w.report(c, "fail", body, &answer); err != nil {
		return err
	}
	return c.printTask(answer, w.JSON)
}

// workRelease gives a task back.
type workRelease struct{ leasedTask }

func (w *workRelease) Run(c *console) error {
	var answer taskAnswer
	if err := w.report(c, "release", map[string]any{}, &answer); err != nil {
		return err
	}
	return c.printTask(answer, w.JSON)
}
