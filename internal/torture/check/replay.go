package check

// replay checks that states and contexts of history are those to which the model comes by the same events. After
// a step that differs it goes on with the step's own result, so that one fault is reported once.
func replay(x *index, out *reporter) {
	for _, id := range x.instances {
		var now Situation
		for i, s := range x.steps[id] {
			after := situation(s)
			var want Situation
			switch {
			case s.Kind == "created":
				// What the creator sent is compared by the check "acknowledged".
				want = x.Model.Create(s.Context)
			case i == 0:
				// A gap, see the check "versions".
				want = after
			default:
				var refusal string
				want, refusal = x.Model.Fire(now, s.Event, s.Payload)
				if s.Kind == timeoutKind && (refusal != "" || s.From != now.State) {
					// See the check "timers".
					want = after
				} else if refusal != "" {
					out.add("instance %s: %s is a step from %s, where the model says %s", id, s, now.State, refusal)
					want = after
				} else if s.From != now.State {
					out.add("instance %s: %s comes from %s, expected %s", id, s, s.From, now.State)
				}
			}
			if after != want {
				out.add("instance %s: %s leads to %v, expected %v", id, s, after, want)
			}
			now = after
		}
	}
}

// situation is the instance after a step, as history has it.
func situation(s *Step) Situation {
	return Situation{State: s.To, Status: s.Status, Context: Canonical(s.Context)}
}
