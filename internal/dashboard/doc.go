// Command dashboard draws deploy/grafana's dashboard from what a Prometheus has: `make dashboard`.
//
// # What it does
//
// Without --prometheus it makes what there is to draw. It runs a PostgreSQL and a Prometheus of their own, two replicas of
// bin/pawl that this Prometheus scrapes and that have the alert rules of deploy/prometheus, and a stub of the services that tasks
// call and webhooks go to. For some minutes it sends a small load that has something of everything: commands, refusals,
// repetitions, timers, calls, work, webhooks, and what goes wrong with each. Then it asks Prometheus what each panel shows, as
// Grafana would, and draws all panels in their places.
//
// With --prometheus it draws the last minutes of one that is there.
//
// # What it demands
//
// Each query of a panel must have values, and each alert rule must be evaluated without an error. Otherwise a panel or a rule is
// wrong, or the load lacks something: the picture is drawn all the same, and the command fails and names them.
//
// # What it may import
//
// db/localpg, for the server. It talks to pawl and to Prometheus over HTTP alone.
package main
