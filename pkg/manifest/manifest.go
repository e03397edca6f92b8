// SPDX-License-Identifier: Apache-2.0

// Package manifest reads files of Kubernetes objects and keeps the place of each value in the text. It splits a file
// into documents as kubectl does, reads values as kubectl does (JSON, or YAML 1.1), and finds the pods in objects. With
// the places a problem can be shown where it is, and an edit can leave every other byte alone.
//
// The package knows nothing of what is good or bad in a pod, and it never writes YAML.
package manifest

import (
	"fmt"
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
	Start int    // its first byte in the file's text
	Text  string // without the separators around it
	Line  int    // number of its first line in the file, from 1
	JSON  bool   // it was read as JSON
	// Err says why the document cannot be read. Then Root is nil.
	Err *SyntaxError
	// Root is the document's value; nil for an empty document.
	Root *Node

	lines []int // offset of each line, as YAML breaks lines
}

// SyntaxError is text that cannot be read.
type SyntaxError struct {
	Line, Column int // in the file, from 1
	Message      string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Message) }

const (
	byteOrderMark = "\ufeff"

	separatorMessage = `kubectl takes only a comment after the separator "---": begin the document on the next line`
)

// Parse reads a file. A document that cannot be read has an Err; the other documents are read all the same.
func Parse(name, text string) *File {
	f := &File{Name: name, Text: text}
	from := 0
	if strings.HasPrefix(text, byteOrderMark) {
		from = len(byteOrderMark)
	}
	for at := from; at < len(text); {
		next := at + lineLength(text[at:])
		if rest, isSeparator := strings.CutPrefix(text[at:next], "---"); isSeparator {
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
	text := f.Text[from:to]
	return &Document{Start: from, Text: text, Line: 1 + strings.Count(f.Text[:from], "\n"), lines: lineStarts(text)}
}

// read adds the text between two separators: one YAML document, or a stream of JSON values. Text that begins like JSON
// is JSON unless only YAML can read it, as with kubectl.
func (f *File) read(from, to int) {
	text := f.Text[from:to]
	if trimmed := strings.TrimLeft(text, " \t\r\n"); trimmed == "" || !strings.Contains("{[", trimmed[:1]) {
		f.Documents = append(f.Documents, f.document(from, to).readYAML())
		return
	}
	ends, bad, problem := jsonValues(text)
	if problem != "" {
		d := f.document(from, to).readYAML()
		if d.Err != nil && isMeantAsJSON(f.Name, text) {
			d.JSON, d.Err = true, d.syntaxError(bad, "this is not JSON: "+problem)
		}
		f.Documents = append(f.Documents, d)
		return
	}
	for _, end := range ends {
		f.Documents = append(f.Documents, f.document(from, to-len(text)+end).readJSON())
		from = to - len(text) + end
	}
}

// lineLength is the length of the first line of text with its break.
func lineLength(text string) int {
	if i := strings.IndexByte(text, '\n'); i >= 0 {
		return i + 1
	}
	return len(text)
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

// offset converts the YAML decoder's line and column, in characters from 1, to an offset in the document's text.
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

// Position converts an offset in the document's text to a line of the file and a column in characters, both from 1.
func (d *Document) Position(offset int) (line, column int) {
	before := d.Text[:min(offset, len(d.Text))]
	return d.Line + strings.Count(before,
		"\n"), 1 + utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
}

func (d *Document) syntaxError(offset int, message string) *SyntaxError {
	line, column := d.Position(offset)
	return &SyntaxError{Line: line, Column: column, Message: message}
}
