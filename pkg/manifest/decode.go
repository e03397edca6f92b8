// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sort"
	"strings"

	kjson "sigs.k8s.io/json"
)

// Mismatch is a value of another type than the field of the API has, which the API server refuses.
type Mismatch struct {
	Path    string // from the value that was decoded: volumes[0].secret.defaultMode
	Node    *Node
	Message string
}

// maxMismatches bounds how often a value is decoded.
const maxMismatches = 32

// Decode reads the value into a Go type as the API server does: null is absent, and fields that the type does not have
// are passed over. It returns the values of a wrong type; they count as absent.
func (n *Node) Decode(into any) (all []Mismatch) {
	w := jsonWriter{absent: map[*Node]bool{}}
	for range maxMismatches {
		w.Reset()
		w.places = w.places[:0]
		w.write(n, "")
		reflect.ValueOf(into).Elem().SetZero()
		err := kjson.UnmarshalCaseSensitivePreserveInts(w.Bytes(), into)
		if err == nil {
			break
		}
		at := place{node: n}
		message := strings.TrimPrefix(err.Error(), "json: ")
		if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
			at = w.at(int(wrong.Offset))
			message = fmt.Sprintf("must be %s, and this is %s, which the API server refuses", typeName(wrong.Type),
				valueName(wrong.Value))
		}
		if w.absent[at.node] {
			break
		}
		w.absent[at.node] = true
		all = append(all, Mismatch{Path: at.path, Node: at.node, Message: message})
	}
	return all
}

// jsonWriter writes a value as JSON and remembers where in the JSON each value begins.
type jsonWriter struct {
	bytes.Buffer
	places []place
	absent map[*Node]bool
}

type place struct {
	offset int
	path   string
	node   *Node
}

// at finds the value at which a decoder stopped that has read so many bytes.
func (w *jsonWriter) at(read int) place {
	i := sort.Search(len(w.places), func(i int) bool { return w.places[i].offset >= read })
	return w.places[max(0, i-1)]
}

func (w *jsonWriter) write(n *Node, path string) {
	w.places = append(w.places, place{w.Len(), path, n})
	switch {
	case w.absent[n]:
		w.WriteString("null")
	case n.IsMapping():
		w.WriteByte('{')
		for i, e := range n.entries {
			if i > 0 {
				w.WriteByte(',')
			}
			w.scalar(e.Name)
			w.WriteByte(':')
			w.write(e.Value, strings.TrimPrefix(path+"."+e.Name, "."))
		}
		w.WriteByte('}')
	case n.IsList():
		w.WriteByte('[')
		for i, item := range n.items {
			if i > 0 {
				w.WriteByte(',')
			}
			w.write(item, fmt.Sprintf("%s[%d]", path, i))
		}
		w.WriteByte(']')
	default:
		w.scalar(n.Scalar())
	}
}

func (w *jsonWriter) scalar(value any) {
	text, err := json.Marshal(value)
	if err != nil { // not a number, or infinite
		text = []byte(`"` + fmt.Sprint(value) + `"`)
	}
	w.Write(text)
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem())
	case reflect.Bool:
		return "a boolean"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("a whole number of %d bits", t.Bits())
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "a list"
	}
	return "a mapping"
}

// valueName turns the JSON decoder's words into YAML's.
func valueName(value string) string {
	if name, known := map[string]string{"array": "a list", "object": "a mapping", "bool": "a boolean",
		"string": "a string", "number": "a number"}[value]; known {
		return name
	}
	return "the " + value // number 7
}
