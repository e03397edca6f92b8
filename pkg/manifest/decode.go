// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
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
	absent := map[*Node]bool{}
	for range maxMismatches {
		text, _ := json.Marshal(n.Any(func(_ string, n *Node, value any) any {
			if absent[n] {
				return nil
			}
			return value
		})) // of the types that JSON has: it cannot fail
		reflect.ValueOf(into).Elem().SetZero()
		err := kjson.UnmarshalCaseSensitivePreserveInts(text, into)
		if err == nil {
			break
		}
		m := Mismatch{Node: n, Message: strings.TrimPrefix(err.Error(), "json: ")}
		if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) {
			m.Path = pathAt(string(text), int(wrong.Offset))
			n.Walk(func(path string, at *Node) bool {
				if path == m.Path {
					m.Node = at
				}
				return true
			})
			m.Message = mismatch(m.Node, wrong)
		}
		if absent[m.Node] {
			break
		}
		absent[m.Node] = true
		all = append(all, m)
	}
	slices.SortStableFunc(all, func(a, b Mismatch) int { return cmp.Compare(a.Node.Start, b.Node.Start) })
	return all
}

// pathAt finds the value in a JSON text at which a decoder stopped that has read so many bytes.
func pathAt(text string, read int) (path string) {
	documents, _ := (&File{Text: text}).readJSON(0, len(text)) // encoding/json wrote it
	documents[0].Root.Walk(func(at string, n *Node) bool {
		if n.Start < read {
			path = at
		}
		return true
	})
	return path
}

// words turns the JSON decoder's words and Go's into YAML's.
var words = strings.NewReplacer("array", "a list", "slice", "a list", "object", "a mapping", "struct", "a mapping",
	"map", "a mapping", "bool", "a boolean", "string", "a string", "int32", "a whole number of 32 bits",
	"int64", "a whole number of 64 bits")

func mismatch(n *Node, wrong *json.UnmarshalTypeError) string {
	is := words.Replace(wrong.Value)
	if strings.HasPrefix(is, "number") {
		is = fmt.Sprintf("the number %v", n.Value) // that 0400 is 256 is a surprise
	}
	must := words.Replace(wrong.Type.Kind().String())
	return fmt.Sprintf("must be %s, and this is %s, which the API server refuses", must, is)
}
