package api

// A StreamedStep is the JSON in the data field of a Server-Sent Event: a history item with
// the instance and the workflow that it belongs to.
type StreamedStep struct {
	InstanceID string `json:"instance_id"`
	Workflow   string `json:"workflow"`
	HistoryItem
}
