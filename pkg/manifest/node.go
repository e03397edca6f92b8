// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"math"
	"strings"
)

type kind int

const (
	scalar kind = iota
	list
	mapping
)

// Node is a value in a document with its place. Aliases and merges are resolved: an alias is a Node with the value that
// it stands for. A nil Node is a value that is not there; all methods work on it.
type Node struct {
	doc      *Document
	kind     kind
	text     string // of a scalar
	value    any    // of a scalar
	quoted   bool   // the scalar is a string however it reads
	flow     bool   // the list or mapping is in brackets
	entries  []Entry
	index    map[string]int // of entries, by name
	items    []*Node
	repeated []Entry // entries whose key was given before
	start    int     // offset in the document's text
	size     int     // how many values a YAML value holds, aliases resolved
}

// Entry is a key of a mapping with its value.
type Entry struct {
	Name       string
	Key, Value *Node
}

// set adds an entry, or replaces the one of this name. It reports whether there was one.
func (n *Node) set(e Entry) (replaced bool) {
	if i, known := n.index[e.Name]; known {
		n.entries[i] = e
		return true
	}
	if n.index == nil {
		n.index = map[string]int{}
	}
	n.index[e.Name] = len(n.entries)
	n.entries = append(n.entries, e)
	return false
}

// Exists reports whether there is a value, be it null.
func (n *Node) Exists() bool { return n != nil }

// IsNull reports whether there is no value, or null, which the API server takes for none.
func (n *Node) IsNull() bool { return n == nil || n.kind == scalar && n.value == nil }

// IsMapping reports whether the value is a mapping.
func (n *Node) IsMapping() bool { return n != nil && n.kind == mapping }

// IsList reports whether the value is a list.
func (n *Node) IsList() bool { return n != nil && n.kind == list }

// IsScalar reports whether the value is a string, number, boolean or null.
func (n *Node) IsScalar() bool { return n != nil && n.kind == scalar }

// IsFlow reports whether the value is a list or mapping in brackets.
func (n *Node) IsFlow() bool { return n != nil && n.flow }

// Entries returns the keys of a mapping in their order, each once.
func (n *Node) Entries() []Entry {
	if n == nil {
		return nil
	}
	return n.entries
}

// Repeated returns the entries of a mapping whose key was given before in the same mapping.
func (n *Node) Repeated() []Entry {
	if n == nil {
		return nil
	}
	return n.repeated
}

// Items returns the elements of a list.
func (n *Node) Items() []*Node {
	if n == nil {
		return nil
	}
	return n.items
}

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
	if n != nil {
		if i, known := n.index[name]; known {
			return n.entries[i]
		}
	}
	return Entry{}
}

// Scalar is the value of a scalar as kubectl reads it: a string, bool, int, int64, uint64, float64 or nil. It is nil
// for lists and mappings.
func (n *Node) Scalar() any {
	if n == nil {
		return nil
	}
	return n.value
}

// Integer is the number that kubectl reads, if it has no fraction.
func (n *Node) Integer() (value int64, ok bool) {
	switch value := n.Scalar().(type) {
	case int:
		return int64(value), true
	case float64:
		return int64(value), value == math.Trunc(value) && math.Abs(value) < 1<<53
	}
	return 0, false
}

// String returns the value if kubectl reads a string, else "".
func (n *Node) String() string {
	text, _ := n.Scalar().(string)
	return text
}

// Text is the text of a scalar without its quotes, whatever it means; "" for anything else.
func (n *Node) Text() string {
	if n == nil {
		return ""
	}
	return n.text
}

// Any is the value as encoding/json would decode it, but for numbers, which are as Scalar has them.
func (n *Node) Any() any {
	switch {
	case n.IsMapping():
		m := map[string]any{}
		for _, e := range n.entries {
			m[e.Name] = e.Value.Any()
		}
		return m
	case n.IsList():
		items := []any{}
		for _, item := range n.items {
			items = append(items, item.Any())
		}
		return items
	}
	return n.Scalar()
}

// Walk visits a value and all that is in it, with its path from there, such as a.b[2].c. It does not go into a value
// for which visit returns false.
func (n *Node) Walk(visit func(path string, n *Node) bool) { n.walk("", visit) }

func (n *Node) walk(path string, visit func(path string, n *Node) bool) {
	if n == nil || !visit(path, n) {
		return
	}
	for _, e := range n.entries {
		e.Value.walk(strings.TrimPrefix(path+"."+e.Name, "."), visit)
	}
	for i, item := range n.items {
		item.walk(fmt.Sprintf("%s[%d]", path, i), visit)
	}
}

// Document is the document that the value is in; nil if the value is not there.
func (n *Node) Document() *Document {
	if n == nil {
		return nil
	}
	return n.doc
}

// Start is where the value's text begins, in bytes of the document's text.
func (n *Node) Start() int {
	if n == nil {
		return 0
	}
	return n.start
}

// Position is the line in the file and the column in characters, both from 1, at which the value begins; 0 if the value
// is not there.
func (n *Node) Position() (line, column int) {
	if n == nil {
		return 0, 0
	}
	return n.doc.Position(n.start)
}

// Line is the line in the file, from 1, on which the value begins; 0 if the value is not there.
func (n *Node) Line() int {
	line, _ := n.Position()
	return line
}
