package check

// versions checks that an instance's steps are numbered from 1 without a gap, and that their times rise. The steps of
// one call have one time.
func versions(x *index, out *reporter) {
	for _, id := range x.instances {
		want := int64(1)
		var before *Step
		for _, s := range x.steps[id] {
			if s.Version != want {
				out.add("instance %s: history has %s, expected version %d", id, s, want)
			}
			if (s.Version == 1) != (s.Kind == "created") {
				out.add("instance %s: version %d is of kind %q; version 1, and no other, is of kind \"created\"", id, s.Version, s.Kind)
			}
			if before != nil && s.At.Before(before.At) {
				out.add("instance %s: version %d has the time %s, before that of version %d, %s",
					id, s.Version, clock(s.At), before.Version, clock(before.At))
			}
			before, want = s, s.Version+1
		}
	}
}
