package httpapi

import (
	"fmt"

	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/httpapi/api"
)

// pageOf reads limit and cursor, the parameters of every list. fsm applies the default and the
// maximum of the limit, and verifies the cursor.
func pageOf(limit *api.Limit, cursor *api.Cursor) (fsm.Page, error) {
	var page fsm.Page
	if limit != nil {
		if *limit < 1 {
			return page, malformed("limit", "must be at least 1")
		}
		page.Limit = int(*limit)
	}
	page.Cursor = value(cursor)
	return page, nil
}

// nextLink returns the Link header (RFC 8288) that leads to the next page, or nil on the last
// page: the URL of the request with the cursor replaced.
func (r *request) nextLink(cursor string) *string {
	if cursor == "" {
		return nil
	}
	query := r.url.Query()
	query.Set("cursor", cursor)
	link := fmt.Sprintf(`<%s?%s>; rel="next"`, r.url.EscapedPath(), query.Encode())
	return &link
}
