// Command migration writes the goose files of db/migrations from the source in db/schema.
//
//	go run ./internal/migration initial        writes 00001_pawl.sql
//	go run ./internal/migration delta NAME     writes the next migration, NNNNN_NAME.sql
//
// The initial migration is generated as long as it is the only one, which it is until the first
// release. From then on it never changes, and deltas follow it. A delta holds the functions that
// differ between the source and the schema that the migrations make. A change of a table, a type
// or a view cannot be derived: it is added to the delta by hand, and the test that compares the
// source with the migrations fails until it is. Raise pawl.schema_version before you make a delta.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/pawl-fsm/pawl/db/localpg"
	"github.com/pawl-fsm/pawl/db/schema"
)

const (
	folder  = "db/migrations"
	initial = folder + "/00001_pawl.sql"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "migration:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "initial":
		return writeInitial()
	case len(args) == 2 && args[0] == "delta":
		return writeDelta(ctx, args[1])
	default:
		return errors.New("usage: migration initial, or migration delta NAME")
	}
}

// writeInitial writes the initial migration. If others follow it, or if nothing has changed, it leaves the
// file alone.
func writeInitial() error {
	all, err := filepath.Glob(folder + "/*.sql")
	if err != nil {
		return err
	}
	if len(all) > 1 {
		return nil
	}
	text := []byte(schema.Up())
	if old, err := os.ReadFile(initial); err == nil && bytes.Equal(old, text) {
		return nil
	}
	return os.WriteFile(initial, text, 0o644)
}

var name = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// writeDelta writes the migration that makes the functions those of the source.
func writeDelta(ctx context.Context, title string) error {
	if !name.MatchString(title) {
		return fmt.Errorf("NAME %q: use lower-case letters, digits and underscores", title)
	}
	all, err := filepath.Glob(folder + "/*.sql")
	if err != nil {
		return err
	}
	number := len(all) + 1
	if schema.Version() != number {
		return fmt.Errorf("pawl.schema_version returns %d: raise it to %d in db/schema/00_core/schema_version.sql", schema.Version(), number)
	}
	server, err := localpg.Start(ctx, localpg.Config{})
	if err != nil {
		return err
	}
	defer func() { _ = server.Stop(context.WithoutCancel(ctx)) }()
	released, source, err := bothSchemas(ctx, server.DSN())
	if err != nil {
		return err
	}
	text, err := delta(released, source)
	if err != nil {
		return err
	}
	file := fmt.Sprintf("%s/%05d_%s.sql", folder, number, title)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	fmt.Println(file)
	if strings.Contains(text, nothing) {
		fmt.Println("no function differs: write the statements that change tables, types or views into it")
	}
	return nil
}
