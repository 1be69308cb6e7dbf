package lifecycle

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

// Schema is one version of a JSON Schema of the deployment, which definitions refer to by its name.
type Schema struct {
	Name string
	// Version is 1, 2, 3 …; 0 never occurs.
	Version int
	// Checksum is the SHA-256 of the schema's jsonb text, in hexadecimal.
	Checksum string
	// Schema is a JSON Schema, as it was registered.
	Schema json.RawMessage
	// CreatedAt and CreatedBy are when and by which actor it was registered.
	CreatedAt time.Time
	CreatedBy string
}

func schemaOf(s queries.Schema) Schema {
	return Schema{
		Name: s.Name, Version: int(s.Version), Checksum: s.Checksum, Schema: s.Schema, CreatedAt: s.CreatedAt, CreatedBy: s.CreatedBy,
	}
}

// RegisterSchema checks a JSON Schema and makes it the next version of the deployment's schema with a name, unless the
// latest version has the same content: then created is false. An empty actor is "anonymous". No registered definition
// changes, since each has copies of the schemas that it refers to.
//
// Kinds: Malformed, TooLarge, InvalidDefinition with every fault, Unavailable.
func (s *Service) RegisterSchema(ctx context.Context, name string, data []byte, actor string) (schema Schema, created bool, err error) {
	if actor == "" {
		actor = "anonymous"
	}
	if err := fsm.CheckTexts(fsm.Text{Value: actor, Max: 255}); err != nil {
		return Schema{}, false, err
	}
	limits, err := limitsOf(ctx, s.db.Change)
	if err != nil {
		return Schema{}, false, fsm.AsError(err)
	}
	if err := definition.CheckSchema(name, data, limits, lookup(ctx, s.db.Change, limits)); err != nil {
		return Schema{}, false, fsm.AsError(err)
	}
	err = s.db.ChangeAll(ctx, "30s", func(q *queries.Queries) error {
		row, err := q.RegisterSchema(ctx, queries.RegisterSchemaParams{Name: name, Schema: data, Actor: actor, Caller: fsm.CallerJSON(ctx)})
		if err != nil {
			return err
		}
		stored, err := q.GetSchemaVersion(ctx, queries.GetSchemaVersionParams{Name: name, Version: row.Version})
		schema, created = schemaOf(stored), row.Created
		return err
	})
	if err != nil {
		return Schema{}, false, fsm.AsError(err)
	}
	return schema, created, nil
}

// A caller makes one call to the database.
type caller func(context.Context, func(context.Context, *queries.Queries) error) error

// limitsOf reads the limits of definitions.
func limitsOf(ctx context.Context, call caller) (limits definition.Limits, err error) {
	err = call(ctx, func(ctx context.Context, q *queries.Queries) error {
		setting, err := q.GetSetting(ctx)
		limits = definition.Limits{Bytes: int(setting.DefinitionLimit), States: int(setting.StateLimit)}
		return err
	})
	return limits, err
}

// maxSchemaNames is how many names of schemas are compared with a misspelled one.
const maxSchemaNames = 10_000

// lookup finds schemas in the database.
func lookup(ctx context.Context, call caller, limits definition.Limits) definition.Lookup {
	return func(references []string) (library definition.Library, err error) {
		err = call(ctx, func(ctx context.Context, q *queries.Queries) error {
			library = definition.Library{Schemas: map[string]json.RawMessage{}, Hints: map[string]string{}}
			rows, err := q.SchemasFor(ctx, queries.SchemasForParams{Refs: references, Bytes: int64(limits.Bytes) + 1})
			if err != nil {
				return err
			}
			var missing []string
			bytes := 0
			for _, row := range rows {
				if bytes += len(row.Schema); bytes > limits.Bytes {
					return fsm.Errorf(fsm.TooLarge, "the schemas of the deployment that are referred to have more than %d bytes together", limits.Bytes)
				}
				if row.Schema == nil {
					missing = append(missing, row.Reference)
				} else {
					library.Schemas[row.Reference] = row.Schema
				}
			}
			if len(missing) == 0 {
				return nil
			}
			names, err := q.ListSchemaNames(ctx, maxSchemaNames)
			for _, ref := range missing {
				name, _, _ := strings.Cut(strings.TrimPrefix(ref, "pawl:"), "@")
				library.Hints[ref] = definition.Nearest(name, names)
			}
			return err
		})
		return library, err
	}
}

// GetSchema returns a version of a schema of the deployment, or the latest one for version 0.
// Kinds: NotFound, Unavailable.
func (s *Service) GetSchema(ctx context.Context, name string, version int) (Schema, error) {
	absent := fsm.Errorf(fsm.NotFound, "there is no such schema, or no such version of it")
	schema, err := readVersion(ctx, s, name, version, absent, (*queries.Queries).GetSchema,
		func(q *queries.Queries, ctx context.Context, name string, version int32) (queries.Schema, error) {
			return q.GetSchemaVersion(ctx, queries.GetSchemaVersionParams{Name: name, Version: version})
		})
	return schemaOf(schema), err
}

// ListSchemas returns the latest version of each schema of the deployment, by name.
// Kinds: Malformed (limit or cursor), Unavailable.
func (s *Service) ListSchemas(ctx context.Context, page fsm.Page) (fsm.List[Schema], error) {
	items, next, err := database.List(ctx, s.db, database.Listing[queries.Schema, Schema]{
		Scope: "schemas",
		Rows: func(ctx context.Context, db queries.DBTX, after string, limit int32) ([]queries.Schema, error) {
			return queries.New(db).ListSchemas(ctx, queries.ListSchemasParams{After: after, RowLimit: limit, Bytes: fsm.PageBytes})
		},
		Bytes: func(s queries.Schema) int { return len(s.Schema) },
		Item:  schemaOf,
		Key:   func(s Schema) string { return s.Name },
	}, page.Limit, page.Cursor)
	return fsm.List[Schema]{Items: items, Next: next}, err
}
