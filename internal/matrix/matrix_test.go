package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What fails and what is skipped is counted and shown, as packages that do not build are.
func TestRead(t *testing.T) {
	t.Parallel()
	events := `
		{"Action":"start","Package":"a"}
		{"Action":"output","Package":"a","Test":"TestGood","Output":"not of interest\n"}
		{"Action":"output","Package":"a","Test":"TestBad","Output":"got 1, want 2\n"}
		{"Action":"pass","Package":"a","Test":"TestGood"}
		{"Action":"pass","Package":"a","Test":"TestGood/part"}
		{"Action":"fail","Package":"a","Test":"TestBad"}
		{"Action":"output","Package":"a","Test":"TestNot","Output":"there is no psql\n"}
		{"Action":"skip","Package":"a","Test":"TestNot"}
		{"Action":"output","Package":"a","Output":"FAIL\ta\t1.2s\n"}
		{"Action":"fail","Package":"a"}
		{"ImportPath":"b","Action":"build-output","Output":"b.go:1:1: expected 'package'\n"}
		{"ImportPath":"b","Action":"build-fail"}
		{"Action":"output","Package":"b","Output":"FAIL\tb [build failed]\n"}
		{"Action":"fail","Package":"b","FailedBuild":"b"}`
	var r result
	var out strings.Builder
	if err := r.read(strings.NewReader(events), &out); err != nil {
		t.Fatal(err)
	}
	if want := (result{passed: 2, failed: 1, skipped: 1}); r != want {
		t.Errorf("counted %v, want %v", r, want)
	}
	want := "got 1, want 2\nthere is no psql\nFAIL\ta\t1.2s\nb.go:1:1: expected 'package'\nFAIL\tb [build failed]\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("printed otherwise:\n%s", diff)
	}
	if err := r.read(strings.NewReader("go: no such package"), &out); err == nil {
		t.Error("what is no event was read")
	}
}

// The oldest and the newest version must run, with -all every one.
func TestMissing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		versions string
		found    []int
		all      bool
		want     []int
	}{
		"all are there":          {found: []int{15, 16, 17, 18}, all: true},
		"one between is missing": {found: []int{15, 17, 18}},
		"and is wanted":          {found: []int{15, 17, 18}, all: true, want: []int{16}},
		"the oldest is missing":  {found: []int{16, 17, 18}, want: []int{15}},
		"the newest is missing":  {found: []int{15}, want: []int{18}},
		"some are asked for":     {versions: "17 16", found: []int{16}, want: []int{17}},
		"an old one":             {versions: "14"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			majors, err := parseVersions(c.versions)
			if (err != nil) != (c.versions == "14") {
				t.Fatal(err)
			}
			servers := map[int]server{}
			for _, major := range c.found {
				servers[major] = server{}
			}
			if diff := cmp.Diff(c.want, missing(majors, servers, c.all)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
