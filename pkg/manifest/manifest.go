// SPDX-License-Identifier: Apache-2.0

// Package manifest reads files of Kubernetes objects and keeps the place of each value in the text. It splits a file
// into documents as kubectl does, reads values as kubectl does (JSON, or YAML 1.1), and finds the pods in objects. With
// the places, lint can show where a problem is, and convert can edit a text without changing other bytes.
//
// The package does not judge pods, and it never writes YAML.
package manifest

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"
)

// File is a text of YAML or JSON documents.
type File struct {
	Name      string // for messages
	Text      string
	Documents []*Document
}

// Document is one document of a file.
type Document struct {
	Start int    // the offset of its first byte in the file's text
	Text  string // without the separators around it
	Line  int    // the number of its first line in the file, from 1
	JSON  bool   // whether it was read as JSON
	// Err is the reason why the document cannot be read.
	Err *SyntaxError
	// Root is the document's value. It is nil for a document that is empty or cannot be read.
	Root *Node
}

// SyntaxError describes text that cannot be read.
type SyntaxError struct {
	Line, Column int // in the file, from 1
	Message      string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Message) }

const (
	byteOrderMark = "\ufeff"

	separatorMessage = `kubectl takes only a comment after the separator "---": begin the document on the next line`
)

// Parse reads a file. If a document cannot be read, it has an Err. Parse still reads the other documents.
func Parse(name, text string) *File {
	f := &File{Name: name, Text: text}
	from := 0
	if strings.HasPrefix(text, byteOrderMark) {
		from = len(byteOrderMark)
	}
	at := from
	for line := range strings.Lines(text[from:]) {
		next := at + len(line)
		if rest, isSeparator := strings.CutPrefix(line, "---"); isSeparator {
			f.read(from, at)
			from = next
			if rest := strings.TrimSpace(rest); rest != "" && !strings.HasPrefix(rest, "#") {
				d := f.document(at, next)
				d.Err = d.syntaxError(0, separatorMessage)
				f.Documents = append(f.Documents, d)
			}
		}
		at = next
	}
	f.read(from, len(text))
	return f
}

func (f *File) document(from, to int) *Document {
	return &Document{Start: from, Text: f.Text[from:to], Line: 1 + strings.Count(f.Text[:from], "\n"), Root: &Node{}}
}

// beginsLikeJSON matches text that is meant to be JSON. If the text is neither JSON nor YAML, the JSON error helps its
// author.
var beginsLikeJSON = regexp.MustCompile(`^\s*(\{\s*"|\[\s*\{\s*")`)

// read adds the text between two separators: one YAML document, or a stream of JSON values. Text that begins like JSON
// is read as JSON unless it is valid only as YAML, as in kubectl.
func (f *File) read(from, to int) {
	d := f.document(from, to)
	if trimmed := strings.TrimLeft(d.Text, jsonSpace); trimmed == "" || !strings.Contains("{[", trimmed[:1]) {
		d.readYAML()
		f.Documents = append(f.Documents, d)
		return
	}
	documents, problem := f.readJSON(from, to)
	if problem != nil {
		d.readYAML()
		isMeantAsJSON := strings.EqualFold(filepath.Ext(f.Name), ".json") || beginsLikeJSON.MatchString(d.Text)
		if d.Err != nil && isMeantAsJSON {
			d.JSON, d.Err = true, problem
		}
		documents = []*Document{d}
	}
	f.Documents = append(f.Documents, documents...)
}

// Position converts an offset in the document's text to a line of the file and a column in characters, both from 1.
func (d *Document) Position(offset int) (line, column int) {
	before := d.Text[:min(offset, len(d.Text))]
	lastLine := before[strings.LastIndexByte(before, '\n')+1:]
	return d.Line + strings.Count(before, "\n"), 1 + utf8.RuneCountInString(lastLine)
}

func (d *Document) syntaxError(offset int, message string) *SyntaxError {
	line, column := d.Position(offset)
	return &SyntaxError{Line: line, Column: column, Message: message}
}
