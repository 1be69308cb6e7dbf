package bounded_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Each rule finds what it is for, and nothing else. A line that breaks a rule ends with "// bad".
const judged = `package x_test

import (
	"testing"
	osexec "os/exec"
)

func wait(t *testing.T) {
	time.Sleep(1) // bad
	time.Sleep(1) // bounded: the reason
	// bounded: a reason that
	// takes two lines
	time.Sleep(1)
	time.Sleep(1) // bad
	<-time.After(1) // bad
	v := <-ch // bad
	f(<-ch) // bad
	f(-x, !y)
	group.Wait() // bad
	err := a.group.Wait() // bad
	p.Wait(t)
	synctest.Wait()
	bounded.Wait(t, "", group.Wait)
	go func() {
		<-ch
		group.Wait()
		for {
		}
		time.Sleep(1) // bad
	}()
	go f(<-ch) // bad
	group.Go(func() {
		v := <-ch
		select {
		case <-stop:
		}
	})
	f(func() { <-ch }) // bad
}

func choose(t *testing.T) {
	select { // bad
	case <-ch:
	case ch <- 1:
	}
	select {} // bad
	select {
	case v, ok := <-ch:
	default:
		<-ch // bad
	}
	select {
	case <-ch:
	case <-time.After(1):
		t.Fatal()
	}
	select {
	case <-ch:
	case <-time.After(1): // bad
	}
	select {
	case <-ch:
	case <-timer.C:
	case <-ctx.Done():
	}
	select {
	case <-ch:
	case <-t.Context().Done(): // bad
	}
}

func loop(t *testing.T, b *testing.B) {
	for { // bad
	}
	for !f() { // bad
	}
	for moved := false; !moved; { // bad
	}
	for i := 0; ; i++ { // bad
	}
	for end := f(); ; runtime.Gosched() { // bad
	}
	for i := 0; i < 3; i++ {
	}
	for line, ok := f(); ok; line, ok = f() {
	}
	for b.Loop() {
	}
	for range 3 {
	}
	lines := make(chan string, 100)
	for range lines { // bad
	}
	list := make([]string, 100)
	for range list {
	}
	// bounded: the reason
	for {
	}
	f() // bounded: nothing to excuse // bad
	f() // bounded:
}

func end(t *testing.T) {
	f(t.Context())
	for i := 0; t.Context().Err() == nil; i++ { // bad
	}
	<-a.t.Context().Done() // bad // bad
	f(context.WithoutCancel(t.Context())) // bad
	f(context.WithoutCancel(ctx))
	t.Cleanup(func() {
		f(t.Context()) // bad
		f(bounded.Context(t))
		<-ch // bad
	})
	a.t.Cleanup(func() { f(a.t.Context()) }) // bad
	exec.Command("x") // bad
	exec.CommandContext(t.Context(), "x") // bad
	exec.CommandContext(bounded.Context(t), "x")
	osexec.Command("x") // bad
	http.NewRequestWithContext(a.t.Context(), "x") // bad
	http.NewRequestWithContext(ctx, "x")
	http.Get("x") // bad
}

func bubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(1)
		<-ch
		p.Wait()
		for {
		}
		<-time.After(1)
		select {
		case <-ch:
		case <-time.After(1):
		}
	})
}
`

func TestRules(t *testing.T) {
	t.Parallel()
	faults, concerned, err := check("x_test.go", []byte(judged))
	if err != nil || !concerned {
		t.Fatal(concerned, err)
	}
	var got, want []string
	for _, f := range faults {
		got = append(got, strings.Split(f, ":")[1])
	}
	for i, line := range strings.Split(judged, "\n") {
		for range strings.Count(line, "// bad") {
			want = append(want, fmt.Sprint(i+1))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("faults in the lines\n%v, want\n%v:\n%s", got, want, strings.Join(faults, "\n"))
	}
	if faults, concerned, err := check("x.go", []byte(strings.Replace(judged, `"testing"`, `"time"`, 1))); err != nil || concerned || len(faults) > 0 {
		t.Errorf("a file without tests: %v, %v, %v", faults, concerned, err)
	}
}
