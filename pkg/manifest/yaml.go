// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	yamlv2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
)

const (
	// maxDepth bounds the nesting of values, and maxValues the number of values after the expansion of aliases.
	maxDepth  = 1000
	maxValues = 1_000_000

	templateMessage = `this is a template ("{{ }}"), not a manifest: give the output of "helm template" instead`
)

var errTooDeep = fmt.Errorf("values are nested more than %d deep", maxDepth)

// readYAML reads a document as YAML.
func (d *Document) readYAML() {
	root, err := decodeYAML(d.Text)
	if err != nil {
		d.Err = d.yamlError(err)
		return
	}
	r := yamlReader{doc: d, anchors: map[*yaml.Node]*Node{}, lines: lineStarts(d.Text)}
	for _, y := range root.Content { // This is one value, or none in a document of comments.
		d.Root, d.Err = r.node(y, 0)
	}
}

// decodeYAML reads the first document of a text. Like kubectl, it ignores the text after a "...".
func decodeYAML(text string) (root *yaml.Node, err error) {
	defer func() {
		// The decoder is known to panic on some texts that are no YAML.
		if p := recover(); p != nil {
			err = fmt.Errorf("the YAML decoder gave up: %v", p)
		}
	}()
	root = &yaml.Node{}
	err = yaml.NewDecoder(strings.NewReader(text)).Decode(root)
	if line := templateLine(root); line > 0 {
		return root, fmt.Errorf("line %d: a key is a mapping", line)
	}
	if errors.Is(err, io.EOF) {
		return root, nil
	}
	return root, err
}

var (
	yamlErrorLine  = regexp.MustCompile(`^(?:yaml: )?line (\d+): `)
	tabIndents     = regexp.MustCompile(`^[ -]*\t`)
	templateAction = regexp.MustCompile(`\{\{.*?(\}\}|$)`)
)

// yamlError finds the place and the reason of an error of the decoder.
func (d *Document) yamlError(err error) *SyntaxError {
	lines := strings.SplitAfter(strings.TrimRight(d.Text, " \t\r\n"), "\n")
	line := errorLine(err)
	message := yamlErrorLine.ReplaceAllString(strings.TrimPrefix(err.Error(), "yaml: "), "")
	if strings.HasPrefix(message, "did not find expected") {
		// This decoder reports the beginning of the value, and the other decoder the line before the problem.
		var ignored any
		line = max(line, errorLine(yamlv2.Unmarshal([]byte(d.Text), &ignored))+1)
	}
	line = max(1, min(line, len(lines)))
	if at := templateBefore(lines, line+1); at >= 0 {
		return &SyntaxError{Line: d.Line + at, Column: 1, Message: templateMessage}
	}
	// The decoder may report the line before.
	for i := line - 1; i < len(lines) && (i < line || strings.Contains(message, "tab")); i++ {
		if tabIndents.MatchString(lines[i]) {
			return &SyntaxError{Line: d.Line + i, Column: 1,
				Message: "this is not YAML: indent with spaces, this line has a tab"}
		}
	}
	return &SyntaxError{Line: d.Line + line - 1, Column: 1, Message: "this is not YAML: " + message}
}

// errorLine returns the line in an error of a YAML decoder, or 0 if the error has none.
func errorLine(err error) (line int) {
	if m := yamlErrorLine.FindStringSubmatch(fmt.Sprint(err)); m != nil {
		line, _ = strconv.Atoi(m[1])
	}
	return line
}

// templateBefore returns the index of the first line, within the first count lines, whose "{{ }}" the decoder does not
// understand: the lines before it are YAML, the lines with it are not, and they are YAML again without the "{{ }}". A
// "{{ }}" in quotes, in a comment or in a block of text is no problem. It returns -1 if there is no such line.
func templateBefore(lines []string, count int) int {
	const maxTries = 50 // Each try reads all lines before.
	tries := 0
	isYAML := func(text string) bool {
		_, err := decodeYAML(text)
		return err == nil
	}
	for i, line := range lines[:min(count, len(lines))] {
		if !strings.Contains(line, "{{") {
			continue
		}
		if tries++; tries > maxTries {
			break
		}
		before := strings.Join(lines[:i], "")
		without := func(word string) string { return before + templateAction.ReplaceAllString(line, word) }
		if isYAML(before) && !isYAML(before+line) && (isYAML(without("")) || isYAML(without("x"))) {
			return i
		}
	}
	return -1
}

// templateLine finds a {{ }} that YAML reads as a mapping whose key is a mapping. It returns 0 if there is none.
func templateLine(n *yaml.Node) int {
	isFlow := n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle != 0
	if isFlow && len(n.Content) > 0 && n.Content[0].Kind == yaml.MappingNode {
		return n.Line
	}
	for _, child := range n.Content {
		if line := templateLine(child); line > 0 {
			return line
		}
	}
	return 0
}

