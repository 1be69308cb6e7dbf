package httpapi

import (
	"context"

	"github.com/pawl-fsm/pawl/httpapi/api"
)

// ListHistory answers with a page of an instance's steps, oldest first.
func (s *server) ListHistory(ctx context.Context, in ListHistoryRequestObject) (ListHistoryResponseObject, error) {
	id, err := s.instance(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	page, err := pageOf(in.Params.Limit, in.Params.Cursor)
	if err != nil {
		return nil, err
	}
	r := requestOf(ctx)
	list, err := s.service.History(ctx, r.principal.tenant, id, page)
	if err != nil {
		return nil, err
	}
	return ListHistory200JSONResponse{
		Body: api.HistoryList{
			Items:      each(list.Items, api.HistoryItemOf),
			NextCursor: optional(list.Next),
		},
		Headers: ListHistory200ResponseHeaders{Link: r.nextLink(list.Next)},
	}, nil
}
