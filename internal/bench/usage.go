package bench

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// usage is the cost of operations. A figure that cannot be known is nil: all of the CPU times on a
// system without /proc, and the server's if it runs on another machine.
type usage struct {
	ServiceCPU  *float64 `json:"service_cpu_s_per_1000"`
	PostgresCPU *float64 `json:"postgres_cpu_s_per_1000"`
	LoadCPU     *float64 `json:"load_cpu_s_per_1000"`
	// WAL is that of the whole server.
	WAL *float64 `json:"wal_bytes_per_op"`
	// Transactions counts those of the whole server that wrote. It is the difference of transaction
	// ids, which is exact at once, while the server's statistics lag behind.
	Transactions *float64 `json:"transactions_per_op"`
	PeakRSS      *int64   `json:"peak_rss_bytes"`
}

// meter reads the counters of the processes and of the server.
type meter struct {
	conn     *pgx.Conn
	service  int
	another  int // A second process of the service; 0 for none.
	postgres int // The postmaster; 0 if it cannot be seen from here.
}

// reading holds counters that only rise; -1 means unknown.
type reading struct {
	service, postgres, load float64 // CPU seconds.
	machine                 float64 // CPU seconds of all processes, and those that a hypervisor took.
	at                      time.Time
	wal, transactions       float64
}

func (m *meter) read(ctx context.Context) reading {
	r := reading{
		service: cpu(m.service, ownTime), load: cpu(os.Getpid(), endedToo), postgres: -1, wal: -1, transactions: -1,
		machine: machineCPU(), at: time.Now(),
	}
	if m.another != 0 && r.service >= 0 {
		r.service += max(cpu(m.another, ownTime), 0)
	}
	if m.postgres != 0 {
		r.postgres = cpu(m.postgres, childrenToo)
	}
	var wal, transactions float64
	err := m.conn.QueryRow(ctx, `
		select (pg_current_wal_insert_lsn() - '0/0')::float8, pg_snapshot_xmax(pg_current_snapshot())::text::float8`).
		Scan(&wal, &transactions)
	if err == nil {
		r.wal, r.transactions = wal, transactions
	}
	return r
}

// since returns the usage per operation between two readings.
func (m *meter) since(before, after reading, operations int) usage {
	per := func(before, after, scale float64) *float64 {
		if before < 0 || after < before || operations == 0 {
			return nil
		}
		return new((after - before) * scale / float64(operations))
	}
	return usage{
		ServiceCPU:   per(before.service, after.service, 1000),
		PostgresCPU:  per(before.postgres, after.postgres, 1000),
		LoadCPU:      per(before.load, after.load, 1000),
		WAL:          per(before.wal, after.wal, 1),
		Transactions: per(before.transactions, after.transactions, 1),
		PeakRSS:      peakRSS(m.service),
	}
}

// others returns the share of the machine's CPU time that processes outside the run used between two
// readings: from 0 to 1, and 0 if it is unknown.
func others(before, after reading) float64 {
	if before.machine < 0 || before.service < 0 || before.postgres < 0 {
		return 0
	}
	used := func(r reading) float64 { return r.machine - r.service - r.postgres - r.load }
	return (used(after) - used(before)) / (after.at.Sub(before.at).Seconds() * float64(runtime.NumCPU()))
}

// machineCPU returns the CPU seconds of all processes from the first line of /proc/stat, see
// proc_stat(5), or -1 without that file.
func machineCPU() float64 {
	raw, err := os.ReadFile("/proc/stat")
	line, _, _ := bytes.Cut(raw, []byte("\n"))
	fields := bytes.Fields(line)
	if err != nil || len(fields) < 9 {
		return -1
	}
	sum := 0.0
	for _, i := range []int{1, 2, 3, 8} { // user, nice, system, steal
		n, _ := strconv.ParseFloat(string(fields[i]), 64)
		sum += n
	}
	return sum / ticks
}

// ticks is the number of clock ticks per second of the times in /proc. Linux fixes it for programs.
const ticks = 100

// Which processes are counted with a process.
const (
	ownTime     = iota // None.
	endedToo           // Its children that have ended: for this process, pgbench.
	childrenToo        // Its children that have ended and those that run.
)

// cpu returns the seconds that a process has used, or -1 if they are unknown.
func cpu(pid, whose int) float64 {
	own, ok := statTimes(pid)
	if !ok {
		return -1
	}
	sum := own.used
	if whose >= endedToo {
		sum += own.ofEnded
	}
	if whose >= childrenToo {
		sum += ofChildren(pid)
		// A child that ended meanwhile was counted twice, or not at all.
		if again, _ := statTimes(pid); again.ofEnded != own.ofEnded {
			return cpu(pid, whose)
		}
	}
	return float64(sum) / ticks
}

// ofChildren returns the ticks of the running children of a process.
func ofChildren(pid int) (sum int64) {
	files, _ := filepath.Glob("/proc/[0-9]*") // The only error is a malformed pattern.
	for _, file := range files {
		if child, err := strconv.Atoi(filepath.Base(file)); err == nil {
			if times, ok := statTimes(child); ok && times.parent == pid {
				sum += times.used
			}
		}
	}
	return sum
}

type processTimes struct {
	parent        int
	used, ofEnded int64 // In ticks.
}

// statTimes reads /proc/PID/stat, see proc_pid_stat(5).
func statTimes(pid int) (t processTimes, ok bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return t, false
	}
	// The second field is the program's name in brackets, and may itself hold both.
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 15 {
		return t, false
	}
	number := func(field int) int64 { // As counted in the manual.
		n, _ := strconv.ParseInt(string(fields[field-3]), 10, 64)
		return n
	}
	return processTimes{parent: int(number(4)), used: number(14) + number(15), ofEnded: number(16) + number(17)}, true
}

// resetPeakRSS resets the peak of a process's resident memory, where the system allows it.
func resetPeakRSS(pid int) {
	file, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/clear_refs", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	_, _ = file.WriteString("5")
	file.Close()
}

// peakRSS returns the peak of a process's resident memory in bytes, or nil if it is unknown.
func peakRSS(pid int) *int64 {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return nil
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	fields := bytes.Fields(rest)
	if len(fields) == 0 {
		return nil
	}
	kib, err := strconv.ParseInt(string(fields[0]), 10, 64)
	if err != nil {
		return nil
	}
	return new(kib << 10)
}

// findPostmaster returns the process id of a connection's server, or 0 if the server is not on this
// machine or its process cannot be seen.
func findPostmaster(ctx context.Context, conn *pgx.Conn) int {
	host := conn.Config().Host
	ip := net.ParseIP(host)
	if !strings.HasPrefix(host, "/") && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return 0
	}
	var backend int
	if err := conn.QueryRow(ctx, "select pg_backend_pid()").Scan(&backend); err != nil {
		return 0
	}
	// A port may lead into a container, whose process ids are those of other processes here.
	title, err := os.ReadFile("/proc/" + strconv.Itoa(backend) + "/cmdline")
	words := strings.Fields(string(bytes.ReplaceAll(title, []byte{0}, []byte(" "))))
	if err != nil || !slices.Contains(words, "postgres:") || !slices.Contains(words, conn.Config().Database) {
		return 0
	}
	times, _ := statTimes(backend)
	return times.parent
}
