package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
)

// report has all figures of a run. It names no file, host or user of the machine.
type report struct {
	Machine      machine        `json:"machine"`
	Run          parameters     `json:"run"`
	Measurements []*measurement `json:"measurements"`
	References   []*reference   `json:"references"`
	Targets      []headline     `json:"targets"`
	Remarks      []string       `json:"remarks"`
	// FirstCallP50 is the median time of a session's first call, in milliseconds; see measureFirstCalls.
	FirstCallP50 *float64 `json:"first_call_p50_ms,omitempty"`
	// LongPollP50 is the delay of a waiting read in milliseconds, see measureLongPolls.
	LongPollP50 *float64 `json:"longpoll_p50_ms,omitempty"`
	// Neighbours has the figures of one tenant's commands beside each burden that another one is.
	Neighbours []neighbour `json:"neighbours,omitempty"`
	// Found has the figures of reads of many instances, see measureFind.
	Found []found `json:"found,omitempty"`
	// Bulk is the number of instances per second that a bulk moves.
	Bulk *float64 `json:"bulk_per_second,omitempty"`
	// RequestP50 is the median delay from a step's own time, before its commit, to the request of its task, in milliseconds.
	RequestP50 *float64 `json:"step_to_request_p50_ms,omitempty"`
	// Webhooks is the number of webhooks per second that a local receiver gets.
	Webhooks *float64 `json:"webhooks_per_s,omitempty"`
}

type machine struct {
	OS       string            `json:"os"`
	CPUs     int               `json:"cpus"`
	Go       string            `json:"go"`
	Pawl     string            `json:"pawl"`
	Postgres string            `json:"postgres"`
	Settings map[string]string `json:"settings"`
}

type parameters struct {
	Instances int     `json:"instances"`
	Duration  float64 `json:"duration_s"`
	WarmUp    float64 `json:"warm_up_s"`
}

// measurement has the figures of one load. Latencies are those of requests. Everything else counts
// operations: a batch is one request of many operations.
type measurement struct {
	Name        string  `json:"name"`
	Connections int     `json:"connections"`
	Rate        float64 `json:"rate"`
	P50         float64 `json:"p50_ms"`
	P95         float64 `json:"p95_ms"`
	P99         float64 `json:"p99_ms"`
	Max         float64 `json:"max_ms"`
	Operations  int     `json:"operations"`
	Errors      int     `json:"errors"`
	FirstError  string  `json:"first_error,omitempty"`
	// Refused counts answers of 503 with a Retry-After.
	Refused int `json:"refused"`
	usage
	Ratio   *float64 `json:"ratio"`
	RatioTo string   `json:"ratio_to,omitempty"`
	// Purge is set for the measurement "purge" only.
	Purge *purgeFigures `json:"purge,omitempty"`
	// Relay is set for the measurement "relayed" only.
	Relay *relayFigures `json:"relay,omitempty"`
}

// purgeFigures are the cost of purging keys, and the sizes that it keeps small.
type purgeFigures struct {
	Purged   int64   `json:"purged"`
	P99Ratio float64 `json:"p99_ratio"`
	// Sizes are those of the keys with their indexes in bytes, read every second or more often.
	// FirstHalf and SecondHalf are the largest in each half of the time.
	Sizes      []int64 `json:"sizes"`
	FirstHalf  int64   `json:"first_half_max"`
	SecondHalf int64   `json:"second_half_max"`
}

// readMachine describes the machine, the programs, and the settings of the server.
func readMachine(ctx context.Context, conn *pgx.Conn, version string) (machine, error) {
	m := machine{
		OS: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.NumCPU(), Go: runtime.Version(), Pawl: version,
		Postgres: conn.PgConn().ParameterStatus("server_version"), Settings: map[string]string{},
	}
	rows, err := conn.Query(ctx, `
		select name, current_setting(name) from pg_settings where name in (
			'fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_connections', 'max_wal_size',
			'checkpoint_timeout', 'wal_level', 'wal_sync_method', 'autovacuum')`)
	if err != nil {
		return m, err
	}
	var name, value string
	_, err = pgx.ForEachRow(rows, []any{&name, &value}, func() error {
		m.Settings[name] = value
		return nil
	})
	return m, err
}

// comparison divides a rate by another rate of the same run.
type comparison struct {
	of, to string
	// least is the target of the ratio; 0 if it has none.
	least float64
}

