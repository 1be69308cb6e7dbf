package localpg

// FindIn is Find in given places instead of the packagers' and the environment's.
func FindIn(override string, places []string, major int) (Binaries, error) {
	return find(override, places, major)
}

// FindMajorIn is FindMajor in given places instead of the packagers'.
func FindMajorIn(major int, places []string) (Binaries, error) { return findMajor(major, places) }

// StopOrphan is what Start does first on a folder.
var StopOrphan = stopOrphan

// Alive tells whether a process runs.
var Alive = alive

// Sweep is what the start of a temporary server does first.
var Sweep = sweep

// Children returns the process ids of a process's children.
var Children = children

// WaitGone waits until processes are gone.
var WaitGone = waitGone
