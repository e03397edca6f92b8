// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"fmt"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
)

// Node is a value in a document, with its place. The zero Node is a value that is not there; all methods work on it.
type Node struct {
	node *yaml.Node
	doc  *Document
}

// Entry is a key of a mapping with its value.
type Entry struct {
	Name       string
	Key, Value Node
}

// Exists reports whether there is a value, be it null.
func (n Node) Exists() bool { return n.node != nil }

// target is the node itself, or what it is an alias of.
func (n Node) target() *yaml.Node {
	node := n.node
	for hops := 0; node != nil && node.Kind == yaml.AliasNode; hops++ {
		if hops > 100 {
			return nil
		}
		node = node.Alias
	}
	return node
}

// IsMapping, IsList and IsScalar tell the kinds of value apart, through aliases.
func (n Node) IsMapping() bool { return n.kind() == yaml.MappingNode }

// IsList reports whether the value is a list.
func (n Node) IsList() bool { return n.kind() == yaml.SequenceNode }

// IsScalar reports whether the value is a string, number, boolean or null.
func (n Node) IsScalar() bool { return n.kind() == yaml.ScalarNode }

func (n Node) kind() yaml.Kind {
	if t := n.target(); t != nil {
		return t.Kind
	}
	return 0
}

// Entries returns the keys of a mapping in their order, as kubectl reads them: of a key given twice the last counts, and what is merged
// with "<<" is there too.
func (n Node) Entries() []Entry {
	var entries []Entry
	index := map[string]int{}
	merges := 0
	n.collect(func(e Entry) {
		if i, known := index[e.Name]; known {
			entries[i] = e
			return
		}
		index[e.Name] = len(entries)
		entries = append(entries, e)
	}, &merges)
	return entries
}

// maxMerges bounds how many mappings are merged into one, against mappings that are merged into themselves.
const maxMerges = 100

func (n Node) collect(add func(Entry), merges *int) {
	t := n.target()
	if *merges++; t == nil || t.Kind != yaml.MappingNode || *merges > maxMerges {
		return
	}
	for i := 0; i+1 < len(t.Content); i += 2 {
		key, value := Node{t.Content[i], n.doc}, Node{t.Content[i+1], n.doc}
		switch {
		case key.isMerge() && value.IsList():
			for _, merged := range backwards(value.Items()) { // the first of the list wins
				merged.collect(add, merges)
			}
		case key.isMerge():
			value.collect(add, merges)
		case key.IsScalar():
			add(Entry{Name: key.target().Value, Key: key, Value: value})
		}
	}
}

func (n Node) isMerge() bool {
	return n.IsScalar() && n.target().Value == "<<" && n.target().Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) == 0
}

func backwards(nodes []Node) []Node {
	reversed := make([]Node, 0, len(nodes))
	for i := len(nodes) - 1; i >= 0; i-- {
		reversed = append(reversed, nodes[i])
	}
	return reversed
}

// Repeated returns the entries of a mapping whose key was given before in the same mapping.
func (n Node) Repeated() []Entry {
	t := n.target()
	if t == nil || t.Kind != yaml.MappingNode {
		return nil
	}
	var again []Entry
	seen := map[string]bool{}
	for i := 0; i+1 < len(t.Content); i += 2 {
		name := t.Content[i].Value
		if t.Content[i].Kind == yaml.ScalarNode && seen[name] {
			again = append(again, Entry{Name: name, Key: Node{t.Content[i], n.doc}, Value: Node{t.Content[i+1], n.doc}})
		}
		seen[name] = true
	}
	return again
}

// Get goes down a path of keys.
func (n Node) Get(path ...string) Node {
	for _, name := range path {
		n = n.entry(name).Value
	}
	return n
}

// Key is the key's own node of an entry of a mapping.
func (n Node) Key(name string) Node { return n.entry(name).Key }

func (n Node) entry(name string) Entry {
	for _, e := range n.Entries() {
		if e.Name == name {
			return e
		}
	}
	return Entry{}
}

// Items returns the elements of a list.
func (n Node) Items() []Node {
	t := n.target()
	if t == nil || t.Kind != yaml.SequenceNode {
		return nil
	}
	items := make([]Node, len(t.Content))
	for i, item := range t.Content {
		items[i] = Node{item, n.doc}
	}
	return items
}

