package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"

	"go.yaml.in/yaml/v4"

	"github.com/pawl-fsm/pawl/fsm/definition"
)

// readDocument reads a file in YAML or JSON, as JSON.
func readDocument(file string) (json.RawMessage, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return toJSON(data)
}

// toJSON converts a document in YAML, of which JSON is a subset, to JSON. Numbers keep their digits. A
// member that is given twice is written twice, since the reader of the JSON refuses that.
//
// Aliases are written out, so that a short text may stand for a long one. The JSON is bounded while it is written.
func toJSON(data []byte) ([]byte, error) {
	document, err := parseYAML(data)
	if err != nil {
		return nil, err
	}
	var w jsonWriter
	if err := w.value(document, 1); err != nil {
		return nil, err
	}
	return w.out.Bytes(), nil
}

// parseYAML returns the value of a text with one document.
func parseYAML(data []byte) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF), err == nil && len(document.Content) == 0:
		return nil, errors.New("the document is empty")
	case err != nil:
		return nil, err
	}
	switch err := decoder.Decode(&second); {
	case err == nil:
		return nil, fmt.Errorf("line %d: here begins a second document; write each into a file of its own", second.Line)
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	return document.Content[0], nil
}

// maxJSON is how many bytes of JSON a document may stand for. No request may have more.
const maxJSON = 1 << 20

var jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)

// jsonWriter writes YAML as JSON.
type jsonWriter struct {
	out   bytes.Buffer
	alias *yaml.Node // The outermost alias that is being written, or nil.
}

// value writes a value that is nested so deep. An alias that contains itself is nested too deep.
func (w *jsonWriter) value(n *yaml.Node, depth int) error {
	line := n.Line
	if w.alias != nil {
		line = w.alias.Line
	}
	if w.out.Len() > maxJSON {
		return fmt.Errorf("line %d: up to here the document stands for more than %d bytes of JSON; use fewer aliases, or write less", line, maxJSON)
	}
	switch n.Kind {
	case yaml.AliasNode:
		if w.alias == nil {
			w.alias = n
			defer func() { w.alias = nil }()
		}
		return w.value(n.Alias, depth)
	case yaml.MappingNode, yaml.SequenceNode:
		if depth > definition.MaxDepth {
			return fmt.Errorf("line %d: is nested deeper than %d", line, definition.MaxDepth)
		}
		if n.Kind == yaml.MappingNode {
			return w.object(n.Content, depth)
		}
		w.out.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				w.out.WriteByte(',')
			}
			if err := w.value(item, depth+1); err != nil {
				return err
			}
		}
		w.out.WriteByte(']')
		return nil
	case yaml.ScalarNode:
		return writeScalar(&w.out, n)
	default:
		return fmt.Errorf("line %d: is no value", line)
	}
}

// object writes a mapping of keys and values.
func (w *jsonWriter) object(content []*yaml.Node, depth int) error {
	w.out.WriteByte('{')
	for i := 0; i < len(content); i += 2 {
		key := content[i]
		switch {
		case key.Kind != yaml.ScalarNode:
			return fmt.Errorf("line %d: a key must be a string", key.Line)
		case key.ShortTag() == "!!merge":
			return fmt.Errorf("line %d: there are no merge keys; write the members out", key.Line)
		case i > 0:
			w.out.WriteByte(',')
		}
		if err := writeString(&w.out, key.Value); err != nil {
			return err
		}
		w.out.WriteByte(':')
		if err := w.value(content[i+1], depth+1); err != nil {
			return err
		}
	}
	w.out.WriteByte('}')
	return nil
}

func writeScalar(out *bytes.Buffer, n *yaml.Node) error {
	switch n.ShortTag() {
	case "!!null":
		out.WriteString("null")
		return nil
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			return err
		}
		fmt.Fprint(out, b)
		return nil
	case "!!int", "!!float":
		if jsonNumber.MatchString(n.Value) {
			out.WriteString(n.Value)
			return nil
		}
		return fmt.Errorf("line %d: %s is not a number in JSON; quote it if it is text", n.Line, n.Value)
	default:
		if n.Style == 0 && jsonNumber.MatchString(n.Value) { // The reader takes a number beyond float64 for text.
			out.WriteString(n.Value)
			return nil
		}
		return writeString(out, n.Value)
	}
}

func writeString(out *bytes.Buffer, s string) error {
	text, err := json.Marshal(s)
	out.Write(text)
	return err
}
