package definition

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Formats are the values of the keyword format that are checked, in every draft of JSON Schema.
var Formats = []string{
	"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "iri", "iri-reference", "json-pointer", "period", "regex",
	"relative-json-pointer", "semver", "time", "uri", "uri-reference", "uri-template", "uuid",
}

// checkFormats refuses formats that would not be checked. The library ignores them.
func (c *compiled) checkFormats() error {
	if len(c.unknownFormats) == 0 {
		return nil
	}
	slices.Sort(c.unknownFormats)
	places := slices.Compact(c.unknownFormats)
	if len(places) > maxSchemaFaults {
		places = append(places[:maxSchemaFaults], "and more")
	}
	return fmt.Errorf("%s; the formats are %s", strings.Join(places, "; "), strings.Join(Formats, ", "))
}

// noteFormat notes the format of a schema if it is not known.
func (c *compiled) noteFormat(s *jsonschema.Schema, document any) {
	_, fragment, _ := strings.Cut(s.Location, "#")
	fragment, _ = url.PathUnescape(fragment) // The library escaped it.
	m, _ := valueAt(document, tokens(fragment)).(map[string]any)
	if name, given := m["format"].(string); given && !slices.Contains(Formats, name) {
		c.unknownFormats = append(c.unknownFormats, shortened(fmt.Sprintf("%s/format: there is no format %q", fragment, name)))
	}
}

// tokens is the opposite of Pointer.
func tokens(pointer string) []string {
	list := strings.Split(pointer, "/")[1:]
	for i, t := range list {
		list[i] = strings.NewReplacer("~1", "/", "~0", "~").Replace(t)
	}
	return list
}