// Text is the text of a scalar without its quotes, whatever it means; "" for anything else.
func (n Node) Text() string {
	if !n.IsScalar() {
		return ""
	}
	return n.target().Value
}

// String returns the value if kubectl reads a string, and else "".
func (n Node) String() string {
	text, _ := n.Scalar().(string)
	return text
}

// Scalar is the value of a scalar as kubectl reads it, by the rules of YAML 1.1: a string, bool, int, int64, uint64, float64 or nil. It is nil
// for what is no scalar.
func (n Node) Scalar() any {
	t := n.target()
	if t == nil || t.Kind != yaml.ScalarNode {
		return nil
	}
	quoted := t.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0
	if quoted || t.Style&yaml.TaggedStyle != 0 {
		return t.Value
	}
	if t.Value == "" {
		return nil
	}
	// The decoder that kubectl uses decides, not the one that knows places: they differ in 0o400, yes and no.
	var read struct{ K any }
	if err := yamlv2.Unmarshal([]byte("k: "+t.Value), &read); err != nil {
		return t.Value
	}
	switch read.K.(type) {
	case string, bool, int, int64, uint64, float64, nil:
		return read.K
	}
	return t.Value
}

// maxValues and maxDepth bound what Any makes, against aliases of aliases, and values within themselves.
const (
	maxValues = 100_000
	maxDepth  = 1000
	// maxVisits bounds Walk, against mappings that are merged into many others.
	maxVisits = 1_000_000
)

// Any is the value as encoding/json would decode it, but for numbers, which are as Scalar has them.
func (n Node) Any() (any, error) {
	budget := maxValues
	return n.any(&budget, 0)
}

