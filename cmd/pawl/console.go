package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
)

// console is the context, the streams and the logger of a command.
type console struct {
	context.Context
	in       io.Reader
	out, err *guardedWriter
	log      *slog.Logger
}

// newConsole returns a console whose logger does not log yet.
func newConsole(ctx context.Context, in io.Reader, out, err io.Writer) *console {
	return &console{Context: ctx, in: in, out: guarded(out), err: guarded(err)}
}

// printf writes to standard output, each argument in one line. If that fails, nobody reads it.
func (c *console) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(c.out, format, oneLines(args)...)
}

// complain is printf to standard error.
func (c *console) complain(format string, args ...any) {
	_, _ = fmt.Fprintf(c.err, format, oneLines(args)...)
}

// fail writes why a command has failed to standard error. The reason may have several lines.
func (c *console) fail(reason string) { _, _ = io.WriteString(c.err, "pawl: "+reason+"\n") }

// print writes a document of several lines to standard output.
func (c *console) print(document string) { _, _ = io.WriteString(c.out, document) }

// annotate writes a command to the program that runs the pipeline, which begins with `::` and has one line. All other
// output is kept from reading as one.
func (c *console) annotate(command string) {
	var line strings.Builder
	line.WriteString("::")
	_, _ = io.WriteString(&guardedWriter{to: &line, begun: true}, oneLine(strings.TrimPrefix(command, "::")))
	_, _ = io.WriteString(c.out.to, line.String()+"\n")
}

// printJSON prints a value as indented JSON.
func (c *console) printJSON(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		c.print(string(text) + "\n")
	}
	return err
}

// table returns a table with so many spaces between two columns.
func (c *console) table(padding int) table {
	return table{tabwriter.NewWriter(c.out, 0, 0, padding, ' ', 0)}
}

// input returns an argument as JSON. The argument is JSON or YAML, @FILE to read that from a file, or -
// to read it from standard input. For an empty argument it returns nil.
func (c *console) input(arg string) (json.RawMessage, error) {
	data := []byte(arg)
	var err error
	switch name, file := strings.CutPrefix(arg, "@"); {
	case arg == "":
		return nil, nil
	case arg == "-":
		data, err = io.ReadAll(c.in)
	case file:
		data, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, err
	}
	return toJSON(data)
}

// orDash formats a text that may be missing for a table.
func orDash(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}

// printLines prints names and values, one pair a line.
func (c *console) printLines(lines [][2]string) error {
	table := c.table(1)
	for _, line := range lines {
		table.row("%s\t%s", line[0], line[1])
	}
	return table.Flush()
}
