package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A result counts tests, subtests among them.
type result struct {
	passed, failed, skipped int
}

func (r result) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", r.passed, r.failed, r.skipped)
}

// event is a line of go test -json; see go doc test2json.
type event struct {
	Action, Package, Test, Output string
}

// read counts the tests of a run. It prints what packages print, and of tests what those print that did not pass.
func (r *result) read(events io.Reader, out io.Writer) error {
	output := map[[2]string]*strings.Builder{}
	for d := json.NewDecoder(events); ; {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			// go test would wait for whoever reads on.
			_, _ = io.Copy(io.Discard, events)
			return fmt.Errorf("read the output of go test: %w", err)
		}
		key := [2]string{e.Package, e.Test}
		switch {
		case e.Test == "":
			if e.Output != "PASS\n" {
				fmt.Fprint(out, e.Output)
			}
		case e.Action == "output":
			if output[key] == nil {
				output[key] = &strings.Builder{}
			}
			output[key].WriteString(e.Output)
		case e.Action == "pass":
			r.passed++
			delete(output, key)
		case e.Action == "fail", e.Action == "skip":
			if e.Action == "fail" {
				r.failed++
			} else {
				r.skipped++
			}
			if text := output[key]; text != nil {
				fmt.Fprint(out, text)
				delete(output, key)
			}
		}
	}
}
