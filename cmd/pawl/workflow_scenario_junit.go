package main

import (
	"encoding/xml"
	"fmt"
	"os"
	"strings"
)

// junitReport is the form in which tools of pipelines read results of tests.
type junitReport struct {
	XMLName xml.Name     `xml:"testsuites"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string       `xml:"classname,attr"`
	Name    string       `xml:"name,attr"`
	Time    string       `xml:"time,attr"`
	Failure *junitDetail `xml:"failure"`
	Error   *junitDetail `xml:"error"`
}

type junitDetail struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// add adds the results of a file.
func (r *junitReport) add(file string, results []scenarioResult) {
	suite := junitSuite{Name: relative(file), Tests: len(results)}
	for _, result := range results {
		one := junitCase{Class: suite.Name, Name: result.Name, Time: fmt.Sprintf("%.3f", result.took.Seconds())}
		if result.failures != nil {
			suite.Failures++
			one.Failure = &junitDetail{Message: result.failures[0], Text: strings.Join(append(result.steps, result.failures...), "\n")}
		}
		suite.Cases = append(suite.Cases, one)
	}
	r.Suites = append(r.Suites, suite)
}

// fail adds a file whose scenarios could not be run.
func (r *junitReport) fail(file string, err error) {
	one := junitCase{Class: relative(file), Name: "definition", Time: "0", Error: &junitDetail{Message: err.Error()}}
	r.Suites = append(r.Suites, junitSuite{Name: one.Class, Tests: 1, Errors: 1, Cases: []junitCase{one}})
}

func (r *junitReport) write(file string) error {
	text, err := xml.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append([]byte(xml.Header), append(text, '\n')...), 0o644)
}
