package httpapi

import (
	"context"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/lifecycle"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// schemaOf converts a version of a schema to the form of the contract.
func schemaOf(s lifecycle.Schema) api.Schema {
	return api.Schema{
		Name: s.Name, Version: s.Version, Checksum: s.Checksum, Schema: s.Schema, CreatedAt: api.Timestamp(s.CreatedAt), CreatedBy: s.CreatedBy,
	}
}

// RegisterSchema registers a JSON Schema as the next version of the deployment's schema with that name.
func (s *server) RegisterSchema(ctx context.Context, r RegisterSchemaRequestObject) (RegisterSchemaResponseObject, error) {
	if r.Body == nil {
		return nil, &problemError{code: api.ProblemCodeMalformedRequest, detail: "this operation needs a JSON Schema as its JSON body"}
	}
	if requestOf(ctx).within() != nil {
		return nil, forbidden("schemas are for all workflows, and your grants are for some")
	}
	schema, created, err := s.workflows.RegisterSchema(ctx, r.Name, *r.Body, requestOf(ctx).principal.subject)
	if err != nil {
		return nil, err
	}
	if !created {
		return RegisterSchema200JSONResponse(schemaOf(schema)), nil
	}
	return RegisterSchema201JSONResponse{
		Body:    schemaOf(schema),
		Headers: RegisterSchema201ResponseHeaders{Location: "/v1/schemas/" + schema.Name},
	}, nil
}

// ListSchemas answers with a page of schemas, each in its latest version.
func (s *server) ListSchemas(ctx context.Context, r ListSchemasRequestObject) (ListSchemasResponseObject, error) {
	page, err := pageOf(r.Params.Limit, r.Params.Cursor)
	if err != nil {
		return nil, err
	}
	list, err := s.workflows.ListSchemas(ctx, page)
	if err != nil {
		return nil, err
	}
	return ListSchemas200JSONResponse{
		Body:    api.SchemaList{Items: each(list.Items, schemaOf), NextCursor: optional(list.Next)},
		Headers: ListSchemas200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

// GetSchema answers with the latest version.
func (s *server) GetSchema(ctx context.Context, r GetSchemaRequestObject) (GetSchemaResponseObject, error) {
	schema, err := s.workflows.GetSchema(ctx, r.Name, 0)
	if err != nil {
		return nil, err
	}
	return GetSchema200JSONResponse(schemaOf(schema)), nil
}

// GetSchemaVersion answers with one version.
func (s *server) GetSchemaVersion(ctx context.Context, r GetSchemaVersionRequestObject) (GetSchemaVersionResponseObject, error) {
	if r.Version < 1 { // GetSchema takes 0 as the latest version.
		return nil, fsm.Errorf(fsm.NotFound, "a version of a schema is at least 1")
	}
	schema, err := s.workflows.GetSchema(ctx, r.Name, r.Version)
	if err != nil {
		return nil, err
	}
	return GetSchemaVersion200JSONResponse(schemaOf(schema)), nil
}
