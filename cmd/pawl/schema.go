package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// schemaCommand is `pawl schema`.
type schemaCommand struct {
	Put  schemaPut  `cmd:"" help:"Register JSON Schemas that definitions refer to. The name of a schema is that of its file."`
	List schemaList `cmd:"" help:"List the schemas."`
	Show schemaShow `cmd:"" help:"Print a schema."`
}

// schemaAnswer is a schema as the API shows it.
type schemaAnswer struct {
	Name      string          `json:"name"`
	Version   int             `json:"version"`
	Checksum  string          `json:"checksum"`
	Schema    json.RawMessage `json:"schema"`
	CreatedAt string          `json:"created_at"`
	CreatedBy string          `json:"created_by"`
}

// schemaName is the name of the schema in a file: that of the file without its extension.
func schemaName(file string) string {
	return strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
}

// readSchema reads a schema in YAML or JSON.
func readSchema(file string) (json.RawMessage, error) {
	schema, err := readDocument(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return schema, nil
}

// schemasIn finds schemas in a folder: pawl:address in address.yaml, address.yml or address.json, and pawl:address@3 in
// a file address@3. Without a folder it is nil.
func schemasIn(folder string) definition.Lookup {
	if folder == "" {
		return nil
	}
	return func(references []string) (definition.Library, error) {
		library := definition.Library{Schemas: map[string]json.RawMessage{}, Hints: map[string]string{}}
		entries, err := os.ReadDir(folder)
		if err != nil {
			return library, err
		}
		var names []string
		for _, e := range entries {
			if !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
				continue
			}
			schema, err := readSchema(filepath.Join(folder, e.Name()))
			if err != nil {
				return library, err
			}
			names = append(names, schemaName(e.Name()))
			library.Schemas["pawl:"+schemaName(e.Name())] = schema
		}
		for _, ref := range references {
			library.Hints[ref] = definition.Nearest(strings.TrimPrefix(ref, "pawl:"), names)
		}
		return library, nil
	}
}

// schemaPut registers schemas.
type schemaPut struct {
	clientFlags
	Files []string `arg:"" type:"existingfile" help:"Files with a JSON Schema in YAML or JSON."`
}

// Help is printed below the help of the command.
func (s *schemaPut) Help() string {
	return "A schema is registered before those of the other files that refer to it."
}

func (s *schemaPut) Run(c *console) error {
	files, schemas, err := inOrder(s.Files)
	if err != nil {
		return err
	}
	for _, file := range files {
		var answer schemaAnswer
		status, err := s.do(c, call{method: http.MethodPut, path: "/v1/schemas/" + url.PathEscape(schemaName(file)), body: schemas[file]}, &answer)
		if err != nil {
			c.printFaults(file, err)
			return errReported
		}
		if err := s.printRegistered(c, status, answer.Name, answer.Version, answer); err != nil {
			return err
		}
	}
	return nil
}

// inOrder reads schemas, and sorts their files so that each comes behind those that it refers to. Of schemas that refer
// to one another the first comes first.
func inOrder(files []string) (sorted []string, schemas map[string]json.RawMessage, err error) {
	byRef := map[string]string{}
	schemas = map[string]json.RawMessage{}
	for _, file := range files {
		schema, err := readSchema(file)
		if err != nil {
			return nil, nil, err
		}
		byRef["pawl:"+schemaName(file)], schemas[file] = file, schema
	}
	seen := map[string]bool{}
	var visit func(file string)
	visit = func(file string) {
		if seen[file] {
			return
		}
		seen[file] = true
		var document any
		_ = json.Unmarshal(schemas[file], &document) // It was written as JSON.
		for _, ref := range definition.References(document) {
			if other, here := byRef[ref]; here {
				visit(other)
			}
		}
		sorted = append(sorted, file)
	}
	for _, file := range files {
		visit(file)
	}
	return sorted, schemas, nil
}

// schemaList prints the latest version of each schema.
type schemaList struct{ clientFlags }

func (s *schemaList) Run(c *console) error {
	items, err := pages[schemaAnswer](c, &s.clientFlags, "/v1/schemas", url.Values{}, 0)
	if err != nil {
		return err
	}
	if s.JSON {
		return c.printJSON(items)
	}
	table := c.table(2)
	table.row("NAME\tVERSION\tREGISTERED\tBY")
	for _, i := range items {
		table.row("%s\t%d\t%s\t%s", i.Name, i.Version, i.CreatedAt, i.CreatedBy)
	}
	return table.Flush()
}

// schemaShow prints a schema as it was registered.
type schemaShow struct {
	clientFlags
	Name string `arg:"" help:"Name of the schema."`
	At   int    `name:"schema-version" help:"Number of the version; by default the latest."`
}

func (s *schemaShow) Run(c *console) error {
	path := "/v1/schemas/" + url.PathEscape(s.Name)
	if s.At != 0 {
		path += fmt.Sprintf("/versions/%d", s.At)
	}
	var answer schemaAnswer
	if _, err := s.do(c, call{method: http.MethodGet, path: path}, &answer); err != nil {
		return err
	}
	if s.JSON {
		return c.printJSON(answer)
	}
	return c.printJSON(answer.Schema)
}
