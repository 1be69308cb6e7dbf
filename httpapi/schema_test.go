package httpapi_test

import (
	"net/http"
	"strings"
	"testing"
)

const address = `{"type": "object", "required": ["zip"], "properties": {"zip": {"type": "string"}}}`

// parcels is a workflow whose schemas refer to those of the deployment.
const parcels = `{"name": "parcels", "initial": "NEW", "context_schema": {"properties": {"to": {"$ref": "pawl:address"}}},
	"states": {"NEW": {"on": {"move": {"target": "MOVED", "assign": {"to": "$.payload"}, "payload_schema": {"$ref": "pawl:address"}}}}, "MOVED": {"type": "final"}}}`

func TestSchemas(t *testing.T) {
	t.Parallel()
	a := start(t)
	put := func(name, schema string, headers ...string) answer {
		return a.do(http.MethodPut, "/v1/schemas/"+name, schema, headers...)
	}
	first := put("address", address, "X-Actor", "deployer").want(http.StatusCreated).wantHeader("Location", "/v1/schemas/address")
	first.wantAt("name", "address", "version", "1", "created_by", "deployer", "schema.properties.zip", `{"type":"string"}`)
	if again := put("address", first.at("schema")).want(http.StatusOK).wantHeader("Location", ""); string(again.body) != string(first.body) {
		t.Errorf("got %s\nwant %s", again.body, first.body)
	}
	a.get("/v1/schemas/address").want(http.StatusOK).wantAt("version", "1", "checksum", first.at("checksum"))
	put("address", `{"type": "object", "required": ["zip"], "properties": {"zip": {"type": "string", "minLength": 5}}}`).want(http.StatusCreated).
		wantAt("version", "2", "created_by", "anonymous")
	a.get("/v1/schemas/address").want(http.StatusOK).wantAt("version", "2")
	a.get("/v1/schemas/address/versions/1").want(http.StatusOK).wantAt("version", "1", "checksum", first.at("checksum"))
	for _, path := range []string{"address/versions/0", "address/versions/3", "nothing", "nothing/versions/1", "address/versions/-1"} {
		a.get("/v1/schemas/"+path).want(http.StatusNotFound, "not-found")
	}
	a.get("/v1/schemas/address/versions/99999999999").want(http.StatusNotFound, "not-found")

	put("order", `{"properties": {"to": {"$ref": "pawl:address"}, "parts": {"items": {"$ref": "pawl:order"}}}}`).want(http.StatusCreated)
	page := a.get("/v1/schemas?limit=1").want(http.StatusOK).wantAt("items.0.name", "address", "items.0.version", "2", "items.1", missing)
	a.get("/v1/schemas?cursor="+page.at("next_cursor")).want(http.StatusOK).wantAt("items.0.name", "order", "next_cursor", "null")
	a.get("/v1/schemas?limit=0").want(http.StatusBadRequest, "malformed-request")

	put("order", `[]`).want(http.StatusBadRequest, "malformed-request")
	put("order", `{"a": 1, "a": 2}`).want(http.StatusBadRequest, "malformed-request")
	put("Order", `{}`).want(http.StatusUnprocessableEntity, "invalid-definition").wantAt("errors.1", missing)
	put("order", `{"$id": "x", "properties": {"a": {"$ref": "pawl:addrezz"}}}`).want(http.StatusUnprocessableEntity, "invalid-definition").
		wantAt("errors.0.pointer", "/$id", "errors.1.pointer", "/properties/a/$ref", "errors.1.detail", `there is no schema "addrezz"; did you mean "address"?`,
			"errors.2", missing, "detail", "the schema has faults")
	put("order", `{"description": "`+strings.Repeat("x", 1<<20)+`"}`).want(http.StatusRequestEntityTooLarge, "too-large")
	a.get("/v1/schemas/order").wantAt("version", "1")
}

// A definition carries copies of the schemas that it refers to, and documents are checked against these.
func TestDefinitionsCarrySchemas(t *testing.T) {
	t.Parallel()
	a := start(t)
	schema := func(text string) { a.do(http.MethodPut, "/v1/schemas/address", text).want(http.StatusCreated) }
	put := func(definition string) answer { return a.do(http.MethodPut, "/v1/workflows/parcels", definition) }
	put(parcels).want(http.StatusUnprocessableEntity, "invalid-definition").wantAt(
		"errors.0.pointer", "/context_schema/properties/to/$ref", "errors.1.pointer", "/states/NEW/on/move/payload_schema/$ref",
		"errors.1.detail", `there is no schema "address": register it first, with PUT /v1/schemas`)
	schema(address)
	first := put(parcels).want(http.StatusCreated).wantAt("version", "1", "definition.context_schema.properties.to", `{"$ref":"pawl:address"}`,
		"definition.schemas.pawl:address.required", `["zip"]`)
	put(parcels).want(http.StatusOK).wantAt("version", "1")

	create := func(to string) answer {
		return a.post("/v1/workflows/parcels/instances", newKey(), `{"context": {"to": `+to+`}}`)
	}
	create(`{}`).want(http.StatusUnprocessableEntity, "invalid-context").wantAt("errors.0.pointer", "/context/to")
	id := create(`{"zip": "1"}`).want(http.StatusCreated).at("id")
	fire := func(payload string) answer {
		return a.post("/v1/instances/"+id+"/actions/move", newKey(), `{"payload": `+payload+`}`)
	}
	fire(`{"zip": 1}`).want(http.StatusUnprocessableEntity, "invalid-payload").wantAt("errors.0.pointer", "/payload/zip")
	a.post("/v1/workflows/parcels/simulate", "", `{"context": {"to": {}}, "events": []}`).want(http.StatusUnprocessableEntity, "invalid-context")

	// Callers are told all of what their payload is checked against.
	a.get("/v1/instances/"+id+"/actions").wantAt("items.0.payload_schema.$ref", "pawl:address",
		"items.0.payload_schema.$defs.pawl:address.$id", "pawl:address", "items.0.payload_schema.$defs.pawl:address.required", `["zip"]`)

	// A live version keeps its copies. The same definition takes the new ones, as another version.
	schema(`{"type": "object", "required": ["zip", "city"]}`)
	create(`{"zip": "1"}`).want(http.StatusCreated)
	put(first.at("definition")).want(http.StatusOK).wantAt("version", "1")
	put(parcels).want(http.StatusCreated).wantAt("version", "2", "definition.schemas.pawl:address.required", `["zip","city"]`)
	create(`{"zip": "1"}`).want(http.StatusUnprocessableEntity, "invalid-context")
	fire(`{"zip": "1"}`).want(http.StatusOK)
}
