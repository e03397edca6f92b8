// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// edit replaces the text from start to end.
type edit struct {
	start, end int
	text       string
}

// replace makes edits, of which no two may overlap. Edits of one place come in their order.
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

// rename gives a scalar another text and leaves its quotes. It returns no edit if the scalar is not written in the
// simplest way.
func rename(n *manifest.Node, to string) []edit {
	end, ok := n.End()
	if !ok {
		return nil
	}
	start, text := n.Start(), n.Document().Text
	if quote := text[start]; quote == '"' || quote == '\'' {
		start, end = start+1, end-1
	}
	if text[start:end] != n.Text() {
		return nil
	}
	return []edit{{start, end, to}}
}

// insert adds a volume of the driver to the end of a list. It returns no edit if it cannot be told where the list ends.
func insert(volumes *manifest.Node, v *csiVolume) []edit {
	items, text := volumes.Items(), volumes.Document().Text
	last := items[len(items)-1]
	end, ok := last.End()
	if !ok {
		return nil
	}
	if volumes.IsFlow() {
		space := " "
		if line := lineStart(text, last.Start()); strings.TrimSpace(text[line:last.Start()]) == "" {
			space = lineBreak(text, line) + text[line:last.Start()]
		}
		return []edit{{end, end, "," + space + v.flow(volumes.Document().JSON)}}
	}
	end = lineEnd(text, end)
	dash := dashOf(items[0])
	if dash < 0 {
		return nil
	}
	line := lineStart(text, dash)
	indent := lineBreak(text, line) + strings.Repeat(" ", dash-line)
	return []edit{{end, end, indent + strings.ReplaceAll(v.block(), "\n", indent)}}
}

// remove takes the i-th volume out of a list, of which the item kept stays. It returns no edit if it cannot be told where
// the volume is.
func remove(volumes *manifest.Node, i, kept int) []edit {
	items, text := volumes.Items(), volumes.Document().Text
	end, ok := items[i].End()
	switch {
	case !ok:
		return nil
	case !volumes.IsFlow():
		dash := dashOf(items[i])
		if dash < 0 {
			return nil
		}
		line := lineStart(text, dash)
		return []edit{{line - len(lineBreak(text, line)), lineEnd(text, end), ""}}
	case i > kept:
		start, ok := items[i-1].End()
		if !ok {
			return nil
		}
		return []edit{{start, end, ""}}
	}
	return []edit{{items[i].Start(), items[i+1].Start(), ""}}
}

// dashOf finds the dash of an item of a list that is written without brackets. It returns -1 if there is none.
func dashOf(item *manifest.Node) int {
	before := beforeItem.FindStringIndex(item.Document().Text[:item.Start()])
	if before == nil {
		return -1
	}
	return before[0]
}

var beforeItem = regexp.MustCompile(`-[ \t]*(?:(?:#[^\n]*)?\r?\n[ \t]*)*$`)

func lineStart(text string, at int) int { return strings.LastIndexByte(text[:at], '\n') + 1 }

// lineBreak is the line break before the line that begins at start.
func lineBreak(text string, start int) string {
	switch {
	case strings.HasSuffix(text[:start], "\r\n"):
		return "\r\n"
	case start > 0:
		return "\n"
	}
	return ""
}

// lineEnd is where the line ends, without its break.
func lineEnd(text string, at int) int {
	line, _, _ := strings.Cut(text[at:], "\n")
	return at + len(strings.TrimSuffix(line, "\r"))
}

// csiVolume is a volume of the driver that another volume of the pod describes.
type csiVolume struct {
	name       string
	attributes []attribute
}

type attribute struct{ name, value string }

func (v *csiVolume) values() map[string]string {
	values := map[string]string{}
	for _, a := range v.attributes {
		values[a.name] = a.value
	}
	return values
}

// value is the volume as a document has it.
func (v *csiVolume) value() any {
	values := map[string]any{}
	for _, a := range v.attributes {
		values[a.name] = a.value
	}
	return map[string]any{
		"name": v.name, "csi": map[string]any{"driver": attributes.Driver, "readOnly": true, "volumeAttributes": values},
	}
}

// block writes the volume as an item of a list, one line for each value.
func (v *csiVolume) block() string {
	text := fmt.Sprintf("- name: %s\n  csi:\n    driver: %s\n    readOnly: true\n    volumeAttributes:", word(v.name), attributes.Driver)
	for _, a := range v.attributes {
		text += fmt.Sprintf("\n      %s: %s", a.name, word(a.value))
	}
	return text
}

// flow writes the volume in brackets.
func (v *csiVolume) flow(asJSON bool) string {
	key, value := func(name string) string { return name }, word
	if asJSON {
		key, value = quote, quote
	}
	var attrs []string
	for _, a := range v.attributes {
		attrs = append(attrs, key(a.name)+": "+value(a.value))
	}
	return fmt.Sprintf("{%s: %s, %s: {%s: %s, %s: true, %s: {%s}}}", key("name"), value(v.name), key("csi"),
		key("driver"), value(attributes.Driver), key("readOnly"), key("volumeAttributes"), strings.Join(attrs, ", "))
}

// word writes a string as YAML: in quotes if it would be something else without.
func word(text string) string {
	if d, ok := reread("k: " + text); ok && d.Root.Get("k").Scalar() == text {
		return text
	}
	return quote(text)
}

func quote(text string) string {
	quoted, _ := json.Marshal(text) // of a string: it cannot fail
	return string(quoted)
}
