package fsm

import (
	"sync"
	"time"

	"github.com/google/uuid"
)

const (
	// slowCommand is how long a call for one command may take. A call that takes longer is slow, if it also
	// takes longer than paceFactor times the shortest of the recent calls: where every commit is slow, no
	// command is to blame. Each further command of a call has slowShare.
	slowCommand = 100 * time.Millisecond
	slowShare   = 500 * time.Microsecond
	paceFactor  = 5
	// paceWindow is how long the shortest call counts as recent, at least. It counts for at most twice as
	// long.
	paceWindow = 5 * time.Second
	// slowMemory is how long a slow call is remembered.
	slowMemory = 10 * time.Minute
	// fastCalls is how many calls in a row must be fast before commands share calls again. It doubles with
	// each slow call, at most maxDoublings times.
	fastCalls, maxDoublings = 8, 14
)

// A source is what makes a call slow, or makes it fail: the guards and assigns of a workflow for a tenant's
// instances, at their creation (without an event) or at an event; or an instance that another transaction has
// locked.
type source struct {
	tenant, workflow, event string
	// instance or holder is set for a lock. holder names the instance that holds a business key.
	instance uuid.UUID
	holder   string
}

// isLock reports whether the source is an instance that is locked.
func (x source) isLock() bool { return x.instance != uuid.Nil || x.holder != "" }

// A mark says what is known of a source.
type mark struct {
	// at is when the last call was slow or failed, and times counts these calls since the source was forgotten.
	at    time.Time
	times int
	// fast is how many more calls must be fast before its commands share calls again.
	fast int
	// suspected: a call with its commands was slow. The next command gets a call of its own, to find out.
	// probing: there is such a command.
	suspected, probing bool
}

// slowness remembers for which sources calls are slow or fail. Commands for these get calls of their own:
// otherwise each of them would delay all commands that share its call. It holds at most 8,192 sources. The
// zero value is ready for use by several goroutines.
type slowness struct {
	mu    sync.Mutex
	marks recent[source, mark]
	// events says when there was last a slow call for an event of any workflow of a tenant. A command for an
	// instance does not name its workflow.
	events recent[source, time.Time]
	// shortest and before are the durations of the shortest calls of this window and of the one before.
	shortest, before time.Duration
	window           time.Time // When this window began.
}

// knows reports whether there may be a mark of a source with the tenant and the event, of any workflow.
func (s *slowness) knows(tenant, event string) bool {
	at, known := s.events.get(source{tenant: tenant, event: event})
	return known && time.Since(at) <= slowMemory
}

// track says with which others a command of a source may be called.
func (s *slowness) track(x source) track {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, known := s.marks.get(x)
	switch {
	case !known || time.Since(m.at) > slowMemory:
		return trackShared
	case m.fast > 0:
		return trackSlow
	case m.suspected && !m.probing:
		m.probing = true
		s.marks.put(x, m)
		return trackAlone
	}
	return trackShared
}

// isSlow reports whether a call for n commands was slow, and notes how long it took.
func (s *slowness) isSlow(took time.Duration, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.window) > paceWindow {
		s.before, s.shortest, s.window = s.shortest, 0, now
	}
	if s.shortest == 0 || took < s.shortest {
		s.shortest = took
	}
	pace := s.shortest
	if s.before > 0 {
		pace = min(pace, s.before)
	}
	return took > max(slowCommand+time.Duration(n-1)*slowShare, paceFactor*pace)
}

// suspect notes that a call with commands of a source and of others was slow.
func (s *slowness) suspect(x source) {
	s.change(x, func(m *mark) { m.suspected, m.probing = true, false })
}

// convict notes that a call for a single command of a source was slow. Once may be by chance.
func (s *slowness) convict(x source) {
	s.change(x, func(m *mark) {
		if m.suspected || m.fast > 0 {
			m.blame()
		} else {
			m.suspected = true
		}
	})
}

// blame notes that a call for a single command of a source failed.
func (s *slowness) blame(x source) {
	s.change(x, (*mark).blame)
}

// blame makes a number of fast calls necessary.
func (m *mark) blame() {
	m.fast = fastCalls << min(m.times, maxDoublings)
	m.times++
	m.suspected, m.probing = false, false
}

// change changes the mark of a source that was slow now.
func (s *slowness) change(x source, change func(*mark)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, _ := s.marks.get(x)
	if time.Since(m.at) > slowMemory {
		m = mark{}
	}
	change(&m)
	m.at = time.Now()
	s.marks.put(x, m)
	s.events.put(source{tenant: x.tenant, event: x.event}, m.at)
}

// acquit notes that a call for a single command of a source was fast.
func (s *slowness) acquit(x source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, known := s.marks.get(x); known && (m.fast > 0 || m.suspected) {
		m.fast = max(m.fast-1, 0)
		m.suspected, m.probing = false, false
		s.marks.put(x, m)
	}
}
