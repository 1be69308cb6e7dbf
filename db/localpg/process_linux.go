package localpg

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent has the kernel end the server when the thread that started it ends, hence also when this process
// is killed. Data that matters gets a fast shutdown, the rest an immediate one.
func dieWithParent(attr *syscall.SysProcAttr, temporary bool) {
	attr.Pdeathsig = syscall.SIGINT
	if temporary {
		attr.Pdeathsig = syscall.SIGQUIT
	}
}

// capDACReadSearch is CAP_DAC_READ_SEARCH, see capabilities(7).
const capDACReadSearch = 2

// searchFolders lets a process that is no longer root's enter every folder.
func searchFolders(attr *syscall.SysProcAttr) {
	attr.AmbientCaps = []uintptr{capDACReadSearch}
}

// stat returns a process's state letter and parent, see proc_pid_stat(5).
func stat(pid int) (state string, parent int, ok bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", 0, false
	}
	// The second field is the program's name in brackets, and may itself hold spaces and brackets.
	_, rest, _ := bytes.Cut(raw[max(bytes.LastIndexByte(raw, ')'), 0):], []byte(" "))
	fields := strings.Fields(string(rest))
	if len(fields) < 2 {
		return "", 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return fields[0], parent, err == nil
}

func zombie(pid int) bool {
	state, _, ok := stat(pid)
	return ok && (state == "Z" || state == "X")
}

// processes returns the ids that a test chooses.
func processes(chosen func(pid int) bool) []int {
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the only error is a malformed pattern
	for _, dir := range dirs {
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && chosen(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func children(pid int) []int {
	return processes(func(id int) bool {
		_, parent, ok := stat(id)
		return ok && parent == pid
	})
}

// serversOf returns every process of PostgreSQL that works on a data folder.
func serversOf(data string) []int {
	return processes(func(pid int) bool { return isServerOf(pid, data) && alive(pid) })
}

// isServerOf tells whether a process is a PostgreSQL of a data folder, which is then its working directory.
func isServerOf(pid int, data string) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	name, err := os.ReadFile(proc + "/comm")
	if err != nil || !bytes.HasPrefix(name, []byte("post")) { // postgres, or postmaster, an older name
		return false
	}
	cwd, err := os.Stat(proc + "/cwd")
	if err != nil {
		return false
	}
	want, err := os.Stat(data)
	return err == nil && os.SameFile(cwd, want)
}
