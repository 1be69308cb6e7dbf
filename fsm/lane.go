package fsm

import "container/heap"

// A lane has commands that may be called. Tenants take turns, with one command at each turn. The commands of
// a tenant leave the lane in the order of their arrival. Its zero value is empty.
type lane[C, R any] struct {
	queues map[string]*queue[C, R] // By tenant; only tenants with commands.
	turns  []*queue[C, R]
	size   int
}

// queue has the commands of one tenant, as a heap. Commands that were behind others in a line join it late,
// and still precede those that arrived after them.
type queue[C, R any] struct {
	tenant   string
	commands []*pending[C, R]
}

// The methods of heap.Interface.
func (q *queue[C, R]) Len() int           { return len(q.commands) }
func (q *queue[C, R]) Less(i, j int) bool { return q.commands[i].arrival < q.commands[j].arrival }
func (q *queue[C, R]) Swap(i, j int)      { q.commands[i], q.commands[j] = q.commands[j], q.commands[i] }
func (q *queue[C, R]) Push(p any)         { q.commands = append(q.commands, p.(*pending[C, R])) }
func (q *queue[C, R]) Pop() any {
	last := len(q.commands) - 1
	p := q.commands[last]
	q.commands[last] = nil // The array lives on, and would keep the command.
	q.commands = q.commands[:last]
	return p
}

// push adds a command.
func (l *lane[C, R]) push(p *pending[C, R]) {
	q := l.queues[p.tenant]
	if q == nil {
		if l.queues == nil {
			l.queues = map[string]*queue[C, R]{}
		}
		q = &queue[C, R]{tenant: p.tenant}
		l.queues[p.tenant], l.turns = q, append(l.turns, q)
	}
	heap.Push(q, p)
	l.size++
}

// pop takes the next command, or returns nil if there is none.
func (l *lane[C, R]) pop() *pending[C, R] {
	if l.size == 0 {
		return nil
	}
	q := l.turns[0]
	l.turns[0] = nil // The array lives on, and would keep the queue.
	l.turns = l.turns[1:]
	p := heap.Pop(q).(*pending[C, R])
	if l.size--; q.Len() > 0 {
		l.turns = append(l.turns, q)
	} else {
		delete(l.queues, q.tenant)
	}
	return p
}

// least returns the number of commands of the tenant that has the fewest.
func (l *lane[C, R]) least() (n int) {
	for i, q := range l.turns {
		if i == 0 || q.Len() < n {
			n = q.Len()
		}
	}
	return n
}
