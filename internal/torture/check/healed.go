package check

import (
	"cmp"
	"time"
)

// healed checks that all worked again after the faults, in time.
func healed(x *index, out *reporter) {
	within := cmp.Or(x.HealWithin, time.Minute)
	if len(x.Faults) > 0 && len(x.Healings) == 0 {
		out.add("there were faults, but nothing says whether anything worked again")
	}
	for _, h := range x.Healings {
		if h.Never {
			out.add("%s did not work again, expected within %s", h.What, within)
		} else if h.After > within {
			out.add("%s worked again after %s, expected within %s", h.What, h.After.Round(time.Millisecond), within)
		}
	}
}
