//go:build unix && !linux

package localpg

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent does nothing: only Linux can end a process with its parent. The next start on the folder stops the
// server.
func dieWithParent(*syscall.SysProcAttr, bool) {}

// searchFolders does nothing: only Linux has such a privilege.
func searchFolders(*syscall.SysProcAttr) {}

// ps returns one column of one process, or "" if there is no such process.
func ps(pid int, column string) string {
	out, err := exec.Command("ps", "-ww", "-o", column+"=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return "" // there is no such process
	}
	return strings.TrimSpace(string(out))
}

func zombie(pid int) bool { return strings.HasPrefix(ps(pid, "stat"), "Z") }

func children(pid int) []int {
	out, err := exec.Command("ps", "-A", "-o", "pid=", "-o", "ppid=").Output()
	if err != nil {
		return nil
	}
	var kids []int
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) != 2 || fields[1] != strconv.Itoa(pid) {
			continue
		}
		if id, err := strconv.Atoi(fields[0]); err == nil {
			kids = append(kids, id)
		}
	}
	return kids
}

// serversOf returns none, since ps does not show the working directory of a process. So PostgreSQL refuses to start
// until the last backend of an earlier server has noticed that its postmaster is gone.
func serversOf(string) []int { return nil }

// isServerOf reports whether a process is the postmaster of a data folder: launch names the folder after -D.
func isServerOf(pid int, data string) bool {
	program, args, _ := strings.Cut(ps(pid, "command"), " ")
	return strings.HasPrefix(filepath.Base(program), "post") && strings.Contains(args, "-D "+data+" ")
}

// roomInMemory is false: only Linux has such a file system for everybody.
func roomInMemory() bool { return false }
