package definition

import "fmt"

// tasks compares the tasks of a state.
func (d *differ) tasks(at, state string, a, b map[string]Task) {
	for _, name := range union(a, b) {
		at := at + Pointer(name)
		old, had := a[name]
		task, has := b[name]
		switch {
		case !had:
			d.add(Added, at, "an instance that is migrated in "+state+" starts it", "%s has the task %s", state, name)
		case !has:
			d.add(Removed, at, "an instance that waits for it in "+state+" stays there", "%s no longer has the task %s", state, name)
		default:
			d.task(at, fmt.Sprintf("the task %s of %s", name, state),
				"an instance whose task is not sent yet goes on by the new rule; while a task is sent, its instance is not migrated", &old, &task)
			for _, r := range []struct {
				name string
				a, b []Transition
			}{{"done", old.Done, task.Done}, {"error", old.Error, task.Error}, {"unknown", old.Unknown, task.Unknown}} {
				d.candidates(at+"/"+r.name, fmt.Sprintf("%s:%s in %s", r.name, name, state), r.a, r.b)
			}
			if old.Late != task.Late {
				d.add(Changed, at+"/late", "an instance hears of a task that ends late by another event, or by none", "the late event of %s is %s, no longer %s",
					name, orNone(task.Late), orNone(old.Late))
			}
			d.compensation(at, fmt.Sprintf("the task %s of %s", name, state), old.Compensate, task.Compensate)
		}
	}
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// task compares what tasks and compensations share.
func (d *differ) task(at, what, risk string, a, b *Task) {
	d.description(at, a.Description, b.Description)
	old, task := a.written(), b.written()
	for _, m := range []struct {
		member, words string
		a, b          any
	}{
		{"http", "the call", old.HTTP, task.HTTP},
		{"work", "the work", old.Work, task.Work},
		{"idempotency", "the idempotency", old.Idempotency, task.Idempotency},
		{"timeout", "the timeout", old.Timeout, task.Timeout},
		{"deadline", "the deadline", old.Deadline, task.Deadline},
		{"retry", "the retry", old.Retry, task.Retry},
		{"success", "the success", old.Success, task.Success},
		{"reconcile", "the reconcile", old.Reconcile, task.Reconcile},
		{"if_unknown", "the if_unknown", old.IfUnknown, task.IfUnknown},
	} {
		if sameWritten(m.a, m.b) {
			continue
		}
		from, to := jsonText(m.a), jsonText(m.b)
		at := at + "/" + m.member
		switch empty := func(text string) bool { return text == "null" || text == `""` }; {
		case empty(from):
			d.add(Added, at, risk, "%s of %s is %s", m.words, what, to)
		case empty(to):
			d.add(Removed, at, risk, "%s of %s, %s, is gone", m.words, what, from)
		default:
			d.add(Changed, at, risk, "%s of %s is %s, no longer %s", m.words, what, to, from)
		}
	}
}

// sameWritten compares parts of canonical forms.
func sameWritten(a, b any) bool {
	return EqualJSON(decodeSchema([]byte(jsonText(a))), decodeSchema([]byte(jsonText(b))))
}

// compensation compares what undoes a step. at is the pointer of what has it.
func (d *differ) compensation(at, what string, a, b *Task) {
	at += "/compensate"
	switch {
	case a == nil && b == nil:
	case a == nil:
		d.add(Added, at, "what an instance has done before is not undone", "%s can be undone", what)
	case b == nil:
		d.add(Removed, at, "what an instance does from now on is not undone", "%s can no longer be undone", what)
	default:
		d.task(at, "what undoes "+what, "what an instance has done before is undone by the old rule", a, b)
	}
}

// undoing compares whether and how a state undoes.
func (d *differ) undoing(at, state string, a, b *Undoing) {
	at += "/compensate"
	switch {
	case a == nil && b == nil:
	case a == nil:
		d.add(Added, at, "an instance that is migrated in "+state+" begins to undo", "%s undoes what was done", state)
	case b == nil:
		d.add(Removed, at, "what is left to undo stays done", "%s no longer undoes what was done", state)
	case *a != *b:
		d.add(Changed, at+"/on_failure", "an instance that is undoing goes on otherwise after a failure", "%s says %s on a failure, no longer %s",
			state, b.written().OnFailure, a.written().OnFailure)
	}
}