// comparisons are the ratios of the report.
func comparisons() []comparison {
	return []comparison{
		{"transitions@1", "writes@1", 0.95},
		{"transitions@8", "writes@8", 0.95},
		{"transitions@64", "writes@64", 2.2},
		{"transitions@256", "writes@256", 4},
		{"batch@8", "writes@8", 2.5},
		{"creates@64", "writes@64", 1.5},
		{"replays@64", "transitions@64", 2},
		{"reads@64", "transitions@64", 2},
		{"hot@64", "fire@1", 2},
		{"tenants@64", "one-tenant@64", 0.9},
		{"tokens@64", "open@64", 0.95},
		{"checked@64", "unchecked@64", 0.9},
		{"values@64", "paths@64", 0.7},
		{"untasked@64", "plain@64", 0.98},
		{"folded@64", "unfolded@64", 0.95},
		{"spans@64", "spanless@64", 0},
		{"workflows@1", "one-workflow@1", 0.95},
		{"workflows@8", "one-workflow@8", 0.95},
		{"workflows@64", "one-workflow@64", 0.95},
		{"mixed@64", "transitions@64", 0},
		{"purge@64", "before-purge@64", 0},
		{"after-overload@64", "before-overload@64", 0},
		{"grown@64", "before-grown@64", 0},
		{"relayed@256", "unrelayed@256", 0.9},
	}
}

const (
	mostRSS       = 150e6 // Bytes, of the service at 256 connections.
	mostFirstCall = 8     // As a multiple of the mean of writes@1.
)

// headline is one figure beside its target.
type headline struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Target string  `json:"target"`
	Met    bool    `json:"met"`
}

// rate returns the rate of a measurement or reference by its label.
func (r *report) rate(label string) (float64, bool) {
	for _, m := range r.Measurements {
		if m.label() == label {
			return m.Rate, true
		}
	}
	for _, m := range r.References {
		if m.label() == label {
			return m.Rate, true
		}
	}
	return 0, false
}

// label is the name with the number of connections.
func (m *measurement) label() string { return fmt.Sprintf("%s@%d", m.Name, m.Connections) }
func (m *reference) label() string   { return fmt.Sprintf("%s@%d", m.Name, m.Connections) }

// compare sets the ratio of a measurement, if the rate to divide by is known already.
func (r *report) compare(m *measurement) {
	for _, c := range comparisons() {
		if to, ok := r.rate(c.to); ok && to > 0 && c.of == m.label() {
			m.Ratio, m.RatioTo = new(m.Rate/to), c.to
		}
	}
}

// conclude compares the figures that have a target with it.
func (r *report) conclude() {
	for _, c := range comparisons() {
		of, ok := r.rate(c.of)
		to, also := r.rate(c.to)
		if c.least > 0 && ok && also && to > 0 {
			r.Targets = append(r.Targets, headline{c.of + " ÷ " + c.to, of / to, "≥ " + strconv.FormatFloat(c.least, 'g', -1, 64), of/to >= c.least})
		}
	}
	for _, m := range r.Measurements {
		switch {
		case m.label() == "transitions@256" && m.PeakRSS != nil:
			rss := float64(*m.PeakRSS)
			r.Targets = append(r.Targets, headline{m.label() + " peak RSS in MB", rss / 1e6, fmt.Sprintf("≤ %.0f", mostRSS/1e6), rss <= mostRSS})
		case m.Name == "work":
			r.Targets = append(r.Targets, headline{"tasks completed per second by workers", m.Rate, fmt.Sprintf("≥ %d", leastWork), m.Rate >= leastWork})
		case m.Name == "calls":
			r.Targets = append(r.Targets, headline{"calls of services per second", m.Rate, fmt.Sprintf("≥ %d", leastCalls), m.Rate >= leastCalls})
		}
		if f := m.Relay; f != nil {
			r.Targets = append(r.Targets,
				// The last messages are still on their way when the measurement ends.
				headline{"messages relayed ÷ " + m.label(), f.Rate / m.Rate, "≥ 0.99", f.Rate >= 0.99*m.Rate},
				headline{"step to sink p50 in ms", f.P50, fmt.Sprintf("≤ %d", sinkP50), f.P50 <= sinkP50},
				headline{"step to sink p99 in ms", f.P99, fmt.Sprintf("≤ %d", sinkP99), f.P99 <= sinkP99})
		}
	}
	for _, m := range r.References {
		if first := r.FirstCallP50; first != nil && m.label() == "writes@1" && m.Mean > 0 {
			r.Targets = append(r.Targets, headline{"first call p50 ÷ mean of writes@1", *first / m.Mean, fmt.Sprintf("≤ %d", mostFirstCall), *first <= mostFirstCall*m.Mean})
		}
	}
	for _, n := range r.Neighbours {
		most := fmt.Sprintf("≤ %.0f", n.Most)
		r.Targets = append(r.Targets,
			headline{"p50 beside " + n.Name + " ÷ alone", n.P50Ratio, most, n.P50Ratio <= n.Most},
			headline{"p99 beside " + n.Name + " ÷ alone", n.P99Ratio, most, n.P99Ratio <= n.Most},
			headline{"SIGTERM beside " + n.Name + " in s", n.Stop, fmt.Sprintf("≤ %d", mostStop), n.Stop <= mostStop})
		if n.PeakRSS != nil {
			rss := float64(*n.PeakRSS)
			r.Targets = append(r.Targets, headline{"peak RSS beside " + n.Name + " in MB", rss / 1e6, fmt.Sprintf("≤ %.0f", mostNeighbourRSS/1e6), rss <= mostNeighbourRSS})
		}
	}
	for _, f := range r.Found {
		r.Targets = append(r.Targets, headline{f.Name + ", p99 in ms", f.P99, fmt.Sprintf("≤ %.0f", f.Most), f.P99 <= f.Most})
	}
	if rate := r.Webhooks; rate != nil {
		r.Targets = append(r.Targets, headline{"webhooks per second", *rate, fmt.Sprintf("≥ %d", leastWebhooks), *rate >= leastWebhooks})
	}
	if rate := r.Bulk; rate != nil {
		r.Targets = append(r.Targets, headline{"instances per second by a bulk", *rate, fmt.Sprintf("≥ %d", leastBulk), *rate >= leastBulk})
	}
	if p50 := r.RequestP50; p50 != nil {
		r.Targets = append(r.Targets, headline{"step to request p50 in ms", *p50, fmt.Sprintf("≤ %d", requestP50), *p50 <= requestP50})
	}
	if p50 := r.LongPollP50; p50 != nil {
		r.Targets = append(r.Targets, headline{"step to long-poll p50 in ms", *p50, fmt.Sprintf("≤ %d", pollP50), *p50 <= pollP50})
	}
}

