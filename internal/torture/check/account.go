package check

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// AccountDefinition is a workflow whose context counts, so that no step can be lost, doubled or exchanged without a
// trace: `sum` adds up the amounts, and `steps` counts what changed the context.
const AccountDefinition = `{
  "name": "account",
  "initial": "OPEN",
  "states": {
    "OPEN": {
      "on": {
        "add": {
          "target": "OPEN",
          "guard": "$.payload.amount > 0",
          "assign": {"sum": "$.context.sum + $.payload.amount", "steps": "$.context.steps + 1"}
        },
        "pause": "PAUSED",
        "close": "CLOSED"
      }
    },
    "PAUSED": {
      "on": {"resume": "OPEN"},
      "after": {"1s": {"target": "OPEN", "assign": {"steps": "$.context.steps + 1"}}}
    },
    "CLOSED": {"type": "final", "outcome": "completed"}
  }
}`

// accountContext is the context of an account; numbers are whole.
type accountContext struct {
	Steps int64 `json:"steps"`
	Sum   int64 `json:"sum"`
}

// Account is the model of [AccountDefinition]. An account is created with the context {"sum": 0, "steps": 0}, or other
// whole numbers.
func Account() Model {
	return Model{
		Create: func(context json.RawMessage) Situation {
			return Situation{State: "OPEN", Status: "active", Context: Canonical(context)}
		},
		Fire: fireAccount,
		Timeouts: map[string]Timeout{
			"PAUSED": {After: time.Second, Event: "after:1s"},
		},
	}
}

func fireAccount(s Situation, event string, payload json.RawMessage) (Situation, string) {
	switch s.State + " " + event {
	case "OPEN add":
		var p struct {
			Amount int64 `json:"amount"`
		}
		if json.Unmarshal(payload, &p) != nil || p.Amount <= 0 {
			return s, "guard-rejected"
		}
		s.Context = addTo(s.Context, p.Amount)
	case "OPEN pause":
		s.State = "PAUSED"
	case "OPEN close":
		s.State, s.Status = "CLOSED", "completed"
	case "PAUSED resume":
		s.State = "OPEN"
	case "PAUSED after:1s":
		s.State, s.Context = "OPEN", addTo(s.Context, 0)
	default:
		return s, "transition-not-allowed"
	}
	return s, ""
}

// addTo returns the context of an account after one more step that changed it.
func addTo(context string, amount int64) string {
	var c accountContext
	if err := json.NewDecoder(strings.NewReader(context)).Decode(&c); err != nil {
		return context
	}
	return `{"steps":` + strconv.FormatInt(c.Steps+1, 10) + `,"sum":` + strconv.FormatInt(c.Sum+amount, 10) + `}`
}
