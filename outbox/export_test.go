package outbox

// Types are the types of CloudEvents by the kind of step.
var Types = types
