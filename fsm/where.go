package fsm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pawl-fsm/pawl/db/queries"
	"github.com/pawl-fsm/pawl/fsm/definition"
	"github.com/pawl-fsm/pawl/fsm/internal/database"
)

const (
	// MaxWhere is how many conditions a Filter may have.
	MaxWhere = 10
	// maxFew is how many instances a condition may leave so that they are sorted.
	maxFew = 20_000
	// maxProbes is how many instances a page looks at.
	maxProbes = 3000
	// maxUnfoldedWhere is maxUnfolded for a list with conditions: the instances of these steps are looked at too.
	maxUnfoldedWhere = 5000
	// wherePatience is after how long a page ends where it is, since the contexts that it looks at may be large. With what
	// comes before and after it that is well within the statement timeout.
	wherePatience = 300 * time.Millisecond
	// maxNumber is the longest number of a condition, as that of an attribute.
	maxNumber = 100
)

var (
	wherePattern = regexp.MustCompile(`(?s)^([A-Za-z_][A-Za-z0-9_]*)(>=|<=|>|<|=)(.*)$`)
	whereNumber  = regexp.MustCompile(`^-?[0-9]+(\.[0-9]+)?$`)
	// whereTime is as pawl_private.rfc3339_time has it.
	whereTime = regexp.MustCompile(
		`^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?([Zz]|[+-](0[0-9]|1[0-4]):[0-5][0-9])$`)
)

// A condition is what pawl.instances_where takes.
type condition struct {
	Name  string `json:"name"`
	Op    string `json:"op"` // Or ^, for a text that begins so.
	Kind  string `json:"kind"`
	Value string `json:"value"`
}

// parseWhere reads a condition: NAME OP VALUE. types are those of the attributes, empty where none is declared.
func parseWhere(text string, types map[string]string) (condition, error) {
	m := wherePattern.FindStringSubmatch(text)
	if m == nil {
		return condition{}, BadParameter("where", fmt.Sprintf("%q must be a name, one of = < <= > >=, and a value, such as price>=400", text))
	}
	c := condition{Name: m[1], Op: m[2], Value: m[3]}
	declared, known := types[c.Name]
	if !known {
		detail := fmt.Sprintf("there is no search attribute %q", c.Name)
		names := slices.Sorted(maps.Keys(types))
		switch near := definition.Nearest(c.Name, names); {
		case near != "":
			detail += fmt.Sprintf("; did you mean %q?", near)
		case len(names) > 0:
			detail += fmt.Sprintf("; there are %s", strings.Join(names, ", "))
		default:
			detail += ": the latest version of the workflow has no search"
		}
		return c, &Error{Kind: Malformed, Message: detail, Faults: []Fault{{Parameter: "where", Detail: detail}}}
	}
	if err := CheckTexts(Text{"", c.Value, 1000}); err != nil || len(c.Value) > 1000 {
		return c, BadParameter("where", "must have a value of at most 1000 bytes, of text in UTF-8")
	}
	quoted := len(c.Value) > 1 && strings.HasPrefix(c.Value, `"`) && strings.HasSuffix(c.Value, `"`)
	at, isTime := parseTime(c.Value)
	isNumber := whereNumber.MatchString(c.Value) && len(c.Value) <= maxNumber
	isBoolean := c.Value == "true" || c.Value == "false"
	switch {
	case quoted:
		c.Kind, c.Value = "text", c.Value[1:len(c.Value)-1]
	case declared != "":
		c.Kind = declared
	case isNumber:
		c.Kind = "number"
	case isBoolean:
		c.Kind = "boolean"
	case isTime:
		c.Kind = "time"
	default:
		c.Kind = "text"
	}
	bad := func(detail string) (condition, error) {
		return c, BadParameter("where", fmt.Sprintf("%q %s", text, detail))
	}
	switch {
	case declared != "" && c.Kind != declared, c.Kind == "number" && !isNumber, c.Kind == "boolean" && !isBoolean, c.Kind == "time" && !isTime:
		return bad("must have a value of the type " + declared)
	case c.Kind == "boolean" && c.Op != "=":
		return bad("compares true and false, which only = does")
	case c.Kind == "time":
		c.Value = at
	case c.Kind == "text" && !quoted && c.Value == "":
		return bad(`has no value; an empty text is ""`)
	case c.Kind == "text" && !quoted && strings.HasSuffix(c.Value, "*"):
		if c.Op != "=" {
			return bad("must have = before the beginning of a text; a text that ends with * is quoted")
		}
		c.Op, c.Value = "^", strings.TrimSuffix(c.Value, "*")
	}
	return c, nil
}

// parseTime reads a time of RFC 3339, whose + may have become a space, as in a URL. It keeps all digits: the database rounds
// those of a condition as it rounds those of a context.
func parseTime(text string) (at string, ok bool) {
	at = strings.Replace(text, " ", "+", 1)
	t, err := time.Parse(time.RFC3339Nano, strings.ToUpper(at))
	return at, err == nil && t.Year() > 0 && whereTime.MatchString(at)
}

// conditions reads the filter's conditions for the attributes of its workflow.
func (s *Service) conditions(ctx context.Context, f Filter) ([]condition, error) {
	switch {
	case len(f.Where) == 0:
		return nil, nil
	case len(f.Workflows) != 1:
		return nil, BadParameter("where", "needs one workflow, whose latest version says what instances are found by")
	case f.BusinessKey != "" || f.CorrelationID != "" || f.FailingTimer || f.StuckFor > 0 || !f.CreatedAfter.IsZero() || !f.CreatedBefore.IsZero() || f.byChange():
		return nil, BadParameter("where", "can be combined with workflow, state, status and the orders of created_at, and nothing else")
	}
	var search map[string]struct{ Type string }
	err := s.db.Read(ctx, func(ctx context.Context, q *queries.Queries) error {
		text, err := q.SearchOf(ctx, f.Workflows[0])
		if errors.Is(err, pgx.ErrNoRows) || text == nil {
			return nil
		}
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &search)
	})
	if err != nil {
		return nil, err
	}
	types := make(map[string]string, len(search))
	for name, a := range search {
		types[name] = a.Type
	}
	out := make([]condition, len(f.Where))
	for i, text := range f.Where {
		if out[i], err = parseWhere(text, types); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// instancesWhere reads which instances are on a page of those that fulfil conditions. near: what was folded may be used.
func instancesWhere(
	ctx context.Context, q *queries.Queries, p queries.ListInstancesParams, f Filter, c choice, conditions []condition, near bool,
) (queries.InstancesWhereRow, error) {
	text, err := json.Marshal(conditions)
	if err != nil {
		return queries.InstancesWhereRow{}, err
	}
	in := queries.InstancesWhereParams{
		TenantID: p.TenantID, Workflow: f.Workflows[0], Conditions: text, States: c.states, Statuses: sorted(p.Statuses), Ascending: p.Ascending,
		AfterID: p.AfterID, RowLimit: p.RowLimit, Few: maxFew, Probes: maxProbes,
		Patience: pgtype.Interval{Microseconds: wherePatience.Microseconds(), Valid: true},
	}
	if near {
		in.Most = new(int32(maxUnfoldedWhere))
	}
	w, err := q.InstancesWhere(ctx, in)
	if near && database.IsCode(err, database.NotInPrerequisiteState) {
		in.Most = nil
		w, err = q.InstancesWhere(ctx, in)
	}
	return w, err
}
