package check

// AlsoFind are the checks that find a planted fault besides the one that is made for it.
func AlsoFind(name string) []string { return plants[name].also }

// Linearize runs the check "linearizable" alone, and returns how many steps its searches have tried.
func Linearize(r Run) (violations []Violation, tried int64) {
	x, out := newIndex(&r), reporter{check: "linearizable"}
	linearizable(x, &out)
	return out.found, x.tried.Load()
}
