package check

import "fmt"

// checks are all checks, by name, in the order of their violations.
var checks = []struct {
	name string
	run  func(*index, *reporter)
}{
	{"linearizable", linearizable},
	{"acknowledged", acknowledged},
	{"keys", keys},
	{"versions", versions},
	{"replay", replay},
	{"timers", timers},
	{"delivered", delivered},
	{"tasks", tasks},
	{"sagas", sagas},
	{"healed", healed},
}

// All returns what is wrong with a run: of each check the first 50 violations, and how many more there are.
func All(r Run) (violations []Violation) {
	x := newIndex(&r)
	for _, c := range checks {
		out := reporter{check: c.name}
		c.run(x, &out)
		if more := out.count - len(out.found); more > 0 {
			out.found = append(out.found, Violation{c.name, fmt.Sprintf("and %d more", more)})
		}
		violations = append(violations, out.found...)
	}
	return violations
}

// A reporter takes the violations of one check.
type reporter struct {
	check string
	found []Violation
	count int
}

func (r *reporter) add(format string, args ...any) {
	r.count++
	if len(r.found) < 50 {
		r.found = append(r.found, Violation{r.check, fmt.Sprintf(format, args...)})
	}
}
