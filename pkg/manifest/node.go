// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"math"
	"strings"
)

// Kind of a Node.
type Kind int

// Kinds of Nodes.
const (
	Absent Kind = iota // the value is not there
	Scalar             // a string, number, boolean or null
	List
	Mapping
)

// Node is a value in a document with its place. Aliases and merges are resolved: an alias is a Node with the value that
// it stands for. A value that is not there is a Node too, and has no Document.
type Node struct {
	Document *Document
	Kind     Kind
	Start    int // where the value's text begins, in bytes of the document's text
	// Text of a scalar without its quotes, whatever it means.
	Text string
	// Value of a scalar as kubectl reads it: a string, bool, int, int64, uint64, float64 or nil.
	Value any
	// Flow reports whether a list or mapping is in brackets.
	Flow  bool
	Items []*Node // of a list
	// Entries of a mapping in their order, each once. Repeated are those whose key was given again.
	Entries, Repeated []Entry

	index  map[string]int // of Entries, by name
	quoted bool           // the scalar is a string however it reads
	size   int            // how many values a YAML value holds, aliases resolved
}

// Entry is a key of a mapping with its value.
type Entry struct {
	Name       string
	Key, Value *Node
}

// set adds an entry, or replaces the one of this name, which is then repeated.
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

// IsNull reports whether there is no value, or null, which the API server takes for none.
func (n *Node) IsNull() bool { return n.Kind == Absent || n.Kind == Scalar && n.Value == nil }

// Get goes down a path of keys.
func (n *Node) Get(path ...string) *Node {
	for _, name := range path {
		n = n.entry(name).Value
	}
	return n
}

// Key is the key's own node of an entry of a mapping.
func (n *Node) Key(name string) *Node { return n.entry(name).Key }

func (n *Node) entry(name string) Entry {
	if i, known := n.index[name]; known {
		return n.Entries[i]
	}
	return Entry{Key: &Node{}, Value: &Node{}}
}

// Integer is the number that kubectl reads, if it has no fraction.
func (n *Node) Integer() (value int64, ok bool) {
	switch value := n.Value.(type) {
	case int:
		return int64(value), true
	case float64:
		return int64(value), value == math.Trunc(value) && math.Abs(value) < 1<<53
	}
	return 0, false
}

// String returns the value if kubectl reads a string, else "".
func (n *Node) String() string {
	text, _ := n.Value.(string)
	return text
}

// Any is the value as encoding/json would decode it, but for numbers, which are as Value has them. edit may replace the
// value of each Node, after those that are in it.
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

// Walk visits a value and all that is in it, with its path from there, such as a.b[2].c. It does not go into a value
// for which visit returns false.
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

// Position is the line in the file and the column in characters, both from 1, at which a value begins that is there.
func (n *Node) Position() (line, column int) { return n.Document.Position(n.Start) }

// Line is the line in the file, from 1, on which a value begins that is there.
func (n *Node) Line() int {
	line, _ := n.Position()
	return line
}
