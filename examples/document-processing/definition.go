// Package documentprocessing holds a workflow of stages that can be repeated. Its README
// explains it, and its test runs it.
package documentprocessing

import _ "embed"

// Definition is workflow.yaml.
//
//go:embed workflow.yaml
var Definition []byte
