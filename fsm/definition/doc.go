// Package definition is the language in which workflows are declared.
//
// # What it owns
//
//   - The model of a definition ([Definition]) and its canonical JSON form.
//   - Reading a definition and finding everything that is wrong with it ([Parse], [Read]).
//   - What a definition means, as far as Go needs it: the atomic states, the transitions that these
//     inherit, and where the transitions lead ([Definition.Flat]).
//   - Strict JSON ([Decode], [CheckObject]), durations ([ParseDuration]) and JSON Schemas ([Schemas]).
//   - Comparing two definitions ([Diff]) and drawing one ([Definition.Diagram]).
//
// Guards and assigns are SQL/JSON paths. Only PostgreSQL knows their syntax, so this package treats
// them as text; a [Draft] lists them for whoever can ask a database.
//
// # Nested and eventless states
//
// The engine knows atomic states only, by their paths (CHECKOUT.PAYMENT). Registration flattens a
// definition in SQL: each atomic state gets the transitions that it inherits behind its own, and
// each transition gets everything that is assigned on its way, in stages. The result is that of
// SCXML's algorithm (www.w3.org/TR/scxml/#AlgorithmforSCXMLInterpretation) for a machine without
// parallel regions:
//
//   - Of the transitions for an event, the first is taken whose guard holds. The transitions of an
//     inner state come before those of the states around it.
//   - The transition leaves all states up to the innermost one that is around both the state that
//     declares it and its target. It enters the states down to the target, and from there follows
//     initial. All transitions are external: a transition to the state itself, to a state within it
//     or to one around it leaves the state and enters it again.
//   - Exit assigns come first, from the innermost state to the outermost; then the transition's
//     assign; then entry assigns, from the outermost state to the innermost. Each sees the context
//     that the one before it has left, and the instance as it was before the step.
//   - Then eventless transitions (always) are taken until none of their guards holds. They see the
//     payload of the command. Each is a step of its own in history, with the command's key, and is
//     committed with the command. After 100 of them the command fails with a guard error. A loop that
//     no guard could end is refused at registration.
//
// Eventless transitions are tried after each step, the step of an instance migration included. They
// are not tried when time passes: a guard over $.now alone needs a timeout.
//
// Not supported: parallel states; history states; final states within others; transitions without
// a target, and internal ones; several assigns on entry, on exit or with initial; events that the
// machine sends itself; timeouts of compound states, since an instance counts time from its last
// step only.
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
