package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/pawl-fsm/pawl/db"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// instanceArchive writes final instances to a file, straight from the database.
type instanceArchive struct {
	OlderThan age      `required:"" placeholder:"DURATION" help:"Only instances that have been final for at least this time by the database's clock, such as 90d."`
	Workflow  []string `placeholder:"NAME" help:"Only instances of this workflow; may be repeated."`
	Tenant    string   `help:"Only instances of this tenant; by default of all tenants."`
	Limit     int      `help:"Largest number of instances; 0 for all."`
	Output    string   `type:"path" placeholder:"FILE" help:"File to create; by default standard output."`
	Purge     bool     `help:"Purge the instances that were written, with their history and keys."`
	roleFlags
}

// age is a duration as definitions spell it, such as 90d.
type age time.Duration

// UnmarshalText parses a duration.
func (a *age) UnmarshalText(text []byte) error {
	d, err := definition.ParseDuration(string(text))
	*a = age(d)
	return err
}

// Help is printed below the help of the command.
func (i *instanceArchive) Help() string {
	return "Writes one JSON object per line: an instance as the API shows it, with its tenant_id and its whole history. " +
		"Without --purge the database is only read, which takes the privilege reader or service of 'pawl migrate grants'.\n\n" +
		"--purge takes the privilege operator as well, or the schema's owner. " +
		"With --purge an instance is purged after its line has been written to the file and the file has been flushed to " +
		"the disk. With standard output it is purged after the line has been written; make sure that the reader keeps it. " +
		"An instance stays if an idempotency key still replays it, or if another transaction has locked it; standard error " +
		"says how many stay.\n\n" +
		"If the command is interrupted, nothing is lost. The next run writes again every instance that was not purged. " +
		"So two files may have the same line, and the last line of the first file may be incomplete."
}

// Validate refuses what is wrong whatever the database holds.
func (i *instanceArchive) Validate() error {
	if i.Limit < 0 {
		return errors.New("--limit must be 0 or more")
	}
	return i.roleFlags.Validate()
}

// archivedInstance is one line of an archive.
type archivedInstance struct {
	TenantID string `json:"tenant_id"`
	api.Instance
	History []api.HistoryItem `json:"history"`
}

func (i *instanceArchive) Run(c *console) (err error) {
	needed := []db.Privilege{db.Reader}
	if i.Purge {
		needed = append(needed, db.Operator)
	}
	pool, err := openDatabase(c, i.DatabaseURL, db.Config{MaxConns: 2}, needed...)
	if err != nil {
		return err
	}
	defer pool.Close()
	service := fsm.New(pool, fsm.Config{})
	defer service.Close()

	var output io.Writer = c.out
	sync := func() error { return nil }
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
		Tenant: i.Tenant, Workflows: i.Workflow, OlderThan: time.Duration(i.OlderThan), Limit: i.Limit, Purge: i.Purge,
		Write: func(a lifecycle.Archived) error { return writeLine(lines, a) }, Flush: flush,
	})
	if flushed := flush(); err == nil {
		err = flushed
	}
	if err == nil || archive.Written > 0 {
		i.print(c, archive)
	}
	return err
}

// writeLine writes an archived instance.
func writeLine(to io.Writer, a lifecycle.Archived) error {
	line := archivedInstance{
		TenantID: a.Tenant, Instance: api.InstanceOf(a.Instance), History: make([]api.HistoryItem, len(a.History)),
	}
	for n, step := range a.History {
		line.History[n] = api.HistoryItemOf(step)
	}
	return json.NewEncoder(to).Encode(line)
}

// print prints the numbers on standard error, since the archive may be on standard output.
func (i *instanceArchive) print(c *console, a lifecycle.Archive) {
	c.complain("%d instances written", a.Written)
	if i.Purge {
		c.complain(", %d purged", a.Purged)
	}
	if stay := a.Written - a.Purged; i.Purge && stay > 0 {
		c.complain("; %d stay, since a key still replays them or a transaction has locked them, and are written again by the next run", stay)
	}
	c.complain("\n")
}

// newFile creates a file. It fails if the file exists. The folder is flushed to the disk too, so that
// the name of the file survives a crash.
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
