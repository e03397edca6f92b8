// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// edit replaces the text from start to end.
type edit struct {
	start, end int
	text       string
}

// replace applies edits, which must not overlap. Edits at the same place are applied in their order.
func replace(text string, edits []edit) (string, bool) {
	edits = slices.Clone(edits)
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Compare(a.start, b.start) })
	var b strings.Builder
	done := 0
	for _, e := range edits {
		if e.start < done || e.end < e.start || e.end > len(text) {
			return "", false
		}
		b.WriteString(text[done:e.start] + e.text)
		done = e.end
	}
	return b.String() + text[done:], true
}

// rename replaces the text of a scalar and keeps its quotes. It returns no edit unless the scalar is written in the
// simplest form.
func rename(n *manifest.Node, to string) []edit {
	for _, quote := range []string{`"`, `'`, ""} {
		if strings.HasPrefix(n.Document.Text[n.Start:], quote+n.Text+quote) {
			start := n.Start + len(quote)
			return []edit{{start, start + len(n.Text), to}}
		}
	}
	return nil
}

// insert adds a volume of the driver to the end of a list. It returns no edit if the end of the list is not clear.
func insert(volumes *manifest.Node, v *corev1.Volume) []edit {
	items, text := volumes.Items, volumes.Document.Text
	last := items[len(items)-1]
	end, dash := itemEnd(volumes, last), dashOf(items[0])
	switch {
	case end < 0:
		return nil
	case !volumes.Flow:
		line := lineStart(text, dash)
		indent := lineBreak(text, line) + strings.Repeat(" ", dash-line)
		return []edit{{end, end, indent + strings.ReplaceAll(block(v), "\n", indent)}}
	}
	space := " "
	if line := lineStart(text, last.Start); strings.TrimSpace(text[line:last.Start]) == "" {
		space = lineBreak(text, line) + text[line:last.Start]
	}
	return []edit{{end, end, "," + space + flow(v, volumes.Document.JSON)}}
}

// remove removes the i-th volume from a list in which the item kept stays. It returns no edit if the place of the
// volume is not clear.
func remove(volumes *manifest.Node, i, kept int) []edit {
	items, text := volumes.Items, volumes.Document.Text
	end := itemEnd(volumes, items[i])
	switch {
	case end < 0:
		return nil
	case !volumes.Flow:
		line := lineStart(text, dashOf(items[i]))
		return []edit{{line - len(lineBreak(text, line)), end, ""}}
	case i < kept:
		return []edit{{items[i].Start, items[i+1].Start, ""}}
	}
	if start := itemEnd(volumes, items[i-1]); start >= 0 {
		return []edit{{start, end, ""}}
	}
	return nil
}

// itemEnd returns the end of an item of a list: in a list in brackets, the end of the item's own brackets; otherwise
// the end of the last line that is indented more than the item's dash. It returns -1 if the end is not clear. The
// verification of the edit detects a wrong result.
func itemEnd(list, item *manifest.Node) int {
	text, start := item.Document.Text, item.Start
	if list.Flow {
		return closingBracket(text, start)
	}
	dash := dashOf(item)
	if dash < 0 {
		return -1
	}
	end := lineEnd(text, start)
	at := end
	for line := range strings.Lines(text[end:]) {
		content := strings.TrimLeft(line, " ")
		isDeeper := len(line)-len(content) > dash-lineStart(text, dash)
		switch content = strings.TrimSpace(content); {
		case content == "":
		case isDeeper:
			end = lineEnd(text, at)
		case content[0] != '#':
			return end
		}
		at += len(line)
	}
	return end
}

// flowTokens matches quoted texts, comments, brackets and words.
var flowTokens = regexp.MustCompile(`(?s)"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|\s#[^\n]*|[{}\[\]]|` +
	`[^\s{}\[\],:"'#][^\s{}\[\],]*`)

// closingBracket returns the end of the value in brackets that begins at start, or -1 if there is none.
func closingBracket(text string, start int) int {
	depth := 0
	for at := start; ; {
		token := flowTokens.FindStringIndex(text[at:])
		if token == nil {
			return -1
		}
		switch text[at+token[0] : at+token[1]] {
		case "{", "[":
			depth++
		case "}", "]":
			depth--
		}
		if at += token[1]; depth <= 0 {
			return at
		}
	}
}

// dashOf returns the offset of the dash of an item in a list without brackets, or -1 if there is none.
func dashOf(item *manifest.Node) int {
	before := beforeItem.FindStringIndex(item.Document.Text[:item.Start])
	if before == nil {
		return -1
	}
	return before[0]
}

var beforeItem = regexp.MustCompile(`-[ \t]*(?:(?:#[^\n]*)?\r?\n[ \t]*)*$`)

func lineStart(text string, at int) int { return strings.LastIndexByte(text[:at], '\n') + 1 }

// lineBreak returns the line break before the line that begins at start.
func lineBreak(text string, start int) string {
	switch {
	case strings.HasSuffix(text[:start], "\r\n"):
		return "\r\n"
	case start > 0:
		return "\n"
	}
	return ""
}

// lineEnd returns the end of the line without its line break.
func lineEnd(text string, at int) int {
	line, _, _ := strings.Cut(text[at:], "\n")
	return at + len(strings.TrimSuffix(line, "\r"))
}

// attributeNames are the attributes that convert sets, in the order in which it writes them.
var attributeNames = [...]string{"volume", "uid", "gid"}

// block writes a volume of the driver as an item of a list, with one line for each value.
func block(v *corev1.Volume) string {
	text := fmt.Sprintf("- name: %s\n  csi:\n    driver: %s\n    readOnly: true\n    volumeAttributes:", word(v.Name),
		v.CSI.Driver)
	for _, name := range attributeNames {
		if value, ok := v.CSI.VolumeAttributes[name]; ok {
			text += fmt.Sprintf("\n      %s: %s", name, word(value))
		}
	}
	return text
}

// flow writes a volume of the driver in brackets.
func flow(v *corev1.Volume, asJSON bool) string {
	key, value := func(name string) string { return name }, word
	if asJSON {
		key, value = quote, quote
	}
	var attrs []string
	for _, name := range attributeNames {
		if text, ok := v.CSI.VolumeAttributes[name]; ok {
			attrs = append(attrs, key(name)+": "+value(text))
		}
	}
	return fmt.Sprintf("{%s: %s, %s: {%s: %s, %s: true, %s: {%s}}}", key("name"), value(v.Name), key("csi"),
		key("driver"), value(v.CSI.Driver), key("readOnly"), key("volumeAttributes"), strings.Join(attrs, ", "))
}

// word writes a string as YAML, in quotes only if the string would be another value without quotes.
func word(text string) string {
	if d, ok := reread("k: " + text); ok && d.Root.Get("k").Value == text {
		return text
	}
	return quote(text)
}

func quote(text string) string {
	quoted, _ := json.Marshal(text) // This cannot fail for a string.
	return string(quoted)
}
