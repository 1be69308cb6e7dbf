package documentprocessing_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/pawl-fsm/pawl/db/dbtest"
	documentprocessing "github.com/pawl-fsm/pawl/examples/document-processing"
	"github.com/pawl-fsm/pawl/examples/story"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// TestStory runs a document through its stages, with a stage that fails and one that is
// repeated although it succeeded.
func TestStory(t *testing.T) {
	t.Parallel()
	s := story.Start(t, dbtest.New(t), documentprocessing.Definition)
	document := s.Do(http.MethodPost, "/v1/workflows/document-processing/instances",
		`{"context": {"document_id": "invoice-7"}}`, "Idempotency-Key", "create").
		Want(t, http.StatusCreated).Header.Get("Location")

	s.Fire(document, "uploaded", "upload-1", `{"payload": {"url": "s3://inbox/7", "sha256": "short"}}`).
		Want(t, http.StatusUnprocessableEntity).WantMember(t, `"invalid-payload"`, "code")
	upload := `{"payload": {"url": "s3://inbox/7", "sha256": "` + strings.Repeat("ab", 32) + `"}}`
	// The refusal was no decision of the machine, so the key is still free.
	s.Fire(document, "uploaded", "upload-1", upload).Want(t, http.StatusOK).WantMember(t, `"VALIDATE"`, "state")
	s.Fire(document, "validated", "validate-1", `{"payload": {"valid": true, "pages": 3}}`).
		Want(t, http.StatusOK).WantMember(t, `"FORMAT"`, "state")

	// Formatting fails, and is tried again with the results of the stages before it.
	s.Fire(document, "stage_failed", "format-1", `{"payload": {"error": "out of memory"}}`).
		Want(t, http.StatusOK).WantMember(t, `"STALLED"`, "state").WantMember(t, `"FORMAT"`, "context", "failed_stage")
	s.Fire(document, "retry_stage", "skip", `{"payload": {"stage": "PUBLISH"}}`).
		Want(t, http.StatusConflict).WantMember(t, `"guard-rejected"`, "code")
	s.Fire(document, "retry_stage", "retry-1", `{"payload": {"stage": "FORMAT"}}`, "X-Actor", "carla").
		Want(t, http.StatusOK).WantMember(t, `"FORMAT"`, "state").
		WantMember(t, `2`, "context", "attempts").WantMember(t, `3`, "context", "validation", "pages")
	s.Fire(document, "formatted", "format-2", `{"payload": {"formats": ["pdf"]}}`).Want(t, http.StatusOK)

	// Before the release somebody wants another format: back to a stage that succeeded.
	s.Fire(document, "retry_stage", "retry-2", `{"payload": {"stage": "FORMAT"}, "reason": "epub is missing"}`).
		Want(t, http.StatusOK).WantMember(t, `"FORMAT"`, "state").WantMember(t, `3`, "context", "attempts")
	s.Fire(document, "formatted", "format-3", `{"payload": {"formats": ["pdf", "epub"]}}`).Want(t, http.StatusOK)
	s.Fire(document, "published", "publish", `{}`).
		Want(t, http.StatusOK).WantMember(t, `"completed"`, "status").
		WantMember(t, `["pdf","epub"]`, "context", "formats").WantMember(t, `"s3://inbox/7"`, "context", "upload", "url")

	history := s.Do(http.MethodGet, document+"/history", nil).Want(t, http.StatusOK)
	if !strings.Contains(history.Text, `"epub is missing"`) || !strings.Contains(history.Text, `"carla"`) {
		t.Errorf("the history does not say who and why: %s", history.Text)
	}
}

// TestRejected ends a document that does not validate.
func TestRejected(t *testing.T) {
	t.Parallel()
	s := story.Start(t, dbtest.New(t), documentprocessing.Definition)
	document := s.Do(http.MethodPost, "/v1/workflows/document-processing/instances",
		`{"context": {"document_id": "invoice-8"}}`, "Idempotency-Key", "create").
		Want(t, http.StatusCreated).Header.Get("Location")
	s.Fire(document, "uploaded", "upload", `{"payload": {"url": "s3://inbox/8", "sha256": "`+strings.Repeat("cd", 32)+`"}}`).
		Want(t, http.StatusOK)
	s.Fire(document, "validated", "validate", `{"payload": {"valid": false, "faults": ["no date"]}}`).
		Want(t, http.StatusOK).WantMember(t, `"REJECTED"`, "state").WantMember(t, `"failed"`, "status").
		WantMember(t, `["no date"]`, "context", "validation", "faults").
		WantMember(t, `{"event":"validated","reason":null,"state":"VALIDATE"}`, "error")
	s.Do(http.MethodGet, document, nil).Want(t, http.StatusOK).WantMember(t, `"VALIDATE"`, "error", "state")
	s.Do(http.MethodGet, document+"?version=2", nil).Want(t, http.StatusOK).WantMember(t, `null`, "error")
}
