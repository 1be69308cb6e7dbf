package httpapi

import (
	"context"
	"strings"

	"github.com/pawl-fsm/pawl/fsm"
)

// maxTenants is how many tenants a page of a list over all tenants looks at.
const maxTenants = 100

// An item is one of a list, with its tenant if the list is over all tenants.
type item[T any] struct {
	value  T
	tenant *string
}

// listOf reads a page of the caller's tenant. A caller of the deployment that names all tenants gets them one after the
// other, in the order of their ids; each page looks at maxTenants of them at most, so that it may end early although the
// list goes on. With owns the deployment comes first, since it has such items too.
func listOf[T any](
	ctx context.Context, s *server, page fsm.Page, owns bool, read func(tenant string, page fsm.Page) (fsm.List[T], error),
) (fsm.List[item[T]], error) {
	out := fsm.List[item[T]]{Items: []item[T]{}}
	tenant := requestOf(ctx).principal.tenant
	if tenant != fsm.Deployment {
		list, err := read(tenant, page)
		out.Items, out.Next = each(list.Items, func(v T) item[T] { return item[T]{value: v} }), list.Next
		return out, err
	}
	limit := page.Limit
	if limit == 0 {
		limit = fsm.DefaultLimit
	}
	limit = min(limit, fsm.MaxLimit)
	scope := requestOf(ctx).listScope()
	// A cursor tells the tenant to go on with, and the cursor of that tenant's list.
	var first, cursor string
	if page.Cursor != "" {
		key, err := s.service.UnsealCursor(ctx, scope, page.Cursor)
		if err != nil {
			return out, err
		}
		first, cursor, _ = strings.Cut(key, "\x00")
	}
	goOn := func(tenant, cursor string) (err error) {
		out.Next, err = s.service.SealCursor(ctx, scope, tenant+"\x00"+cursor) // Neither has a NUL.
		return err
	}
	tenants, err := s.service.TenantsFrom(ctx, strings.TrimPrefix(first, fsm.Deployment), maxTenants+1)
	if err != nil {
		return out, err
	}
	if owns && (first == "" || first == fsm.Deployment) {
		tenants = append([]string{fsm.Deployment}, tenants...)
	}
	for n, t := range tenants {
		if t != first {
			cursor = "" // It was for another tenant, which may be gone.
		}
		if len(out.Items) == limit || n == maxTenants {
			return out, goOn(t, "")
		}
		list, err := read(t, fsm.Page{Limit: limit - len(out.Items), Cursor: cursor})
		if err != nil {
			return out, err
		}
		for _, v := range list.Items {
			out.Items = append(out.Items, item[T]{value: v, tenant: &t})
		}
		if list.Next != "" {
			return out, goOn(t, list.Next)
		}
	}
	return out, nil
}

// listScope names the list of a request with all its filters, but not the page of it.
func (r *request) listScope() string {
	filters := r.url.Query()
	filters.Del("cursor")
	filters.Del("limit")
	return "all tenants " + r.url.EscapedPath() + "?" + filters.Encode()
}
