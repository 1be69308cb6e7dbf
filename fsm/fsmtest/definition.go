package fsmtest

// FlightBooking is a definition with everything that a service for bookings needs: a lifetime, timeouts,
// guards, assigns and a schema of the context.
const FlightBooking = `{
	"name": "flight-booking",
	"initial": "QUOTED",
	"ttl": {"after": "30m", "target": "EXPIRED"},
	"require_if_match": false,
	"context_schema": {"type": "object", "required": ["flight_id", "price"], "properties": {"price": {"type": "integer", "minimum": 0}}},
	"states": {
		"QUOTED": {
			"on": {
				"reserve": {
					"target": "RESERVED",
					"guard": "$.payload.price == $.context.price",
					"assign": {"seat": "$.payload.seat", "reserved_at": "$.now"}
				},
				"cancel": "CANCELLED"
			},
			"after": {"10m": "EXPIRED"}
		},
		"RESERVED": {
			"on": {
				"pay": [
					{"guard": "$.payload.amount == $.context.price", "target": "PAID", "assign": {"payment_ref": "$.payload.payment_ref", "paid_at": "$.now"}},
					{"target": "PAYMENT_MISMATCH", "assign": {"offered": "$.payload.amount"}}
				],
				"cancel": "CANCELLED"
			},
			"after": {"15m": "EXPIRED"}
		},
		"PAYMENT_MISMATCH": {"on": {"pay": {"guard": "$.payload.amount == $.context.price", "target": "PAID", "assign": {"payment_ref": "$.payload.payment_ref"}}, "cancel": "CANCELLED"}},
		"PAID": {"type": "final", "outcome": "completed"},
		"CANCELLED": {"type": "final", "outcome": "cancelled"},
		"EXPIRED": {"type": "final", "outcome": "expired"}
	}
}`

// Counter is a definition that counts for ever: each step adds the payload's n to the context's x, if n is
// not negative. The guard of slow takes long for a payload with a long array a, and that of raise always
// raises.
const Counter = `{
	"name": "counter",
	"initial": "COUNTING",
	"states": {
		"COUNTING": {"on": {
			"add": {"target": "COUNTING", "guard": "$.payload.n >= 0", "assign": {"x": "$.context.x + $.payload.n"}},
			"stop": "STOPPED",
			"slow": {"target": "STOPPED", "guard": "exists($.payload.a[*] ? (exists($.payload.a[*] ? (exists($.payload.a[*] ? (@ < 0))))))"},
			"raise": {"target": "STOPPED", "guard": "$nowhere == 1"}
		}},
		"STOPPED": {"type": "final"}
	}
}`

// Shop is a definition with nested and eventless states.
const Shop = `{
	"name": "shop", "initial": "ORDER", "ttl": {"after": "1h", "target": "EXPIRED"},
	"states": {
		"ORDER": {
			"initial": "CART",
			"entry": {"assign": {"total": "$.context.price"}}, "exit": {"assign": {"left": "$.context.total"}},
			"on": {"cancel": "CANCELLED", "restart": "CART"},
			"states": {
				"CART": {"on": {"checkout": "PAYMENT"}, "after": {"10m": "EXPIRED"}},
				"PAYMENT": {
					"initial": "CHECK",
					"states": {
						"CHECK": {"always": [{"guard": "$.context.total == 0", "target": "DONE", "assign": {"free": true}}, "DUE"]},
						"DUE": {"on": {"pay": [{"guard": "$.payload.amount == $.context.total", "target": "DONE"}], "cancel": {"guard": "$.payload.sure == true", "target": "CART"}}}
					}
				}
			}
		},
		"DONE": {"type": "final", "entry": {"assign": {"note": "$.context.left"}}},
		"CANCELLED": {"type": "final", "outcome": "cancelled"},
		"EXPIRED": {"type": "final", "outcome": "expired"}
	}
}`

// Bombs is a definition whose timeouts have guards that raise, or that take long.
const Bombs = `{"name": "bomb", "initial": "TICKING", "states": {
	"TICKING": {"on": {"defuse": "SAFE"}, "after": {
		"1m": [
			{"target": "SAFE", "guard": "exists($.context ? (@.raise == true)) && $nowhere == 1"},
			{"target": "SAFE", "guard": "exists($.context.a[*] ? (exists($.context.a[*] ? (exists($.context.a[*] ? (@ < 0))))))"},
			{"target": "BOOM"}]}},
	"SAFE": {"type": "final"}, "BOOM": {"type": "final"}}}`

// Trip is a definition that has tasks, and undoes what was done.
const Trip = `{
	"name": "trip", "initial": "OPEN", "cancel": "UNDOING", "states": {
	  "OPEN": {"on": {"book": "HOTEL"}},
	  "HOTEL": {
	    "description": "Two at once.", "invoke": {
	      "hotel": {"description": "the \"best\" one", "http": {"connection": "hotel", "method": "POST", "path": "/bookings"}, "idempotency": {}, "deadline": "10m",
	        "done": [{"guard": "$.payload.body.full == true", "target": "UNDOING"}, "FLIGHT"], "error": "UNDOING", "unknown": "UNDOING",
	        "compensate": {"http": {"connection": "hotel", "method": "DELETE", "path": "/bookings/{$.result.body.id}"}, "deadline": "1d"}},
	      "letter": {"work": {"topic": "letters"}, "deadline": "1h", "done": "FLIGHT", "error": "FLIGHT", "unknown": "FLIGHT", "late": {"event": "full"}}
	    }
	  },
	  "FLIGHT": {"on": {"booked": {"target": "DONE", "compensate": {"work": {"topic": "airline"}, "deadline": "3d"}}, "full": "UNDOING"}},
	  "DONE": {"on": {"travel": "OVER", "revoke": "UNDOING"}},
	  "UNDOING": {"compensate": {}, "done": "CANCELLED", "error": "STUCK"},
	  "STUCK": {"on": {"again": "ALL"}},
	  "ALL": {"compensate": {"on_failure": "continue"}, "done": "CANCELLED", "error": "STUCK"},
	  "CANCELLED": {"type": "final", "outcome": "cancelled"},
	  "OVER": {"type": "final"}
	}
}`
