package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/httpapi"
)

type instanceArchive struct {
	OlderThan   age      `required:"" placeholder:"DURATION" help:"For how long they have been final at least, by the database's clock, such as 90d."`
	Workflow    []string `placeholder:"NAME" help:"Of this workflow; may be repeated. By default of all."`
	Tenant      string   `help:"Of this tenant. By default of all."`
	Limit       int      `help:"How many at most; 0 for all."`
	Output      string   `type:"path" placeholder:"FILE" help:"A new file. By default standard output."`
	Remove      bool     `help:"Remove what is written, with its history and keys."`
	DatabaseURL string   `required:"" env:"DATABASE_URL,PAWL_DATABASE_URL" placeholder:"URL" help:"The database, as a role with the privileges of 'pawl migrate grants'."`
}

// age is a duration as definitions write it.
type age time.Duration

// UnmarshalText reads it.
func (a *age) UnmarshalText(text []byte) error {
	d, err := definition.ParseDuration(string(text))
	*a = age(d)
	return err
}

// Help says more than the line in the list of commands.
func (i *instanceArchive) Help() string {
	return "Writes one JSON object per line: an instance as the API shows it, with its tenant_id and its whole history. " +
		"Without --remove the database is only read.\n\n" +
		"With --remove an instance goes after its line has been written to the file and the file has been flushed to " +
		"the disk. With standard output it goes after the line has been handed over; whether the reader keeps it is for " +
		"the reader to see. If the command is broken off nothing is lost: what was not removed is written again by " +
		"the next run, so that the same line may be in two files, and the last line of the first may be cut short. So is " +
		"what stays because an idempotency key still replays it, or because somebody held it; standard error tells how many."
}

// Validate refuses what can be told without a database.
func (i *instanceArchive) Validate() error {
	if i.Limit < 0 {
		return errors.New("--limit must not be negative")
	}
	return wantDatabase(i.DatabaseURL)
}

// archivedInstance is a line of an archive.
type archivedInstance struct {
	TenantID string `json:"tenant_id"`
	httpapi.Instance
	History []httpapi.HistoryItem `json:"history"`
}

func (i *instanceArchive) Run(c *console) (err error) {
	pool, err := db.Open(c, i.DatabaseURL, db.Config{MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	service := fsm.New(pool, fsm.Config{})
	defer service.Close()

	output, sync := c.out, func() error { return nil }
	if i.Output != "" {
		var file *os.File
		if file, err = newFile(i.Output); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		output, sync = file, file.Sync
	}
	lines := bufio.NewWriterSize(output, 1<<16)
	flush := func() error {
		if err := lines.Flush(); err != nil {
			return err
		}
		return sync()
	}
	archive, err := lifecycle.New(service).Archive(c, lifecycle.ArchiveCommand{
		Tenant: i.Tenant, Workflows: i.Workflow, OlderThan: time.Duration(i.OlderThan), Limit: i.Limit, Purge: i.Remove,
		Write: func(a lifecycle.Archived) error { return writeLine(lines, a) }, Flush: flush,
	})
	if flushed := flush(); err == nil {
		err = flushed
	}
	if err == nil || archive.Written > 0 {
		i.say(c, archive)
	}
	return err
}

func writeLine(to io.Writer, a lifecycle.Archived) error {
	line := archivedInstance{
		TenantID: a.Tenant, Instance: httpapi.InstanceOf(a.Instance), History: make([]httpapi.HistoryItem, len(a.History)),
	}
	for n, step := range a.History {
		line.History[n] = httpapi.HistoryItemOf(step)
	}
	return json.NewEncoder(to).Encode(line)
}

func (i *instanceArchive) say(c *console, a lifecycle.Archive) {
	_, _ = fmt.Fprintf(c.err, "%d instances written", a.Written)
	if i.Remove {
		_, _ = fmt.Fprintf(c.err, ", %d removed", a.Purged)
	}
	if stay := a.Written - a.Purged; i.Remove && stay > 0 {
		_, _ = fmt.Fprintf(c.err, "; %d stay, since a key still replays them or somebody held them, and are written again next time", stay)
	}
	_, _ = fmt.Fprintln(c.err)
}

// newFile makes a file that is not there, and whose name outlives a crash.
func newFile(name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	folder, err := os.Open(filepath.Dir(name))
	if err == nil {
		err = errors.Join(folder.Sync(), folder.Close())
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}
