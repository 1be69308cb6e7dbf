package api

// A StreamedStep is the JSON in the data field of a Server-Sent Event: a history item with
// the instance and the workflow that it belongs to.
type StreamedStep struct {
	// Tenant is set in a stream of all tenants.
	Tenant     string `json:"tenant,omitempty"`
	InstanceID string `json:"instance_id"`
	Workflow   string `json:"workflow"`
	HistoryItem
}
