package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	"github.com/pawl-fsm/pawl/internal/bounded"
)

var printedMessage = regexp.MustCompile(`\{"specversion":"1\.0","id":"([0-9a-f-]+):(\d+)"`)

// Whichever replica is killed, and whenever, the message of every answered transition is published, and
// each leader publishes the messages of an instance in their order.
func TestKilledReplicasLoseNoMessage(t *testing.T) {
	t.Parallel()
	const instances, rounds = 100, 100 // 10,000 transitions.
	dsn := dbtest.NewDSN(t)
	env := []string{"DATABASE_URL=" + serviceRole(t, dsn), "PAWL_SINKS=stdout:?from=start"}
	file := filepath.Join(t.TempDir(), "workflow.yaml")
	err := os.WriteFile(file, []byte("{name: tick, initial: ON, states: {ON: {on: {tick: ON, stop: OFF}}, OFF: {type: final}}}"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	replicas := []*process{start(t, env, "serve"), start(t, env, "serve")}
	all := append([]*process{}, replicas...)
	mustPawl(t, nil, "workflow", "apply", "--server", replicas[0].url, file)

	// batch sends commands to the replicas in turn until one answers, with the same keys.
	turn := 0
	batch := func(commands []string) (results []map[string]any) {
		t.Helper()
		body := `{"commands":[` + strings.Join(commands, ",") + `]}`
		var last string
		for range 21 {
			turn++
			a, err := send(bounded.Context(t), http.MethodPost, replicas[turn%2].url+"/v1/batch", body)
			if err == nil && a.status == http.StatusOK {
				var answer struct{ Results []map[string]any }
				if err := json.Unmarshal([]byte(a.body), &answer); err != nil {
					t.Fatal(err)
				}
				return answer.Results
			}
			last = fmt.Sprintf("%v %+v", err, a)
		}
		t.Fatalf("nobody answers: %s", last)
		return nil
	}
	var creates []string
	for n := range instances {
		creates = append(creates, fmt.Sprintf(`{"op":"create","key":"c%d","workflow":"tick"}`, n))
	}
	versions := map[string]int{} // The last version of each instance that was answered.
	var ids []string
	for _, r := range batch(creates) {
		id := r["instance"].(map[string]any)["id"].(string)
		ids = append(ids, id)
		versions[id] = 1
	}
	for round := range rounds {
		var fires []string
		for _, id := range ids {
			fires = append(fires, fmt.Sprintf(`{"op":"fire","key":"%s-%d","instance_id":"%s","event":"tick"}`, id, round, id))
		}
		killed := make(chan struct{})
		victim := -1
		if round%30 == 15 {
			victim = round / 30 % 2
			go func() { // While it works.
				defer close(killed)
				replicas[victim].Kill(t)
			}()
		}
		for n, r := range batch(fires) {
			if r["status"] != 200. {
				t.Fatalf("round %d: %v", round, r)
			}
			versions[ids[n]]++
		}
		if victim >= 0 {
			bounded.Receive(t, "a replica to be killed", killed)
			replicas[victim] = start(t, env, "serve")
			all = append(all, replicas[victim])
		}
	}

	const want = instances * (rounds + 1)
	published := map[string]bool{}
	bounded.Until(t, fmt.Sprintf("%d messages to be published", want), func() int {
		for _, p := range all {
			for _, m := range printedMessage.FindAllStringSubmatch(p.Output.String(), -1) {
				published[m[1]+":"+m[2]] = true
			}
		}
		return len(published)
	}, func(n int) bool { return n >= want })
	for id, last := range versions {
		for v := 1; v <= last; v++ {
			if !published[fmt.Sprintf("%s:%d", id, v)] {
				t.Errorf("version %d of %s is not published", v, id)
			}
		}
	}
	if len(published) != want {
		t.Errorf("%d messages, want %d", len(published), want)
	}
	for n, p := range all {
		for _, term := range strings.Split(p.Output.String(), "msg=leading") {
			seen := map[string]int{}
			for _, m := range printedMessage.FindAllStringSubmatch(term, -1) {
				var v int
				_, _ = fmt.Sscan(m[2], &v)
				// A message may be published again, but none may be left out.
				if last := seen[m[1]]; last > 0 && v > last+1 {
					t.Errorf("replica %d publishes version %d of %s after %d", n, v, m[1], last)
				}
				seen[m[1]] = v
			}
		}
	}
	status := mustPawl(t, nil, "outbox", "status", "--database-url", dsn, "--json")
	if !strings.Contains(status, `"consumer": "sink stdout:"`) || !strings.Contains(status, `"steps": 0`) {
		t.Errorf("status: %s", status)
	}
}

func TestDeleteAConsumer(t *testing.T) {
	t.Parallel()
	dsn := dbtest.NewDSN(t)
	env := []string{"DATABASE_URL=" + serviceRole(t, dsn), "PAWL_SINKS=stdout:"}
	p := start(t, env, "serve")
	p.Match(t, regexp.MustCompile(`consumer="sink stdout:"`))
	if _, stderr, code := pawl(t, nil, "outbox", "delete", "--database-url", dsn, "sink stdout:"); code != 1 || stderr != "pawl: consumer sink stdout:: a process leads; stop it first\n" {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if out := mustPawl(t, nil, "outbox", "status", "--database-url", dsn); !strings.Contains(out, "sink stdout:") || strings.Contains(out, "nobody") {
		t.Errorf("status: %s", out)
	}
	p.Signal(t, os.Interrupt)
	_ = p.Wait(t)
	mustPawl(t, nil, "outbox", "delete", "--database-url", dsn, "sink stdout:")
	if _, stderr, code := pawl(t, nil, "outbox", "delete", "--database-url", dsn, "sink stdout:"); code != 1 || !strings.Contains(stderr, "no consumer") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
