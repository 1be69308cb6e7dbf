package webhook

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm"
	"github.com/pawl-fsm/pawl/outbox/dispatch"
)

// Reasons for which a delivery is abandoned.
const (
	subscriptionGone = "the subscription was deleted"
	messageGone      = "the instance was purged before the delivery was sent"
	findingGone      = "the finding was purged before the delivery was sent"
)

const (
	// looks is how many lanes one search looks at before the next tenant's turn. looksEach is how many
	// subscriptions of one tenant it looks at.
	looks, looksEach = 1000, 100
	// unfinishedPause is how long to wait before the search goes on where it ended.
	unfinishedPause = 10 * time.Millisecond
	// maxMessages is the size of the messages in memory beyond which none are fetched, in bytes. It is
	// exceeded by one page at most.
	maxMessages = 64 << 20
)

// window is the most deliveries that are kept in memory.
func (l *leadership) window() int { return l.fetched.Max() }

// A memory is what is in memory: in all, and of each tenant and subscription.
type memory struct {
	places, bytes int
	flying        []string
	tenants       map[string]*tenantMemory
}

type tenantMemory struct {
	places, bytes int
	lanes         map[uuid.UUID]int
}

// memory counts what is in memory. The message of a step that many deliveries share counts once.
func (l *leadership) memory() memory {
	m := memory{places: l.jobs.Len(), flying: make([]string, 0, l.jobs.Len()), tenants: map[string]*tenantMemory{}}
	seen := map[*queries.Message]bool{}
	for j := range l.jobs.All() {
		d := j.Value
		m.flying = append(m.flying, d.row.ID.String())
		t := m.tenant(d.row.TenantID)
		t.places++
		t.lanes[laneID(d.row)]++
		if d.event != nil {
			if seen[d.event] {
				continue
			}
			seen[d.event] = true
		}
		t.bytes += d.size()
		m.bytes += d.size()
	}
	return m
}

func (m memory) tenant(name string) *tenantMemory {
	t := m.tenants[name]
	if t == nil {
		t = &tenantMemory{lanes: map[uuid.UUID]int{}}
		m.tenants[name] = t
	}
	return t
}

// choose says how many deliveries of each lane to fetch, of up to limit in all. A tenant may fill no
// more places than are free afterwards, and half of these with one lane. So one tenant alone fills
// half of the window, and there is room for the next one's. The same holds for bytes, as far as they
// are known before. It also returns how many lanes it got to.
func (m memory) choose(lanes []queries.DeliveryLane, window, limit int) (p queries.DeliveryDueParams, reached int) {
	p.Flying = m.flying
	free := window - m.places
	for i, l := range lanes {
		t := m.tenant(l.TenantID)
		if i == 0 || lanes[i-1].TenantID != l.TenantID {
			if limit <= 0 {
				return p, i
			}
		}
		most := (free - t.places) / 2
		each := max((t.places+most)/(2*(len(t.lanes)+1)), 2)
		if l.HalfOpen {
			each = 1
		}
		held := t.lanes[l.SubscriptionID]
		n := min(each-held, most, limit)
		// With half of its places taken a lane waits, so that fewer searches bring more.
		if !l.Ready || n <= 0 || held*2 >= each || t.bytes > maxMessages-m.bytes {
			continue
		}
		p.Tenants, p.Subscriptions, p.Limits = append(p.Tenants, l.TenantID), append(p.Subscriptions, l.SubscriptionID), append(p.Limits, int32(n))
		t.lanes[l.SubscriptionID] += n
		t.places += n
		free -= n
		limit -= n
	}
	return p, len(lanes)
}

