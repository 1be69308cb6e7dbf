// Package definition is the language in which workflows are declared.
//
// # What it owns
//
//   - The model of a definition ([Definition]) and its canonical JSON form.
//   - Reading a definition, finding everything that is wrong with it ([Parse], [Read]) and what is hardly meant
//     ([Draft.Warnings]).
//   - The JSON Schema of definitions, for editors ([DocumentSchema]). A test holds it equal to the reader.
//   - What a definition means, as far as Go needs it: the atomic states, the transitions that these
//     inherit, and where the transitions lead ([Definition.Flat]).
//   - Strict JSON ([Decode], [CheckObject]), durations ([ParseDuration]) and JSON Schemas ([Schemas]), with those of
//     the deployment that they refer to ([Library]). A definition carries copies of these, so nothing has to be looked
//     up after it was read.
//   - Comparing two definitions ([Diff]) and drawing one ([Definition.Diagram]).
//
// Guards and values ([Guard], [Value]) are kept as they are written. PostgreSQL evaluates them, and only it knows all
// of the syntax of SQL/JSON paths. So a [Draft] lists the paths for whoever can ask a database. A small parser of this
// package finds what a path reads, and leaves alone what it does not understand.
//
// # What a definition does
//
// The engine knows atomic states only, by their paths (CHECKOUT.PAYMENT). Registration flattens a
// definition in SQL: each atomic state gets the transitions that it inherits behind its own, and
// each transition gets everything that is assigned on its way, in stages. The result is that of
// SCXML's algorithm (www.w3.org/TR/scxml/#AlgorithmforSCXMLInterpretation) for a machine without
// parallel regions:
//
//   - Of the transitions for an event, the first is taken whose guard holds. The transitions of an inner state come
//     before those of the states around it. Patterns (payment.*, *) are for events that neither the state nor one
//     around it names; the longest pattern comes first.
//   - A transition with a target leaves all states within the innermost one that is around both the state that declares
//     it and its target. It enters the states down to the target, and from there follows initial. So a transition of a
//     state to itself, to a state within it or to one around it leaves the state and enters it again.
//   - An internal transition to a state within does not leave the state that declares it.
//   - A transition without a target leaves and enters nothing; it only assigns.
//   - A transition that resumes a compound state enters the atomic state within it that was left last, as one to
//     a deep history state does.
//   - A final state within another is left at once, by the done of the state around it.
//   - Exit assigns come first, from the innermost state to the outermost; then the transition's assign; then entry
//     assigns, from the outermost state to the innermost, each followed by that of the state's initial. Each sees the
//     context that the one before it has left, and the instance as it was before the step.
//   - Then eventless transitions (always, done) are taken until none of their guards holds. They see the payload of the
//     command. Each is a step of its own in history, with the command's key, and is committed with the command. After
//     100 of them the command fails with a guard error. A loop that no guard could end is refused at registration.
//
// Eventless transitions are tried after each step, the step of an instance migration included. They
// are not tried when time passes: a guard over $.now alone needs a timeout.
//
// Timeouts (after) and repeats (every) of a state count from entering that state, whether it is atomic or compound.
//
// Tasks (invoke) start in the state in which a command ends, as SCXML's invoke does. Their results are events of the
// engine's: done:NAME, error:NAME and unknown:NAME, of the state that declares the task. An undoing state has
// done:compensate and error:compensate. What a task sends is made of values, over the document of the step that entered
// the state, with $.task; with $.result in what undoes a task; guards on answers read $.status, $.headers and $.body.
//
// Not supported: parallel states; several assigns on entry, on exit or with initial; events that the
// machine sends itself.
//
// # When things fail
//
// A document that is refused gives an [Error]. It has every fault at once if the document could be read
// at all. Apart from that, [Definition.Diagram] refuses an unknown format, [ParseDuration] a text that is
// no duration, and [Schemas.Check] a schema that cannot be read.
//
// # What it may import
//
// Libraries for JSON and JSON Schema. It imports no package of pawl and no database driver.
package definition
