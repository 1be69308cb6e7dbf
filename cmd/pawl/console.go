package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

// console is the context, the streams and the logger of a command.
type console struct {
	context.Context
	in       io.Reader
	out, err io.Writer
	log      *slog.Logger
}

// printf writes to standard output. If that fails, nobody reads it.
func (c *console) printf(format string, args ...any) { _, _ = fmt.Fprintf(c.out, format, args...) }

// printJSON prints a value as indented JSON.
func (c *console) printJSON(v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		c.printf("%s\n", text)
	}
	return err
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