const (
	rowFormat = "%-17s %5s %8s %8s %7s %7s %8s %6s %7s %7s %6s %6s %5s %6s\n"
	note      = `CPU is seconds per 1,000 operations, of the service and of Postgres. WAL is bytes, and tx is transactions that wrote,
per operation and of the whole server. RSS is the service's peak in MB. The references of a row are indented below it;
their ratio is the rate of that row divided by theirs.
`
)

// header prints the meaning of the columns and their names.
func (b *benchmark) header() {
	b.printf(note+"\n"+rowFormat, "", "conns", "rate/s", "p50 ms", "p95", "p99", "max", "errors", "CPU pawl", "CPU pg", "WAL", "tx", "RSS", "ratio")
}

// row prints a measurement.
func (b *benchmark) row(m *measurement) {
	b.printf(rowFormat, m.Name, fmt.Sprint(m.Connections), figure(&m.Rate, 0),
		figure(&m.P50, 2), figure(&m.P95, 2), figure(&m.P99, 2), figure(&m.Max, 1), fmt.Sprint(m.Errors+m.Refused),
		figure(m.ServiceCPU, 3), figure(m.PostgresCPU, 3), figure(m.WAL, 0), figure(m.Transactions, 3),
		megabytes(m.PeakRSS), figure(m.Ratio, 2))
	if m.Errors > 0 {
		b.remark("%s: %d errors, the first: %s", m.label(), m.Errors, m.FirstError)
	}
	if m.Refused > 0 {
		b.remark("%s: %d refused with a Retry-After", m.label(), m.Refused)
	}
}

// referenceRow prints a reference below the measurement that it belongs to.
func (b *benchmark) referenceRow(r *reference) {
	b.printf(rowFormat, "  "+r.Name, fmt.Sprint(r.Connections), figure(&r.Rate, 0), "", "", "", "", "",
		"", figure(r.PostgresCPU, 3), figure(r.WAL, 0), figure(r.Transactions, 3), "", figure(r.Ratio, 2))
}

// remark prints a sentence and adds it to the report.
func (b *benchmark) remark(format string, args ...any) {
	text := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	b.report.Remarks = append(b.report.Remarks, text)
	b.printf("  %s\n", text)
}

// figure formats a number, or "-" if it is unknown.
func figure(v *float64, digits int) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.*f", digits, *v)
}

// megabytes formats a number of bytes, or "-" if it is unknown.
func megabytes(v *int64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f", float64(*v)/1e6)
}

// summary prints the figures that have a target, and marks those that missed it.
func (b *benchmark) summary() error {
	b.report.conclude()
	if len(b.report.Targets) == 0 {
		return nil
	}
	b.printf("\n")
	table := tabwriter.NewWriter(b.Output, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "FIGURE\tVALUE\tTARGET\t")
	for _, t := range b.report.Targets {
		missed := ""
		if !t.Met {
			missed = "missed"
		}
		_, _ = fmt.Fprintf(table, "%s\t%.2f\t%s\t%s\n", t.Name, t.Value, t.Target, missed)
	}
	return table.Flush()
}

func (r *report) write(to io.Writer) error {
	encoder := json.NewEncoder(to)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}
