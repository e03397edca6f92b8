// SPDX-License-Identifier: Apache-2.0

// Package manifest reads files of Kubernetes objects without losing where anything stands: the documents of a file as kubectl splits
// them, the values as kubectl reads them (YAML 1.1), and for each value its place in the text, so that a problem can be shown where it
// is and an edit can leave every other byte alone.
//
// It knows where pods are in objects, and nothing of what is good or bad in them. It never writes YAML.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// File is a text of YAML or JSON documents.
type File struct {
	Name      string // for messages
	Text      string
	Documents []*Document
}

// Document is one document of a file.
type Document struct {
	Start int    // its first byte in the file's text
	Text  string // without the separators around it
	Line  int    // number of its first line in the file, from 1
	JSON  bool   // it is JSON, not only YAML
	// Err says why the document can't be read; then it has no Root.
	Err *SyntaxError
	// Root is the document's value; not Exists for an empty document.
	Root Node

	lines   []int // offset of each line, as YAML breaks them
	anchors bool  // some value has an anchor
}

// SyntaxError is text that can't be read.
type SyntaxError struct {
	Line    int // in the file, from 1
	Message string
	// Template says that this looks like a template of Helm rather than its output.
	Template bool
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Message) }

const byteOrderMark = "\ufeff"

// Parse reads a file. What is wrong with a document is in that document; the others are read all the same.
func Parse(name, text string) *File {
	f := &File{Name: name, Text: text}
	start := 0
	if strings.HasPrefix(text, byteOrderMark) {
		start = len(byteOrderMark)
	}
	add := func(from, to int) {
		d := &Document{Start: from, Text: text[from:to], Line: 1 + strings.Count(text[:from], "\n")}
		d.parse()
		f.Documents = append(f.Documents, d)
	}
	if ends, ok := jsonStream(text[start:]); ok {
		from := start
		for _, end := range ends {
			add(from, start+end)
			from = start + end
		}
		return f
	}
	from := start
	for at := start; at < len(text); {
		next := at + lineLength(text[at:])
		line := text[at:next]
		if strings.HasPrefix(line, "---") {
			add(from, at)
			from = next
			if rest := strings.TrimSpace(line[3:]); rest != "" && !strings.HasPrefix(rest, "#") {
				// kubectl's rule; others would read a document that begins here.
				f.Documents = append(f.Documents, &Document{Start: at, Text: text[at:next], Line: 1 + strings.Count(text[:at], "\n"), Err: &SyntaxError{
					Line:    1 + strings.Count(text[:at], "\n"),
					Message: `kubectl takes nothing but a comment after the separator "---": begin the document on the next line`,
				}})
			}
		}
		at = next
	}
	add(from, len(text))
	return f
}

