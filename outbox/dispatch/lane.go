package dispatch

import "time"

// A lane is the queue of one endpoint.
type lane[T any] struct {
	ready    []*Job[T]
	inFlight int
	// limit is the most attempts that may be under way.
	limit int
	// used is when an attempt last began.
	used time.Time
	// host is nil if the owner keeps the circuit. The lane's own circuit is not used then.
	host *host
	circuit
}

// A host is what the lanes to one host share.
type host struct {
	name            string
	inFlight, lanes int
	circuit
}

// initialLimit is how many attempts may be under way in a lane that has had no answer yet.
const initialLimit = 2

// lane returns the lane of a job, which is made if there is none.
func (d *Dispatcher[T]) lane(j *Job[T]) *lane[T] {
	if l := d.lanes[j.Lane]; l != nil {
		return l
	}
	l := &lane[T]{limit: min(initialLimit, d.config.PerLane)}
	d.lanes[j.Lane] = l
	if j.Host != "" {
		if d.hosts[j.Host] == nil {
			d.hosts[j.Host] = &host{name: j.Host}
		}
		l.host = d.hosts[j.Host]
		l.host.lanes++
	}
	return l
}

// idle reports whether a lane without ready jobs has had nothing to do for a minute, and its
// circuit nothing to remember.
func (l *lane[T]) idle() bool {
	return l.inFlight == 0 && time.Since(l.used) > time.Minute && time.Since(l.openUntil) > time.Minute
}

// closeLane forgets a lane, and its host with the last lane.
func (d *Dispatcher[T]) closeLane(name string) {
	if h := d.lanes[name].host; h != nil {
		if h.lanes--; h.lanes == 0 {
			delete(d.hosts, h.name)
		}
	}
	delete(d.lanes, name)
}
