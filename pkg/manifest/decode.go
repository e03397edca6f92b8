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

// Mismatch is a value whose type is not the type of the API's field. The API server refuses the value.
type Mismatch struct {
	Path    string // from the decoded value: volumes[0].secret.defaultMode
	Node    *Node
	Message string
}

// maxMismatches bounds the number of times that a value is decoded.
const maxMismatches = 32

// Decode reads the value into a Go type as the API server does: it treats null as absent, and ignores fields that the
// type does not have. It returns the values of a wrong type, which it treats as absent.
func (n *Node) Decode(into any) (all []Mismatch) {
	absent := map[*Node]bool{}
	for range maxMismatches {
		text, _ := json.Marshal(n.Any(func(_ string, n *Node, value any) any {
			if absent[n] {
				return nil
			}
			return value
		})) // JSON has all of these types, so this cannot fail.
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

// pathAt returns the path of the value at which a decoder stopped after it had read a number of bytes of a JSON text.
func pathAt(text string, read int) (path string) {
	documents, _ := (&File{Text: text}).readJSON(0, len(text)) // encoding/json wrote the text
	documents[0].Root.Walk(func(at string, n *Node) bool {
		if n.Start < read {
			path = at
		}
		return true
	})
	return path
}

// words translates the type names of the JSON decoder and of Go to those of YAML.
var words = strings.NewReplacer("array", "a list", "slice", "a list", "object", "a mapping", "struct", "a mapping",
	"map", "a mapping", "bool", "a boolean", "string", "a string", "int32", "a whole number of 32 bits",
	"int64", "a whole number of 64 bits")

func mismatch(n *Node, wrong *json.UnmarshalTypeError) string {
	is := words.Replace(wrong.Value)
	if strings.HasPrefix(is, "number") {
		is = fmt.Sprintf("the number %v", n.Value) // The author may not expect that 0400 is 256.
	}
	must := words.Replace(wrong.Type.Kind().String())
	return fmt.Sprintf("must be %s, and this is %s, which the API server refuses", must, is)
}