func (n Node) any(budget *int, depth int) (any, error) {
	if *budget--; *budget < 0 || depth > maxDepth {
		return nil, errors.New("there is too much in it, by aliases of aliases")
	}
	switch n.kind() {
	case yaml.MappingNode:
		m := map[string]any{}
		for _, e := range n.Entries() {
			value, err := e.Value.any(budget, depth+1)
			if err != nil {
				return nil, err
			}
			m[e.Name] = value
		}
		return m, nil
	case yaml.SequenceNode:
		list := []any{}
		for _, item := range n.Items() {
			value, err := item.any(budget, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		return list, nil
	}
	return n.Scalar(), nil
}

// Walk visits a value and all that is in it, with its path from there, such as a.b[2].c. It does not go into that of which visit returns
// false, nor again into what it has been in: an alias is visited like what it stands for, but what is in that only once.
func (n Node) Walk(visit func(path string, n Node) bool) {
	seen, budget := map[*yaml.Node]bool{}, maxVisits
	var walk func(path string, n Node, depth int)
	walk = func(path string, n Node, depth int) {
		t := n.target()
		if budget--; t == nil || budget < 0 || depth > maxDepth || !visit(path, n) || seen[t] {
			return
		}
		seen[t] = true
		for _, e := range n.Entries() {
			walk(strings.TrimPrefix(path+"."+e.Name, "."), e.Value, depth+1)
		}
		for i, item := range n.Items() {
			walk(fmt.Sprintf("%s[%d]", path, i), item, depth+1)
		}
	}
	walk("", n, 0)
}

// Target is the value itself, or what it is an alias of.
func (n Node) Target() Node { return Node{n.target(), n.doc} }

// Document is the document that the value is in; nil if it is not there.
func (n Node) Document() *Document { return n.doc }

// Start is where the value's text begins, in bytes of the document's text.
func (n Node) Start() int {
	if n.node == nil {
		return 0
	}
	return n.doc.offset(n.node.Line, n.node.Column)
}

// Line is the line in the file, from 1, on which the value begins; 0 if it is not there.
func (n Node) Line() int {
	if n.node == nil {
		return 0
	}
	return n.doc.LineAt(n.Start())
}

// Column is the column, in characters from 1, at which the value begins; 0 if it is not there.
func (n Node) Column() int {
	if n.node == nil {
		return 0
	}
	return n.doc.ColumnAt(n.Start())
}

// Style is how a value is written.
type Style int

// The styles of YAML. Plain is also that of a value that is not there.
const (
	Plain   Style = iota // a scalar without quotes
	Single               // a scalar in single quotes
	Double               // a scalar in double quotes
	Literal              // a scalar after "|"
	Folded               // a scalar after ">"
	Block                // a list or mapping by indentation
	Flow                 // a list or mapping in brackets
	Other                // an alias, or anything with an anchor or a tag
)

// Style tells how the value itself is written; it does not look through an alias.
func (n Node) Style() Style {
	switch {
	case n.node == nil:
		return Plain
	case n.node.Kind == yaml.AliasNode, n.node.Anchor != "", n.node.Style&yaml.TaggedStyle != 0:
		return Other
	case n.node.Kind == yaml.ScalarNode:
		switch {
		case n.node.Style&yaml.DoubleQuotedStyle != 0:
			return Double
		case n.node.Style&yaml.SingleQuotedStyle != 0:
			return Single
		case n.node.Style&yaml.LiteralStyle != 0:
			return Literal
		case n.node.Style&yaml.FoldedStyle != 0:
			return Folded
		}
		return Plain
	case n.node.Style&yaml.FlowStyle != 0:
		return Flow
	}
	return Block
}

// End is where the value's text ends, in bytes of the document's text: after the last character that is neither space nor comment. It is
// not ok where that can't be told for sure, as with aliases, and texts without quotes over several lines.
func (n Node) End() (end int, ok bool) {
	text := ""
	if n.node != nil {
		text = n.doc.Text
	}
	start := n.Start()
	switch n.Style() {
	case Plain:
		if n.node == nil || !strings.HasPrefix(text[start:], n.node.Value) {
			return 0, false
		}
		return start + len(n.node.Value), true
	case Single, Double:
		return quotedEnd(text, start)
	case Literal, Folded:
		return blockScalarEnd(text, start)
	case Block:
		return lastEnd(n, start)
	case Flow:
		end, ok = lastEnd(n, start+1)
		if !ok {
			return 0, false
		}
		closing := byte('}')
		if n.kind() == yaml.SequenceNode {
			closing = ']'
		}
		for end < len(text) {
			switch c := text[end]; c {
			case closing:
				return end + 1, true
			case '#':
				end += lineLength(text[end:])
			case ' ', '\t', '\r', '\n', ',', ':':
				end++
			default:
				return 0, false
			}
		}
	}
	return 0, false
}

// lastEnd is where the last value within n ends, or otherwise.
func lastEnd(n Node, otherwise int) (int, bool) {
	for _, child := range n.node.Content {
		end, ok := Node{child, n.doc}.End()
		if !ok {
			return 0, false
		}
		otherwise = max(otherwise, end)
	}
	return otherwise, true
}

// Inside reads the text of a literal scalar as a document, whose lines and columns are those of the file. It is not ok for values of any other
// style, whose text has no lines of its own.
func (n Node) Inside() (d *Document, ok bool) {
	end, ok := n.End()
	if n.Style() != Literal || !ok {
		return nil, false
	}
	start := n.Start()
	start += lineLength(n.doc.Text[start:])
	d = &Document{Start: n.doc.Start + start, Text: n.doc.Text[start:end], Line: n.doc.LineAt(start)}
	d.parse()
	return d, d.Err == nil
}

func quotedEnd(text string, start int) (int, bool) {
	if start >= len(text) {
		return 0, false
	}
	quote := text[start]
	for i := start + 1; i < len(text); i++ {
		switch {
		case quote == '"' && text[i] == '\\':
			i++
		case text[i] != quote:
		case quote == '\'' && i+1 < len(text) && text[i+1] == quote:
			i++
		default:
			return i + 1, true
		}
	}
	return 0, false
}

// blockScalarEnd finds the end of a literal or folded scalar without an indentation of its own: it lasts as long as lines are as deep
// as its first.
func blockScalarEnd(text string, start int) (int, bool) {
	header := lineLength(text[start:])
	for _, c := range strings.Fields(text[start : start+header])[0] {
		if '1' <= c && c <= '9' {
			return 0, false
		}
	}
	end, depth := -1, -1
	for at := start + header; at < len(text); {
		line := text[at : at+lineLength(text[at:])]
		content := strings.TrimRight(line, " \t\r\n")
		indent := len(line) - len(strings.TrimLeft(line, " "))
		if content != "" {
			if depth < 0 {
				depth = indent
			}
			if indent < depth {
				break
			}
			end = at + len(content)
		}
		at += len(line)
	}
	return end, end >= 0 && depth > 0
}