// fetch searches all tenants for due deliveries, or with rest only what an earlier search has left of
// some, and reads them into memory. It reports whether to search all again soon, since there may be
// more.
func (l *leadership) fetch(ctx context.Context, rest bool) (again bool, err error) {
	m := l.memory()
	if m.places >= l.window() {
		return true, nil
	}
	search := queries.DeliveryLanesParams{After: l.after, Rest: rest, Looks: looks, Each: looksEach}
	if !rest {
		l.searched = time.Now()
	}
	for tenant, place := range l.places {
		search.Tenants, search.Places = append(search.Tenants, tenant), append(search.Places, place)
	}
	var (
		lanes   []queries.DeliveryLane
		rows    []queries.Delivery
		targets map[subscriptionKey]target
		due     queries.DeliveryDueParams
		reached int
		jobs    []*dispatch.Job[delivery]
		tenants map[string]queries.DeliveryTenant
	)
	err = l.call(ctx, func(ctx context.Context) (err error) {
		if lanes, err = l.queries.DeliveryLanes(ctx, search); err != nil {
			return fmt.Errorf("lanes: %w", err)
		}
		due, reached = m.choose(lanes, l.window(), l.fetched.Size())
		if len(due.Tenants) == 0 {
			return nil
		}
		if rows, err = l.queries.DeliveryDue(ctx, due); err != nil {
			return fmt.Errorf("due deliveries: %w", err)
		}
		if tenants, err = l.tenants(ctx, due.Tenants); err != nil {
			return err
		}
		keys := make([]subscriptionKey, len(rows))
		for i := range rows {
			keys[i] = keyOf(&rows[i])
		}
		if targets, err = l.endpoints(ctx, keys); err != nil {
			return err
		}
		if rows, err = l.rest(ctx, rows, targets); err != nil {
			return err
		}
		jobs, err = l.load(ctx, rows, targets)
		return err
	})
	l.fetched.Adapt(err)
	if err != nil {
		return false, err
	}
	if len(jobs) < len(rows) {
		// The page of messages ended early. A later search finds the rest, after those of the other tenants.
		again = true
		if !rest {
			l.after = rows[len(jobs)-1].TenantID
		}
	} else {
		l.pass(lanes, reached, rest)
	}
	for name, t := range tenants {
		l.jobs.Limit(name, t.Attempts)
	}
	// Attempts may have failed while this was read, and are not settled yet: what was read of
	// their subscriptions may no longer be due.
	failed := map[uuid.UUID]bool{}
	for _, r := range l.jobs.Ended() {
		if !r.Succeeded() {
			failed[r.Job.Value.row.SubscriptionID] = true
		}
	}
	for _, j := range jobs {
		if failed[j.Value.row.SubscriptionID] {
			again = true
			continue
		}
		l.jobs.Add(j)
	}
	return again, nil
}

// pass notes up to where a search has come: the tenant of the last lane that was reached if there may
// be others, and for each tenant with more subscriptions the last one that was looked at.
func (l *leadership) pass(lanes []queries.DeliveryLane, reached int, rest bool) {
	cut := reached < len(lanes) || len(lanes) >= looks
	if rest && !cut {
		clear(l.places) // Of those that are not in lanes nothing was left.
	}
	each := map[string]int{}
	for _, lane := range lanes[:reached] {
		if lane.SubscriptionID == uuid.Nil {
			continue
		}
		if each[lane.TenantID]++; each[lane.TenantID] < looksEach {
			delete(l.places, lane.TenantID)
		} else {
			l.places[lane.TenantID] = lane.SubscriptionID
		}
	}
	switch {
	case rest:
	case !cut:
		l.after = ""
	case reached > 0:
		l.after = lanes[reached-1].TenantID
	}
}

// unfinished reports whether a search has left lanes that are to be looked at soon.
func (l *leadership) unfinished() bool { return l.after != "" || len(l.places) > 0 }

// A stepKey identifies a step.
type stepKey struct {
	tenant   string
	instance uuid.UUID
	version  int64
}

