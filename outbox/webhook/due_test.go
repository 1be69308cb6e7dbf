package webhook_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/outbox/webhook"
)

// What is fetched into memory is shared: by tenants, by their subscriptions, and in bytes.
func TestMemoryIsShared(t *testing.T) {
	t.Parallel()
	id := func(n int) uuid.UUID { return uuid.UUID{15: byte(n)} }
	ready := func(tenant string, n int) queries.DeliveryLane {
		return queries.DeliveryLane{TenantID: tenant, SubscriptionID: id(n), Ready: true}
	}
	many := func(tenant string, n int) (list []queries.DeliveryLane) {
		for i := range n {
			list = append(list, ready(tenant, i+1))
		}
		return list
	}
	for name, c := range map[string]struct {
		held          map[string]webhook.Held
		lanes         []queries.DeliveryLane
		window, limit int
		want          map[string]int
		reached       int
	}{
		"one lane gets half of the half that one tenant may fill": {nil, many("a", 1), 1000, 1000, map[string]int{"a": 250}, 1},
		"many lanes of one tenant":                                {nil, many("a", 250), 1000, 1000, map[string]int{"a": 500}, 250},
		"another tenant has room beside a tenant that hangs": {
			map[string]webhook.Held{"a": {Places: 500, Lanes: map[uuid.UUID]int{id(1): 250, id(2): 250}}},
			append(many("a", 5), ready("b", 1)), 1000, 1000,
			map[string]int{"b": 125},
			6,
		},
		"a lane with half of its places waits": {
			map[string]webhook.Held{"a": {Places: 200, Lanes: map[uuid.UUID]int{id(1): 200}}}, many("a", 1), 1000, 1000, map[string]int{}, 1,
		},
		"a circuit that is half-open gets one": {
			nil, []queries.DeliveryLane{{TenantID: "a", SubscriptionID: id(1), Ready: true, HalfOpen: true}}, 1000, 1000, map[string]int{"a": 1}, 1,
		},
		"a circuit that is half-open gets no second": {
			map[string]webhook.Held{"a": {Places: 1, Lanes: map[uuid.UUID]int{id(1): 1}}},
			[]queries.DeliveryLane{{TenantID: "a", SubscriptionID: id(1), Ready: true, HalfOpen: true}},
			1000, 1000,
			map[string]int{},
			1,
		},
		"a lane that is not ready": {nil, []queries.DeliveryLane{{TenantID: "a", SubscriptionID: id(1)}}, 1000, 1000, map[string]int{}, 1},
		"large messages of one tenant leave bytes for another": {
			map[string]webhook.Held{"a": {Places: 10, Bytes: webhook.MaxMessages/2 + 1, Lanes: map[uuid.UUID]int{id(9): 10}}},
			append(many("a", 1), ready("b", 1)), 1000, 1000,
			map[string]int{"b": 247},
			2,
		},
		"there are no bytes left": {
			map[string]webhook.Held{"a": {Places: 10, Bytes: webhook.MaxMessages + 1, Lanes: map[uuid.UUID]int{id(9): 10}}},
			append(many("a", 1), ready("b", 1)), 1000, 1000,
			map[string]int{},
			2,
		},
		"a page ends before a tenant": {
			nil, []queries.DeliveryLane{ready("a", 1), ready("b", 1), ready("b", 2), ready("c", 1)}, 1000, 300, map[string]int{"a": 250, "b": 50}, 3,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, reached := webhook.Choose(c.held, c.lanes, c.window, c.limit)
			got := map[string]int{}
			for i, tenant := range p.Tenants {
				got[tenant] += int(p.Limits[i])
			}
			if fmt.Sprint(got) != fmt.Sprint(c.want) || reached != c.reached {
				t.Errorf("got %v in the first %d lanes, want %v in %d", got, reached, c.want, c.reached)
			}
			if len(c.lanes) == 250 && slices.Min(p.Limits) < 1 {
				t.Error("a lane is read with a limit of nothing")
			}
		})
	}
}
