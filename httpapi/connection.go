package httpapi

import (
	"context"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/fsm/connection"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// connectionOf converts a connection to the form of the contract.
func connectionOf(c connection.Connection) api.Connection {
	return api.Connection{
		Name: c.Name, BaseURL: c.BaseURL,
		Auth: api.ConnectionAuth{
			Type: api.ConnectionAuthType(c.Auth.Type), User: optional(c.Auth.User), Name: optional(c.Auth.Name), Env: optional(c.Auth.Variable),
		},
		Headers: c.Headers, Timeout: optional(definition.FormatDuration(c.Timeout)), Concurrency: c.Concurrency, TLS: api.ConnectionTLS{Ca: optional(c.CA)},
		Version: c.Version, Failures: c.Failures, RestsUntil: (*api.Timestamp)(c.CircuitOpenUntil), Finding: c.Finding,
		CreatedAt: api.Timestamp(c.CreatedAt), CreatedBy: c.CreatedBy, UpdatedAt: api.Timestamp(c.UpdatedAt),
	}
}

// settingsOf reads the settings of a request. Members that are left out have zero values;
// without auth its type is none.
func settingsOf(body api.ConnectionRequest) (connection.Settings, error) {
	auth := value(body.Auth)
	if body.Auth == nil {
		auth.Type = api.ConnectionAuthType(connection.None)
	}
	settings := connection.Settings{
		BaseURL: body.BaseURL, Headers: body.Headers, Concurrency: value(body.Concurrency), Auth: connection.Auth{Type: string(auth.Type)},
	}
	if body.Concurrency != nil && *body.Concurrency == 0 {
		return settings, malformedAt("/concurrency", "/concurrency must not be 0", "must be at least 1; leave it out for the default")
	}
	var err error
	if settings.Timeout, err = durationAt("/timeout", body.Timeout); err != nil {
		return settings, err
	}
	for _, member := range []struct {
		pointer string
		text    *string
		into    *string
	}{
		{"/auth/user", auth.User, &settings.Auth.User},
		{"/auth/name", auth.Name, &settings.Auth.Name},
		{"/auth/env", auth.Env, &settings.Auth.Variable},
		{"/auth/secret", auth.Secret, &settings.Auth.Secret},
		{"/tls/ca", value(body.TLS).Ca, &settings.CA},
	} {
		if *member.into, err = textAt(member.pointer, member.text); err != nil {
			return settings, err
		}
	}
	return settings, nil
}

// checkConnect refuses a caller that is bound to workflows: a connection serves all of them.
func (r *request) checkConnect() error {
	if r.within() != nil {
		return forbidden("your grants are for some workflows, and a connection serves all of the tenant's")
	}
	return nil
}

// PutConnection makes a connection of the tenant, or replaces it.
func (s *server) PutConnection(ctx context.Context, in PutConnectionRequestObject) (PutConnectionResponseObject, error) {
	if in.Body == nil {
		return nil, errNoBody
	}
	r := requestOf(ctx)
	if err := r.checkConnect(); err != nil {
		return nil, err
	}
	settings, err := settingsOf(*in.Body)
	if err != nil {
		return nil, err
	}
	put, created, err := s.connections.Put(ctx, r.principal.tenant, in.Name, settings, r.ifMatch)
	switch {
	case err != nil:
		return nil, err
	case created:
		return PutConnection201JSONResponse{
			Body:    connectionOf(put),
			Headers: PutConnection201ResponseHeaders{ETag: etag(put.Version), Location: "/v1/connections/" + put.Name},
		}, nil
	}
	return PutConnection200JSONResponse{Body: connectionOf(put), Headers: PutConnection200ResponseHeaders{ETag: etag(put.Version)}}, nil
}

func listedConnection(i item[connection.Connection]) api.Connection {
	out := connectionOf(i.value)
	out.Tenant = i.tenant
	return out
}

// ListConnections answers with a page of the tenant's connections.
func (s *server) ListConnections(ctx context.Context, in ListConnectionsRequestObject) (ListConnectionsResponseObject, error) {
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	list, err := listOf(ctx, s, page, false, func(tenant string, page fsm.Page) (fsm.List[connection.Connection], error) {
		return s.connections.List(ctx, tenant, page)
	})
	if err != nil {
		return nil, err
	}
	return ListConnections200JSONResponse{
		Body:    api.ConnectionList{Items: each(list.Items, listedConnection), NextCursor: optional(list.Next)},
		Headers: ListConnections200ResponseHeaders{Link: requestOf(ctx).nextLink(list.Next)},
	}, nil
}

// GetConnection answers with one connection.
func (s *server) GetConnection(ctx context.Context, in GetConnectionRequestObject) (GetConnectionResponseObject, error) {
	c, err := s.connections.Get(ctx, requestOf(ctx).principal.tenant, in.Name)
	if err != nil {
		return nil, err
	}
	return GetConnection200JSONResponse{Body: connectionOf(c), Headers: GetConnection200ResponseHeaders{ETag: etag(c.Version)}}, nil
}

// DeleteConnection deletes a connection.
func (s *server) DeleteConnection(ctx context.Context, in DeleteConnectionRequestObject) (DeleteConnectionResponseObject, error) {
	r := requestOf(ctx)
	if err := r.checkConnect(); err != nil {
		return nil, err
	}
	if err := s.connections.Delete(ctx, r.principal.tenant, in.Name, r.ifMatch); err != nil {
		return nil, err
	}
	return DeleteConnection204Response{}, nil
}