// load makes jobs of deliveries: it reads their steps and findings.
func (l *leadership) load(ctx context.Context, rows []queries.Delivery, targets map[subscriptionKey]target) ([]*dispatch.Job[delivery], error) {
	if len(rows) == 0 {
		return nil, nil
	}
	var (
		p      queries.DeliveryMessagesParams
		events = map[stepKey]*queries.Message{}
		jobs   = make([]*dispatch.Job[delivery], len(rows))
	)
	for _, r := range rows {
		if r.Version == nil {
			continue
		}
		k := stepKey{r.TenantID, *r.InstanceID, *r.Version}
		if _, asked := events[k]; !asked {
			events[k] = nil
			p.Tenants, p.Instances, p.Versions = append(p.Tenants, k.tenant), append(p.Instances, k.instance), append(p.Versions, k.version)
		}
	}
	p.Bytes = fsm.PageBytes
	list, err := l.queries.DeliveryMessages(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	bytes := 0
	for i, e := range list {
		bytes += len(e.Context) + len(e.Payload)
		events[stepKey{e.TenantID, e.InstanceID, e.Version}] = &list[i]
	}
	if bytes >= fsm.PageBytes {
		rows = readUpTo(rows, list[len(list)-1])
		jobs = jobs[:len(rows)]
	}
	findings, err := l.findings(ctx, rows)
	if err != nil {
		return nil, err
	}
	for i := range rows {
		d := delivery{row: &rows[i], endpoint: targets[keyOf(&rows[i])].endpoint}
		switch {
		case d.row.FindingID != nil:
			d.finding = findings[findingKey{d.row.TenantID, *d.row.FindingID}]
		case d.row.Version != nil:
			d.event = events[stepKey{d.row.TenantID, *d.row.InstanceID, *d.row.Version}]
		}
		jobs[i] = jobOf(d)
	}
	return jobs, nil
}

// A findingKey identifies a finding.
type findingKey struct {
	tenant string
	id     uuid.UUID
}

// findings reads the findings that deliveries tell of. They are small. One that was purged is missing from the result.
func (l *leadership) findings(ctx context.Context, rows []queries.Delivery) (map[findingKey]*queries.FindingMessage, error) {
	var p queries.DeliveryFindingsParams
	found := map[findingKey]*queries.FindingMessage{}
	for _, r := range rows {
		if r.FindingID == nil {
			continue
		}
		k := findingKey{r.TenantID, *r.FindingID}
		if _, asked := found[k]; !asked {
			found[k] = nil
			p.Tenants, p.Ids = append(p.Tenants, k.tenant), append(p.Ids, k.id)
		}
	}
	if len(p.Ids) == 0 {
		return found, nil
	}
	list, err := l.queries.DeliveryFindings(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("findings: %w", err)
	}
	for i, f := range list {
		found[findingKey{f.TenantID, f.ID}] = &list[i]
	}
	return found, nil
}

// readUpTo returns the deliveries before the first one whose step was not read: those of the steps up to the last that
// was read, in the order in which the rows ask for them.
func readUpTo(rows []queries.Delivery, last queries.Message) []queries.Delivery {
	asked := map[stepKey]bool{}
	at, behind := stepKey{last.TenantID, last.InstanceID, last.Version}, false
	for i, r := range rows {
		if r.Version == nil {
			continue
		}
		k := stepKey{r.TenantID, *r.InstanceID, *r.Version}
		if behind && !asked[k] {
			return rows[:i]
		}
		asked[k], behind = true, behind || k == at
	}
	return rows
}

// jobOf says how a delivery is dispatched. A subscription has a lane of its own, and its circuit
// is in the database. The callbacks of a tenant to one URL share a lane, whose circuit is kept in memory.
func jobOf(d delivery) *dispatch.Job[delivery] {
	j := &dispatch.Job[delivery]{ID: d.row.ID, Value: d, Owner: d.row.TenantID, Lane: keyOf(d.row).lane(), Size: d.size()}
	if d.row.Callback {
		j.Lane = "callback " + d.row.TenantID + " " + d.endpoint.url
		if d.endpoint.url != "" {
			j.Host = d.row.TenantID + " " + d.endpoint.host()
		}
	}
	if d.row.InstanceID != nil {
		j.Sequence = d.row.TenantID + " " + d.row.SubscriptionID.String() + " " + d.row.InstanceID.String()
		j.Position = d.row.Seq
	}
	switch {
	case d.endpoint.url == "":
		j.Abandon = subscriptionGone
	case d.row.FindingID != nil && d.finding == nil:
		j.Abandon = findingGone
	case d.row.Version != nil && d.event == nil:
		j.Abandon = messageGone
	}
	return j
}

// A subscriptionKey identifies a subscription or, by its instance, a callback.
type subscriptionKey struct {
	tenant string
	id     uuid.UUID
}

func keyOf(row *queries.Delivery) subscriptionKey {
	return subscriptionKey{row.TenantID, row.SubscriptionID}
}

// laneID is the id of a delivery's lane in the database: that of the subscription, and the nil UUID for the
// tenant's callbacks.
func laneID(row *queries.Delivery) uuid.UUID {
	if row.Callback {
		return uuid.Nil
	}
	return row.SubscriptionID
}

// lane is the lane of a subscription.
func (k subscriptionKey) lane() string { return "subscription " + k.tenant + " " + k.id.String() }
