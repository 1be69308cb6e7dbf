package httpapi_test

import (
	"net/http"
	"strings"
	"testing"
)

// Every path of the contract supports HEAD where it supports GET, answers OPTIONS, and refuses
// other methods with 405 and Allow.
func TestMethods(t *testing.T) {
	t.Parallel()
	a := start(t)
	a.register(booking)
	id := a.create("booking", `{"context": {"price": 1}}`)
	a.do(http.MethodPut, "/v1/schemas/booking", `{}`).want(http.StatusCreated)
	subscription := a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`"}`).want(http.StatusCreated).at("id")
	a.do(http.MethodPost, "/v1/tokens", `{"id": "ci", "subject": "ci", "scopes": ["read"]}`).want(http.StatusCreated)
	bulk := a.post("/v1/bulk", newKey(), `{"action": "retry", "ids": ["`+id+`"]}`).want(http.StatusAccepted).at("id")
	a.do(http.MethodPut, "/v1/roles/booking", `{"scopes": ["read"]}`).want(http.StatusCreated)
	a.do(http.MethodPut, connections+"/booking", `{"base_url": "`+service+`"}`).want(http.StatusCreated)
	a.parcels()
	a.create("parcel", `{}`)
	task := a.get("/v1/tasks").at("items.0.id")
	for path, item := range contract().Paths.Map() {
		target := strings.NewReplacer("tasks/{id}", "tasks/"+task, "bulk/{id}", "bulk/"+bulk, "tokens/{id}", "tokens/ci", "tenants/{id}", "tenants/default", "subscriptions/{id}", "subscriptions/"+subscription, "{name}", "booking", "{version}", "1", "{id}", id, "{event}", "cancel",
			"{code}", "internal").Replace(path)
		allow := []string{}
		for _, method := range []string{"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"} {
			served := item.GetOperation(method) != nil || method == "OPTIONS" || method == "HEAD" && item.Get != nil
			if served {
				allow = append(allow, method)
			}
		}
		t.Run(path, func(t *testing.T) {
			a := a.on(t)
			a.do(http.MethodOptions, target, "").want(http.StatusNoContent).wantHeader("Allow", strings.Join(allow, ", "))
			for _, method := range []string{"DELETE", "GET", "PATCH", "POST", "PUT", "TRACE", "BREW"} {
				if item.GetOperation(method) == nil {
					a.do(method, target, "").want(http.StatusMethodNotAllowed, "method-not-allowed").
						wantHeader("Allow", strings.Join(allow, ", "))
				}
			}
			if item.Get == nil {
				r := a.do(http.MethodHead, target, "")
				if r.status != http.StatusMethodNotAllowed {
					t.Errorf("HEAD gets %d", r.status)
				}
				return
			}
			if strings.HasSuffix(path, "/events") {
				// A GET would not end.
				a.do(http.MethodHead, target, "").want(http.StatusOK).wantHeader("Content-Type", "text/event-stream")
				return
			}
			get, head := a.get(target), a.do(http.MethodHead, target, "")
			if strings.HasSuffix(path, "/forecast") {
				get.want(http.StatusConflict, "too-few-samples")
			} else {
				get.want(http.StatusOK)
			}
			for _, name := range []string{"Content-Type", "Content-Length", "ETag", "Link"} {
				head.wantHeader(name, get.header.Get(name))
			}
			if head.status != get.status {
				t.Errorf("HEAD gets %d, GET %d", head.status, get.status)
			}
		})
	}
	head := a.do(http.MethodHead, "/v1/instances/nobody", "")
	if head.status != http.StatusNotFound {
		t.Errorf("HEAD of nothing gets %d", head.status)
	}
	a.do(http.MethodOptions, "/v1/nothing", "").want(http.StatusNotFound, "not-found")
}
