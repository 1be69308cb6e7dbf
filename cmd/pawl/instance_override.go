package main

// operatorFlags are the arguments of every command that steps in for the definition.
type operatorFlags struct {
	Reason string `required:"" help:"Reason, for the history and the audit."`
	Key    string `help:"Idempotency key; by default a new one."`
	DryRun bool   `help:"Show the instance as it would be, and change nothing."`
}

// overrideFlags say which step an override makes.
type overrideFlags struct {
	To           string `xor:"how" required:"" help:"Path of the state to go to."`
	ContextPatch string `placeholder:"JSON|@FILE|-" help:"With --to, a merge patch (RFC 7396) of the context: JSON or YAML, @FILE or -."`
	Event        string `xor:"how" required:"" help:"Name of the event whose guards are passed over."`
	Payload      string `placeholder:"JSON|@FILE|-" help:"With --event, its payload: JSON or YAML, @FILE or -."`
	Bypass       string `enum:",guard" default:"" help:"With --event: guard."`
	Target       string `help:"With --event, path of the state that the transition must lead to."`
}

// members returns the flags as the API takes them.
func (o *overrideFlags) members(c *console) (map[string]any, error) {
	body := members(map[string]string{"to": o.To, "event": o.Event, "bypass": o.Bypass, "target": o.Target}, "", nil)
	for name, text := range map[string]string{"context_patch": o.ContextPatch, "payload": o.Payload} {
		document, err := c.input(text)
		if err != nil {
			return nil, err
		}
		if document != nil {
			body[name] = document
		}
	}
	return body, nil
}

// instanceOverride moves an instance to a state, or along a transition whose guard is passed over.
type instanceOverride struct {
	oneInstance
	overrideFlags
	IfMatch int64 `required:"" help:"Version of the instance that you have seen."`
	operatorFlags
}

func (i *instanceOverride) Run(c *console) error {
	body, err := i.members(c)
	if err != nil {
		return err
	}
	body["reason"] = i.Reason
	return i.showInstance(c, newCommand(i.path()+"/override", i.Key, body, i.IfMatch, i.DryRun))
}

// instanceCancel moves an instance to the state that its definition names for cancels.
type instanceCancel struct {
	oneInstance
	IfMatch int64 `help:"Cancel only if the instance is at this version."`
	operatorFlags
}

func (i *instanceCancel) Run(c *console) error {
	body := map[string]any{"reason": i.Reason}
	return i.showInstance(c, newCommand(i.path()+"/cancel", i.Key, body, i.IfMatch, i.DryRun))
}
