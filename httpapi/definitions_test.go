package httpapi_test

import "time"

// The definitions that the tests use.
const (
	// booking is the example of the contract, reduced.
	booking = `{
		"name": "booking", "initial": "QUOTED", "ttl": {"after": "30m", "target": "EXPIRED"},
		"context_schema": {
			"type": "object", "required": ["price"], "properties": {"price": {"type": "number", "minimum": 0}}
		},
		"states": {
			"QUOTED": {
				"on": {
					"reserve": {
						"target": "RESERVED", "guard": "$.payload.price == $.context.price",
						"assign": {"seat": "$.payload.seat"},
						"payload_schema": {
							"type": "object", "properties": {"seat": {"type": "string"}, "price": {"type": "number"}}
						}
					},
					"cancel": "CANCELLED"
				},
				"after": {"10m": "EXPIRED"}
			},
			"RESERVED": {
				"on": {
					"pay": [
						{"guard": "$.payload.amount == $.context.price", "target": "PAID"},
						{"guard": "$.payload.amount > 0", "target": "PAYMENT_MISMATCH", "assign": {"offered": "$.payload.amount"}}
					],
					"cancel": "CANCELLED"
				}
			},
			"PAYMENT_MISMATCH": {"on": {"cancel": "CANCELLED"}},
			"PAID": {"type": "final", "outcome": "completed"},
			"CANCELLED": {"type": "final", "outcome": "cancelled"},
			"EXPIRED": {"type": "final", "outcome": "expired"}
		}
	}`

	// counter adds up its payloads, so that the context shows which events were applied.
	counter = `{
		"name": "counter", "initial": "ON", "states": {
			"ON": {"on": {
				"add": {"target": "ON", "assign": {"sum": "$.context.sum + $.payload.by"}},
				"set": {"target": "ON", "assign": {"*": true, "trusted": true}},
				"stop": "OFF"
			}},
			"OFF": {"type": "final"}
		}
	}`

	// careful requires If-Match with every event.
	careful = `{
		"name": "careful", "initial": "A", "require_if_match": true,
		"states": {"A": {"on": {"go": "B"}}, "B": {"on": {"go": "C"}}, "C": {"type": "final"}}
	}`

	// touchy has a guard and an assign that raise even in lax mode, and a guard that runs very
	// long.
	touchy = `{
		"name": "touchy", "initial": "A", "states": {
			"A": {"on": {
				"when": {"target": "A", "guard": "$.payload.t.datetime() < \"2027-01-01T00:00:00+00:00\".datetime()"},
				"slow": {
					"target": "A",
					"guard": "exists($.payload.xs[*] ? (exists($.payload.xs[*] ? (exists($.payload.xs[*] ? (@ == -1))))))"
				},
				"then": {"target": "A", "assign": {"at": "$.payload.t ? (@.datetime() < \"2027-01-01T00:00:00+00:00\".datetime())"}},
				"stop": "B"
			}},
			"B": {"type": "final"}
		}
	}`
	// safe begins in a protected state. Its cancel leads on without an event.
	safe = `{
		"name": "safe", "initial": "LOCKED", "cancel": "CLOSING", "context_schema": {"properties": {"n": {"type": "integer"}}},
		"states": {
			"LOCKED": {"protected": true, "on": {"unlock": "OPEN"}},
			"OPEN": {"on": {
				"lock": {"target": "LOCKED", "guard": "$.payload.code == 7"},
				"read": {"target": "READ", "guard": "$.payload.code == 7", "payload_schema": {"required": ["code"]}}
			}},
			"READ": {"on": {"lock": "LOCKED"}, "entry": {"assign": {"by": "$.event"}}},
			"CLOSING": {"always": {"target": "CLOSED"}},
			"CLOSED": {"type": "final", "outcome": "cancelled"}
		}
	}`
	raises = `{"payload": {"t": "2026-01-01T00:00:00"}}`
	holds  = `{"payload": {"t": "2026-01-01T00:00:00+00:00"}}`
)

const hour = time.Hour

// at parses a time.
func at(text string) time.Time {
	v, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		panic(err)
	}
	return v
}
