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
	subscription := a.do(http.MethodPost, subscriptions, `{"url": "`+endpoint+`"}`).want(http.StatusCreated).at("id")
	for path, item := range contract().Paths.Map() {
		target := strings.NewReplacer("subscriptions/{id}", "subscriptions/"+subscription, "{name}", "booking", "{version}", "1", "{id}", id, "{event}", "cancel",
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
			get.want(http.StatusOK)
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
