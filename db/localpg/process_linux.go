package localpg

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// dieWithParent lets the kernel end the server when the thread that started it ends, and so also when this process is
// killed. A temporary server gets an immediate shutdown, any other one a fast shutdown.
func dieWithParent(attr *syscall.SysProcAttr, temporary bool) {
	attr.Pdeathsig = syscall.SIGINT
	if temporary {
		attr.Pdeathsig = syscall.SIGQUIT
	}
}

// capDACReadSearch is CAP_DAC_READ_SEARCH, see capabilities(7).
const capDACReadSearch = 2

// searchFolders lets a process that root starts as another user enter every folder.
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

// zombie reports whether a process has ended, and its parent has not yet collected it.
func zombie(pid int) bool {
	state, _, ok := stat(pid)
	return ok && (state == "Z" || state == "X")
}

// processes returns the ids of the processes that a condition chooses.
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

// children returns the ids of the children of a process, in a stable order.
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

// isServerOf reports whether a process is one of PostgreSQL that works on a data folder: that is its working directory.
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

// roomInMemory reports whether servers may have their data in memoryDir. Containers often have a small one.
func roomInMemory() bool {
	var fs syscall.Statfs_t
	err := syscall.Statfs(memoryDir, &fs)
	return err == nil && int64(fs.Bavail)*fs.Bsize >= 8<<30
}