// yamlReader converts the decoder's nodes to Nodes, and resolves aliases and merges.
type yamlReader struct {
	doc     *Document
	lines   []int                // the offset of each line
	anchors map[*yaml.Node]*Node // the complete ones
	values  int
}

// lineBreak matches the line breaks of YAML 1.1.
var lineBreak = regexp.MustCompile("\r\n|[\r\n\u0085\u2028\u2029]")

// lineStarts returns the offset of each line.
func lineStarts(text string) []int {
	starts := []int{0}
	for _, at := range lineBreak.FindAllStringIndex(text, -1) {
		starts = append(starts, at[1])
	}
	return starts
}

// offset converts the decoder's line and column, in characters from 1, to an offset in the document's text.
func (r *yamlReader) offset(line, column int) int {
	text := r.doc.Text
	if line < 1 || line > len(r.lines) {
		return len(text)
	}
	at := r.lines[line-1]
	for ; column > 1 && at < len(text); column-- {
		_, size := utf8.DecodeRuneInString(text[at:])
		at += size
	}
	return at
}

// node reads a value.
func (r *yamlReader) node(y *yaml.Node, depth int) (*Node, *SyntaxError) {
	n := &Node{Document: r.doc, Start: r.offset(y.Line, y.Column), size: 1}
	if depth > maxDepth {
		return &Node{}, r.doc.syntaxError(n.Start, errTooDeep.Error())
	}
	var err *SyntaxError
	switch y.Kind {
	case yaml.AliasNode:
		target := r.anchors[y.Alias]
		if target == nil {
			return &Node{}, r.doc.syntaxError(n.Start,
				fmt.Sprintf("the anchor %q stands for a value that contains itself", y.Value))
		}
		start := n.Start
		*n = *target
		n.Start = start
		return n, r.count(n, n.size)
	case yaml.MappingNode:
		n.Kind = Mapping
		err = r.entries(n, y, depth)
	case yaml.SequenceNode:
		n.Kind = List
		err = r.items(n, y, depth)
	default:
		n.Kind, n.Text = Scalar, y.Value
		n.quoted = y.Style != 0 // The scalar is in quotes, in a block, or has a tag.
		n.Value = yamlScalar(y.Value, n.quoted)
	}
	if err != nil {
		return &Node{}, err
	}
	n.Flow = y.Style&yaml.FlowStyle != 0
	if y.Anchor != "" {
		r.anchors[y] = n
	}
	return n, r.count(n, 1)
}

func (r *yamlReader) count(n *Node, values int) *SyntaxError {
	if r.values += values; r.values > maxValues {
		return r.doc.syntaxError(n.Start, "aliases of aliases stand for too many values")
	}
	return nil
}

func (r *yamlReader) items(n *Node, y *yaml.Node, depth int) *SyntaxError {
	for _, child := range y.Content {
		item, err := r.node(child, depth+1)
		if err != nil {
			return err
		}
		n.Items = append(n.Items, item)
		n.size += item.size
	}
	return nil
}

// entries reads the keys of a mapping as kubectl does: for a duplicate key, the last value counts, and a key of the
// mapping itself has precedence over a key that is merged with "<<".
func (r *yamlReader) entries(n *Node, y *yaml.Node, depth int) *SyntaxError {
	var merged []*Node // in the order of precedence, the highest first
	for i := 0; i+1 < len(y.Content); i += 2 {
		key, err := r.node(y.Content[i], depth+1)
		if err != nil {
			return err
		}
		value, err := r.node(y.Content[i+1], depth+1)
		if err != nil {
			return err
		}
		n.size += key.size + value.size
		switch {
		case key.Text == "<<" && !key.quoted && value.Kind == List:
			merged = append(slices.Clone(value.Items), merged...)
		case key.Text == "<<" && !key.quoted:
			merged = append([]*Node{value}, merged...)
		case key.Kind == Scalar:
			n.set(Entry{Name: key.Text, Key: key, Value: value})
		}
	}
	for _, from := range merged {
		for _, e := range from.Entries {
			if n.Key(e.Name).Kind == Absent {
				n.set(e)
			}
		}
	}
	return nil
}

// yamlScalar returns the value of a scalar by the rules of YAML 1.1. It uses kubectl's decoder instead of the decoder
// that reports places, because they differ in yes, no and 0o400.
func yamlScalar(text string, quoted bool) any {
	if quoted {
		return text
	}
	var read struct{ K any }
	if err := yamlv2.Unmarshal([]byte("k: "+text), &read); err != nil {
		return text
	}
	switch value := read.K.(type) {
	case string, bool, int, int64, uint64, nil:
		return value
	case float64:
		if !math.IsInf(value, 0) && !math.IsNaN(value) { // JSON has neither.
			return value
		}
	}
	return text
}