// jsonStream returns where each value of a text ends that is nothing but JSON objects, one after the other.
func jsonStream(text string) (ends []int, ok bool) {
	if !strings.HasPrefix(strings.TrimLeft(text, " \t\r\n"), "{") {
		return nil, false
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	for {
		var value json.RawMessage
		if err := decoder.Decode(&value); errors.Is(err, io.EOF) {
			return ends, true
		} else if err != nil {
			return nil, false
		}
		ends = append(ends, int(decoder.InputOffset()))
	}
}

// lineLength is the length of the first line of text, its break included.
func lineLength(text string) int {
	if i := strings.IndexByte(text, '\n'); i >= 0 {
		return i + 1
	}
	return len(text)
}

var (
	syntaxErrorLine = regexp.MustCompile(`^line (\d+): `)
	tabIndents      = regexp.MustCompile(`^[ -]*\t`)
	templateAction  = regexp.MustCompile(`\{\{[-\s]?.*\}\}|^\s*\{\{`)
)

func (d *Document) parse() {
	d.JSON = json.Valid([]byte(d.Text))
	d.lines = lineStarts(d.Text)
	var root yaml.Node
	err := decodeYAML(d.Text, &root)
	if err != nil {
		d.Err = d.syntaxError(err)
		return
	}
	if len(root.Content) == 0 {
		return
	}
	d.Root, d.anchors = Node{root.Content[0], d}, hasAnchor(&root)
	if line := templateLine(&root); line > 0 {
		d.Root, d.Err = Node{}, &SyntaxError{Line: d.Line + line - 1, Template: true, Message: templateMessage}
	}
}

// decodeYAML reads the first document of text, as kubectl does, which passes over what follows a "...".
func decodeYAML(text string, into *yaml.Node) (err error) {
	defer func() {
		// The decoder is known to panic on some texts that are not YAML; whoever wrote them should hear of it in the same way.
		if p := recover(); p != nil {
			err = fmt.Errorf("the YAML decoder gave up: %v", p)
		}
	}()
	err = yaml.NewDecoder(strings.NewReader(text)).Decode(into)
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

const templateMessage = `this is a template ("{{ }}"), not a manifest: give the output of "helm template" instead`

func (d *Document) syntaxError(err error) *SyntaxError {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if m := syntaxErrorLine.FindStringSubmatch(message); m != nil {
		line, _ = strconv.Atoi(m[1])
		message = strings.TrimPrefix(message, m[0])
	}
	lines := strings.Split(d.Text, "\n")
	for i, text := range lines {
		if templateAction.MatchString(text) {
			return &SyntaxError{Line: d.Line + i, Message: templateMessage, Template: true}
		}
	}
	line = max(line, 1)
	// The decoder may give the line before.
	for i := line - 1; i < len(lines) && (i < line || strings.Contains(message, "tab")); i++ {
		if tabIndents.MatchString(lines[i]) {
			return &SyntaxError{Line: d.Line + i, Message: "this is no YAML: indent with spaces, this line has a tab"}
		}
	}
	return &SyntaxError{Line: d.Line + line - 1, Message: "this is no YAML: " + message}
}

// templateLine finds the {{ }} that YAML happens to be able to read, as a mapping whose key is a mapping. It returns 0 if there is none.
func templateLine(n *yaml.Node) int {
	if n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle != 0 && len(n.Content) > 0 && n.Content[0].Kind == yaml.MappingNode {
		return n.Line
	}
	for _, child := range n.Content {
		if line := templateLine(child); line > 0 {
			return line
		}
	}
	return 0
}

func hasAnchor(n *yaml.Node) bool {
	return n.Anchor != "" || slices.ContainsFunc(n.Content, hasAnchor)
}

// lineStarts returns the offset of each line. YAML 1.1 breaks lines at more than LF.
func lineStarts(text string) []int {
	starts := []int{0}
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\n',
			text[i] == '\r' && (i+1 == len(text) || text[i+1] != '\n'),
			text[i] == 0x85 && i > 0 && text[i-1] == 0xc2,                                           // NEL
			(text[i] == 0xa8 || text[i] == 0xa9) && i > 1 && text[i-1] == 0x80 && text[i-2] == 0xe2: // LS, PS
			starts = append(starts, i+1)
		}
	}
	return starts
}

// offset of a place in the document's text, from the decoder's line and column, which counts characters from 1.
func (d *Document) offset(line, column int) int {
	if line < 1 || line > len(d.lines) {
		return len(d.Text)
	}
	at := d.lines[line-1]
	for ; column > 1 && at < len(d.Text); column-- {
		_, size := utf8.DecodeRuneInString(d.Text[at:])
		at += size
	}
	return at
}

// LineAt is the number in the file of the line that holds the byte at offset of the document's text.
func (d *Document) LineAt(offset int) int {
	return d.Line + bytes.Count([]byte(d.Text[:min(offset, len(d.Text))]), []byte("\n"))
}

// ColumnAt is the column of the byte at offset of the document's text, in characters from 1.
func (d *Document) ColumnAt(offset int) int {
	offset = min(offset, len(d.Text))
	return 1 + utf8.RuneCountInString(d.Text[strings.LastIndexByte(d.Text[:offset], '\n')+1:offset])
}
