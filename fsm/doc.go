// Package fsm is pawl for Go programs: it reads definitions, carries out commands, and
// answers reads. The HTTP API is built on it; a program on the same Postgres can embed
// it, and move instances in transactions of its own with [Service.FireTx].
//
// # What it owns
//
// The model of a definition ([Definition], [Parse]), the vocabulary of errors ([Kind]),
// and how commands reach the engine. The engine itself, which decides every command, is
// SQL: see the opening comment of db/migrations/00002_engine.sql. Nothing here decides
// what an event does, and nothing is cached: a decision is made from rows that are read
// in the transaction that acts on them. The one memo holds compiled JSON Schemas by the
// checksum of their text, which cannot become stale.
//
// # A command's way
//
//	Create, Fire, Do ──▶ queue ──▶ flusher ──▶ pawl.create or pawl.fire ──▶ replies
//	                       ▲          │ one call for all that waits
//	                       └──────────┘ while it runs, more commands queue
//
// The micro-batcher has no timer: a command that finds a flusher free is called at once,
// and only commands that arrive during a call share the next. A reply is given after the
// commit. Commands for one instance, or with one key, are never in flight together and
// keep their order; one call holds commands of one tenant.
//
// # What an instance goes through
//
//	create ──▶ active ──fire──▶ active ──fire──▶ … ──▶ completed | failed | cancelled | expired
//
// An instance's version starts at 1 and rises by 1 with each step; history has exactly
// one row per version. The state is one that the instance's version of the workflow
// declares, which a CHECK on the table sees to. The status is active until a final state
// is reached, then that state's outcome, and nothing moves the instance any more.
//
// # Nested and eventless states
//
// A definition may nest states. Registration flattens it, so that the engine knows atomic
// states only, by their paths (CHECKOUT.PAYMENT), each with the transitions that it inherits
// behind its own and with all that is assigned on the way as stages of one assign; see
// pawl.definition_transitions. What comes of it is what SCXML's algorithm
// (www.w3.org/TR/scxml/#AlgorithmforSCXMLInterpretation) does for a machine without parallel
// regions:
//
//   - Of the transitions for an event, the first is taken whose guard holds, the innermost
//     state's before those of the states around it.
//   - It leaves all states up to the innermost that is around both the one that declares the
//     transition and its target, and enters those down to the target, and from there what
//     each initial leads to. A transition to oneself, to a state within or to one around
//     leaves and enters it again: all transitions are external.
//   - Exit assigns come first, the innermost state's before the others, then the transition's,
//     then entry assigns, the outermost first. Each sees the context that the one before has
//     left, and the instance as it was before the step.
//   - Then eventless transitions (always) are taken, until no guard of theirs holds. They see
//     the payload of the command, are steps of their own in history with the command's key,
//     and are done or undone with it. After 100 the command fails with GuardError; a loop that
//     no guard could end is refused at registration.
//
// They are looked at after each step, a migration's too, not when time passes: a guard over
// $.now alone is what timeouts are for.
//
// Not supported: parallel states; history states; final states within others, and so events
// when a part is done; transitions without a target, and internal ones; more than an assign on
// entry, on exit or with initial; events that the machine sends itself; timeouts of compound
// states, since an instance tells the time from its last step only.
//
// # Documents and schemas
//
// Postgres has no JSON Schema, so the service checks documents that have one: the engine
// answers a command whose document has not been checked with the schema, and the flusher
// checks it and calls again with the schema's checksum, before any command behind it is
// let through. A workflow without schemas costs no second call. A context is checked when
// an instance is created; later it changes only through assigns, which are not.
//
// # Time
//
// The database's clock is the only one. A step arms the instance's timer in its own
// transaction: a row that says when to look at it, not later than its next deadline. A step
// to a later deadline leaves the row as it is, so that most steps write none. [Timers] look
// at what is due and let the engine end it, under the instance's lock, by the same decision
// as any event; a row that comes up too early is put right then. One process fires at a
// time, which an advisory lock sees to that dies with its transaction, and an instance that
// somebody holds is passed by. A timeout whose guard refuses gives way to the state's next;
// one that raises, or takes too long, is put off by a minute and holds up no other. [Purger]
// deletes expired keys, some at a time, and passes by what is locked. [Remover] does the same
// with final instances that are older than their workflow's retention, each with its history
// and keys in one transaction, once no key replays it any more; [Service.Archive] writes them
// somewhere else first.
//
// # Who waits
//
// After the commit of creates and fires a process tells all others which instances have
// moved: at once if it was idle, else what has come together in 10 ms, on a connection and in
// a transaction apart from the engine's. A [Hub] hears it on one connection of the process and
// wakes whoever waits for those instances. It is a hint: once a second the hub looks, by one
// query from its last snapshot on, for steps that it was not told of, those of SQL callers
// among them, and does no less while it cannot hear. [Service.Await] and [Stream] read again
// when they are woken, and before they first wait, so that nothing is missed. A [Stream] keeps
// its place, which each event's id tells, and nothing else.
//
// # When things fail
//
//   - A call that fails as a whole (a guard that raises, a row that stays locked) is
//     repeated command by command, so that only the one to blame fails. What a path raises
//     has SQLSTATEs of its own; whether one is slow, or waits, is found out by making the
//     same decision without writing.
//   - A deadlock, a serialization failure or a lost connection repeats the call. Every
//     command has a key, its caller's or a random one, so that nothing happens twice even
//     if the lost answer was that of a commit. What such a call finds done is its own
//     doing, and no replay.
//   - A database that is away makes commands Unavailable, at once or after the call
//     timeout. So does a full queue. Nothing is queued for later.
//   - A caller that gives up stops waiting. Its command is dropped if it was not sent yet.
//   - A process that dies loses commands that were not committed, and no others: their
//     callers have had no answer, and ask again with the same key.
//
// # What it may import
//
// db/queries, pgx, and libraries for JSON and its schemas. It knows no HTTP.
package fsm
