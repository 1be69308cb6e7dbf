package fsm

import (
	"context"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
)

// A found is a page of instances that one statement has found, for another one to read.
type found struct {
	ids      []uuid.UUID
	versions []int64
	rest     *uuid.UUID       // The id behind which the list goes on, if it does although the page has fewer ids than were asked for.
	key      func(int) string // The key of the list by the place of an instance, as it was when it was found.
}

// maxMoved is how often a page is found anew since its first instance has moved meanwhile.
const maxMoved = 5

// readFound finds instances, and reads them. An instance may have moved in between, even if only internally: then it may no
// longer be in the list, or in another place. The page ends before it, and the next one finds it anew. rest is the key behind
// which the list goes on, if it does although the page has fewer rows than were asked for.
func readFound(
	ctx context.Context, q *queries.Queries, p queries.ListInstancesParams, find func() (found, error),
) (list []queries.ListInstancesRow, rest string, err error) {
	for tries := 0; ; tries++ {
		page, err := find()
		if err != nil {
			return nil, "", err
		}
		rows, err := q.InstancesPage(ctx, queries.InstancesPageParams{TenantID: p.TenantID, Ids: page.ids, Bytes: p.Bytes})
		if err != nil {
			return nil, "", err
		}
		list, rest = make([]queries.ListInstancesRow, 0, len(rows)), ""
		switch {
		case page.rest != nil:
			rest = page.rest.String()
		case len(page.ids) == int(p.RowLimit) && len(rows) < len(page.ids): // The others were purged.
			rest = page.key(len(page.ids) - 1)
		}
		place, again := 0, false
		for _, r := range rows {
			for page.ids[place] != r.ID {
				place++
			}
			if page.versions[place] == r.Version {
				list = append(list, queries.ListInstancesRow(r))
				continue
			}
			if place > 0 {
				rest = page.key(place - 1)
				break
			}
			if tries < maxMoved {
				again = true
				break
			} // Else it moves all the time, and is left out.
		}
		if !again {
			return list, rest, nil
		}
	}
}

// inStates reads which instances are on a page of a list by states, by what was folded and what is not folded yet.
func inStates(ctx context.Context, q *queries.Queries, p queries.ListInstancesParams, c choice) (queries.InstancesInStatesRow, error) {
	in := queries.InstancesInStatesParams{
		TenantID: p.TenantID, Statuses: p.Statuses, CreatedAfter: p.CreatedAfter, CreatedBefore: p.CreatedBefore,
		StuckFor: p.StuckFor, ByChange: p.ByChange, Ascending: p.Ascending, AfterChange: p.AfterChange, AfterID: p.AfterID,
		RowLimit: p.RowLimit, Most: maxUnfolded, Few: maxStuck, Probes: maxStuck, Workflows: []string{}, States: []string{},
	}
	for _, pair := range c.pairs {
		in.Workflows, in.States = append(in.Workflows, pair.workflow), append(in.States, pair.state)
	}
	in.Statuses = append([]string{}, sorted(in.Statuses)...)
	return q.InstancesInStates(ctx, in)
}
