package check

// AlsoFind are the checks that find a planted fault besides the one that is made for it.
func AlsoFind(name string) []string { return plants[name].also }
