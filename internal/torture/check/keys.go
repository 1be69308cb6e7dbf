package check

// keys checks that each key has one effect, that all attempts with it are answered as the first was and never better,
// and that the database's keys name the steps that have them.
func keys(x *index, out *reporter) {
	for _, key := range x.keys {
		attempts := x.attempts[key]
		if effects := x.effects[key]; len(effects) > 1 {
			out.add("key %s: it has %d effects: instance %s, %s; instance %s, %s", key, len(effects),
				effects[0].Instance, effects[0], effects[1].Instance, effects[1])
		}
		var told *Op // Whose answer the others must repeat.
		for _, o := range attempts {
			switch {
			case o.decided() && told == nil:
				told = o
				if o.applied() && o != attempts[0] && !x.kept(o) && !x.losable(o) {
					out.add("key %s: a retry was answered better than the first attempt: %s at instance %s, but %s",
						key, o.answer(), o.Instance, x.instead(o))
				}
			case told == nil || o.unknown() || o.Status == 429 || x.losable(told) || x.losable(o):
			case o.decided() && !sameAnswer(o, told):
				out.add("key %s: one attempt was answered %s, another %s", key, told.answer(), o.answer())
			case !o.decided() && told.End.Before(o.Begin):
				out.add("key %s: an attempt was answered %s, a later one %s", key, told.answer(), o.answer())
			}
			if o.Code == "idempotency-key-reuse" {
				out.add("key %s: an attempt was taken for another command: %s", key, o.answer())
			}
		}
	}

	rows := map[string]Key{}
	for _, k := range x.Keys {
		rows[k.Key] = k
		if k.Decision != "applied" {
			continue
		}
		if s := x.step(k.Instance, k.Version); s == nil || s.Key != k.Key {
			out.add("key %s: the database says that it was applied to instance %s as version %d, but history has %s",
				k.Key, k.Instance, k.Version, orNothing(s))
		}
	}
	for _, id := range x.instances {
		for _, s := range x.steps[id] {
			if s.Kind == timeoutKind || s.Key == "" {
				continue
			}
			if k, there := rows[s.Key]; !there {
				out.add("key %s: the database does not know it, but history has instance %s, %s", s.Key, id, s)
			} else if k.Decision != "applied" {
				out.add("key %s: the database says %s, but history has instance %s, %s", s.Key, k.Decision, id, s)
			}
		}
	}
}

func sameAnswer(a, b *Op) bool {
	return a.Status == b.Status && a.Code == b.Code && a.Instance == b.Instance && a.Version == b.Version &&
		a.State == b.State && same(a.Context, b.Context)
}

func orNothing(s *Step) string {
	if s == nil {
		return "nothing"
	}
	return s.String()
}
