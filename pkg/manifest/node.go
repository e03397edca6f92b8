// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"math"
	"strings"
)

// Kind is the kind of a Node.
type Kind int

// The kinds of Nodes.
const (
	Absent Kind = iota // there is no value
	Scalar             // a string, number, boolean or null
	List
	Mapping
)

// Node is a value in a document with its place. Aliases and merges are resolved: a Node for an alias has the value of
// the anchor. An absent value is a Node without a Document.
type Node struct {
	Document *Document
	Kind     Kind
	Start    int // the offset of the value's text in the document's text, in bytes
	// Text is the text of a scalar without its quotes.
	Text string
	// Value is the value of a scalar as kubectl reads it: a string, bool, int, int64, uint64, float64 or nil.
	Value any
	// Flow reports whether a list or mapping is in brackets.
	Flow  bool
	Items []*Node // of a list
	// Entries are the entries of a mapping in their order, without duplicates. Repeated has the entries with a duplicate
	// key.
	Entries, Repeated []Entry

	index  map[string]int // the index in Entries, by name
	quoted bool           // whether the scalar is a string in any case
	size   int            // the number of values in a YAML value, with resolved aliases
}

// Entry is a key of a mapping with its value.
type Entry struct {
	Name       string
	Key, Value *Node
}

// set adds an entry. If an entry has the same name, set replaces it, and the name is repeated.
func (n *Node) set(e Entry) {
	if i, known := n.index[e.Name]; known {
		n.Entries[i] = e
		n.Repeated = append(n.Repeated, e)
		return
	}
	if n.index == nil {
		n.index = map[string]int{}
	}
	n.index[e.Name] = len(n.Entries)
	n.Entries = append(n.Entries, e)
}

// IsNull reports whether the value is absent or null. The API server treats both alike.
func (n *Node) IsNull() bool { return n.Kind == Absent || n.Kind == Scalar && n.Value == nil }

// Get returns the value at a path of keys.
func (n *Node) Get(path ...string) *Node {
	for _, name := range path {
		n = n.entry(name).Value
	}
	return n
}

// Key returns the key of an entry of a mapping as a node.
func (n *Node) Key(name string) *Node { return n.entry(name).Key }

func (n *Node) entry(name string) Entry {
	if i, known := n.index[name]; known {
		return n.Entries[i]
	}
	return Entry{Key: &Node{}, Value: &Node{}}
}

// Integer returns the number that kubectl reads, if it has no fraction.
func (n *Node) Integer() (value int64, ok bool) {
	switch value := n.Value.(type) {
	case int:
		return int64(value), true
	case float64:
		return int64(value), value == math.Trunc(value) && math.Abs(value) < 1<<53
	}
	return 0, false
}

// String returns the value if kubectl reads a string, and "" otherwise.
func (n *Node) String() string {
	text, _ := n.Value.(string)
	return text
}

// Any returns the value as encoding/json would decode it, except for numbers, which are as in Value. edit may replace
// the value of each Node. Any calls it for the values inside of a Node first.
func (n *Node) Any(edit func(path string, n *Node, value any) any) any { return n.edited("", edit) }

func (n *Node) edited(path string, edit func(path string, n *Node, value any) any) any {
	switch n.Kind {
	case Mapping:
		m := map[string]any{}
		for _, e := range n.Entries {
			m[e.Name] = e.Value.edited(below(path, e.Name), edit)
		}
		return edit(path, n, m)
	case List:
		items := []any{}
		for i, item := range n.Items {
			items = append(items, item.edited(fmt.Sprintf("%s[%d]", path, i), edit))
		}
		return edit(path, n, items)
	}
	return edit(path, n, n.Value)
}

func below(path, name string) string { return strings.TrimPrefix(path+"."+name, ".") }

// Walk visits a value and all values inside of it, with the path from the value, such as a.b[2].c. It does not visit
// the values inside of a value for which visit returns false.
func (n *Node) Walk(visit func(path string, n *Node) bool) { n.walk("", visit) }

func (n *Node) walk(path string, visit func(path string, n *Node) bool) {
	if n.Kind == Absent || !visit(path, n) {
		return
	}
	for _, e := range n.Entries {
		e.Value.walk(below(path, e.Name), visit)
	}
	for i, item := range n.Items {
		item.walk(fmt.Sprintf("%s[%d]", path, i), visit)
	}
}

// Position returns the line in the file and the column in characters, both from 1, of the beginning of an existing
// value.
func (n *Node) Position() (line, column int) { return n.Document.Position(n.Start) }

// Line returns the line in the file, from 1, of the beginning of an existing value.
func (n *Node) Line() int {
	line, _ := n.Position()
	return line
}
