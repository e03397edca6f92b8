// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"iter"
	"slices"
	"strings"
)

// edit replaces the bytes from..to of a text.
type edit struct {
	from, to int
	text     string
	// layout marks an edit of white space that falls away where another edit replaces the text around it.
	layout bool
}

// apply makes all edits at once; their offsets are those of the text as it was. Of insertions at one place the order stays.
func apply(text string, edits []edit) (string, bool) {
	edits = slices.Clone(edits)
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) })
	var out strings.Builder
	at := 0
	for i, e := range edits {
		if e.layout && (e.from < at || slices.ContainsFunc(edits[i+1:], func(o edit) bool { return o.from == e.from && o.to > e.from && !o.layout })) {
			continue
		}
		if e.from < at || e.to < e.from || e.to > len(text) {
			return "", false
		}
		out.WriteString(text[at:e.from])
		out.WriteString(e.text)
		at = e.to
	}
	out.WriteString(text[at:])
	if !strings.HasSuffix(text, "\n") { // the last line may be another now
		return strings.TrimSuffix(out.String(), newline(text)), true
	}
	return out.String(), true
}

// lineStart is where the line begins that has the byte at offset.
func lineStart(text string, offset int) int { return strings.LastIndexByte(text[:offset], '\n') + 1 }

// lineEnd is where the line ends that has the byte at offset, before its break.
func lineEnd(text string, offset int) int {
	if i := strings.IndexByte(text[offset:], '\n'); i >= 0 {
		end := offset + i
		if end > offset && text[end-1] == '\r' {
			end--
		}
		return end
	}
	return len(text)
}

// nextLine is where the line after that of the byte at offset begins, or the end of the text.
func nextLine(text string, offset int) int {
	if i := strings.IndexByte(text[offset:], '\n'); i >= 0 {
		return offset + i + 1
	}
	return len(text)
}

// withoutLine is the edit that puts left, which may be empty, in the place of the lines from..to, given by a byte in the first and in the last.
func withoutLine(text string, from, to int, left string) edit {
	if left != "" {
		left += newline(text)
	}
	return edit{from: lineStart(text, from), to: nextLine(text, to), text: left}
}

// indentation is the white space at the beginning of the line that has the byte at offset.
func indentation(text string, offset int) string {
	start := lineStart(text, offset)
	end := start
	for end < len(text) && (text[end] == ' ' || text[end] == '\t') {
		end++
	}
	return text[start:end]
}

// newline is how the lines of the text end.
func newline(text string) string {
	if i := strings.IndexByte(text, '\n'); i > 0 && text[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

// line is one line of a text.
type line struct {
	from, to int    // without the break
	indent   string // white space it begins with
	content  string // the rest, without white space at its end
}

func (l line) isBlank() bool   { return l.content == "" }
func (l line) isComment() bool { return strings.HasPrefix(l.content, "#") }

// linesBetween yields the lines that begin in from..to.
func linesBetween(text string, from, to int) iter.Seq[line] {
	return func(yield func(line) bool) {
		for at := from; at < to; at = nextLine(text, at) {
			indent := indentation(text, at)
			end := lineEnd(text, at)
			l := line{from: at, to: end, indent: indent, content: strings.TrimRight(text[at+min(len(indent), end-at):end], " \t\r")}
			if !yield(l) {
				return
			}
		}
	}
}

// comment is what stands after the value that ends at offset on its line, if it is a comment.
func comment(text string, offset int) string {
	rest := strings.TrimSpace(text[offset:lineEnd(text, offset)])
	if strings.HasPrefix(rest, "#") {
		return rest
	}
	return ""
}
