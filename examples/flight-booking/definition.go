// Package flightbooking holds the workflow that `pawl dev` registers. Its README tells
// the story, and its test runs it.
package flightbooking

import _ "embed"

// Definition is workflow.yaml.
//
//go:embed workflow.yaml
var Definition []byte
