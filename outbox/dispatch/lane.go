package dispatch

import (
	"slices"
	"time"
)

// A lane is the queue of one endpoint.
type lane[T any] struct {
	name     string
	owner    *owner[T]
	ready    []*Job[T]
	inFlight int
	// limit is the most attempts that may be under way now, and ceiling the most that it grows to.
	limit, ceiling int
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

// An owner is whose lanes share attempts under way: all that one tenant's endpoints get.
type owner[T any] struct {
	lanes []*lane[T]
	// next is the place of the lane whose turn it is.
	next            int
	inFlight, bytes int
}

// busy is how many lanes have something to do.
func (o *owner[T]) busy() (n int) {
	for _, l := range o.lanes {
		if l.busy() {
			n++
		}
	}
	return n
}

// busy reports whether a lane has something to do.
func (l *lane[T]) busy() bool { return len(l.ready) > 0 || l.inFlight > 0 }

// lane returns a lane, which is made if there is none.
func (d *Dispatcher[T]) lane(of, name, hostName string) *lane[T] {
	if l := d.lanes[name]; l != nil {
		return l
	}
	o := d.owners[of]
	if o == nil {
		o = &owner[T]{}
		d.owners[of] = o
	}
	l := &lane[T]{name: name, owner: o, limit: min(initialLimit, d.config.PerLane), ceiling: d.config.PerLane}
	o.lanes = append(o.lanes, l)
	d.lanes[name] = l
	if hostName != "" {
		if d.hosts[hostName] == nil {
			d.hosts[hostName] = &host{name: hostName}
		}
		l.host = d.hosts[hostName]
		l.host.lanes++
	}
	return l
}

// idle reports whether a lane has had nothing to do for a minute, and its circuit nothing to
// remember.
func (l *lane[T]) idle() bool {
	return !l.busy() && time.Since(l.used) > time.Minute && time.Since(l.openUntil) > time.Minute
}

// closeIdle forgets the lanes of an owner that are idle, and their hosts with their last lane.
func (d *Dispatcher[T]) closeIdle(o *owner[T]) {
	o.lanes = slices.DeleteFunc(o.lanes, func(l *lane[T]) bool {
		if !l.idle() {
			return false
		}
		if h := l.host; h != nil {
			if h.lanes--; h.lanes == 0 {
				delete(d.hosts, h.name)
			}
		}
		delete(d.lanes, l.name)
		return true
	})
}
