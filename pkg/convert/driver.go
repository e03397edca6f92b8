// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// Comments that convert writes, and knows again on the way back: the value is only there because the other side has another default.
const (
	inTreeDefault = "# the default of Kubernetes' own volumes"
	driverDefault = "# the default of " + attributes.Driver
	podsUser      = "# the pod's runAsUser"
	// withoutUID stands behind volumeAttributes: the volume had no defaultUser, and shall not get one.
	withoutUID = "# without uid the files belong to the pod's runAsUser"
)

// attribute is one that is appended, because the in-tree volume does not say it or the user of convert does.
type attribute struct {
	name, value, comment string
}

// toDriver edits the source of an in-tree volume to that of a volume of the driver. v is what it means.
func toDriver(volume manifest.Node, s shape, v inTree, o Options, podUser *uint32) ([]edit, error) {
	var (
		key, source = volume.Key(string(s)), volume.Get(string(s))
		added       []attribute
	)
	if !source.Get("defaultMode").Exists() && v.Mode != nil {
		added = append(added, attribute{"mode", fmt.Sprintf("%04o", *v.Mode), inTreeDefault})
	}
	if o.UID != nil && v.User == nil {
		added = append(added, attribute{"uid", strconv.FormatUint(uint64(*o.UID), 10), ""})
	}
	if o.GID != nil {
		added = append(added, attribute{"gid", strconv.FormatUint(uint64(*o.GID), 10), ""})
	}
	rename, err := renamed(key, "csi")
	if err != nil {
		return nil, err
	}
	edits := []edit{rename}
	var more []edit
	if source.Style() == manifest.Flow {
		more, err = flowToDriver(key, source, s, v, added)
	} else {
		more, err = blockToDriver(key, source, s, v, added, podUser, o.UID == nil && v.User == nil && podUser != nil)
	}
	return append(edits, more...), err
}

// blockToDriver puts the lines of an in-tree source below volumeAttributes, one step deeper. ofPod says that the owner is the pod's user, whom
// the driver finds out by itself.
func blockToDriver(key, source manifest.Node, s shape, v inTree, added []attribute, podUser *uint32, ofPod bool) ([]edit, error) {
	text := source.Document().Text
	end, ok := source.End()
	inner := indentation(text, source.Start())
	outer := strings.Repeat(" ", column(text, key.Start()))
	unit, deeper := strings.CutPrefix(inner, outer)
	if !ok || !deeper || unit == "" || source.Style() != manifest.Block {
		return nil, errNotEditable
	}
	attrs := "volumeAttributes:"
	if ofPod {
		attrs += " " + withoutUID
	}
	var (
		nl    = newline(text)
		edits = []edit{{from: lineEnd(text, key.Start()), to: lineEnd(text, key.Start()),
			text: nl + inner + "driver: " + attributes.Driver + nl + inner + "readOnly: true" + nl + inner + attrs}}
		lists []extent
	)
	for _, e := range source.Entries() {
		if list := e.Name == "items" || e.Name == "sources"; list && e.Value.IsList() {
			more, l, err := listToDriver(text, e, inner, unit)
			if err != nil {
				return nil, err
			}
			edits = append(edits, more...)
			lists = append(lists, l)
			continue
		}
		if dropped(text, e, v, podUser) {
			edits = append(edits, withoutLine(text, e.Key.Start(), e.Key.Start(), ""))
			continue
		}
		more, err := entryToDriver(e, s)
		if err != nil {
			return nil, err
		}
		edits = append(edits, more...)
	}
	// The comments behind the last key belong to it as long as they are as deep.
	last := lineEnd(text, end)
	for l := range linesBetween(text, nextLine(text, end), len(text)) {
		if l.isComment() && len(l.indent) >= len(inner) {
			last = l.to
		} else if !l.isBlank() {
			break
		}
	}
	for l := range linesBetween(text, nextLine(text, key.Start()), last) {
		edits = append(edits, deepen(l, unit, lists)...)
	}
	for _, a := range added {
		line := nl + inner + unit + a.name + `: "` + a.value + `"`
		if a.comment != "" {
			line += " " + a.comment
		}
		edits = append(edits, edit{from: lineEnd(text, end), to: lineEnd(text, end), text: line})
	}
	return edits, nil
}

// extent is the lines of a list that becomes a literal text.
type extent struct {
	from, to int
	column   int    // of the list
	unit     string // that it goes deeper, beside what all lines do
}

// deepen puts a line one step deeper. A comment at the very beginning of its line stays there. Comments among the lines of a list become a
// part of the literal text, so they can't be less deep than it.
func deepen(l line, unit string, lists []extent) []edit {
	if l.isBlank() {
		return nil
	}
	for _, list := range lists {
		if l.from < list.from || l.from >= list.to {
			continue
		}
		deeper := unit + list.unit
		if l.isComment() && len(l.indent) < list.column {
			deeper += strings.Repeat(" ", list.column-len(l.indent))
		}
		return []edit{{from: l.from, to: l.from, text: deeper, layout: true}}
	}
	if l.isComment() && l.indent == "" {
		return nil
	}
	return []edit{{from: l.from, to: l.from, text: unit, layout: true}}
}

// listToDriver makes the list of an entry the text of an attribute: a literal one if it has lines of its own, else in quotes.
func listToDriver(text string, e manifest.Entry, inner, unit string) ([]edit, extent, error) {
	edits, err := listEdits(e.Value, e.Name == "sources", true)
	if err != nil {
		return nil, extent{}, err
	}
	start := e.Value.Start()
	end, ok := e.Value.End()
	colon, found := afterColon(text, e.Key)
	if !ok || !found {
		return nil, extent{}, errNotEditable
	}
	if lineStart(text, start) == lineStart(text, e.Key.Start()) { // [...]
		list, ok := apply(text[start:end], moved(edits, -start))
		if !ok {
			return nil, extent{}, errNotEditable
		}
		return []edit{{from: start, to: end, text: quoted(shifted(list, "", unit))}}, extent{}, nil
	}
	l := extent{from: nextLine(text, e.Key.Start()), to: lineEnd(text, end), column: column(text, start), unit: unit}
	if e.Value.Style() == manifest.Flow {
		l.unit = "" // it has to be deeper than its key already
	}
	for c := range linesBetween(text, nextLine(text, end), len(text)) {
		if c.isComment() && len(c.indent) > len(inner) {
			l.to = c.to
		} else if !c.isBlank() {
			break
		}
	}
	return append(edits, edit{from: colon, to: colon, text: " |"}), l, nil
}

// entryToDriver gives one field of an in-tree source its name and value among the attributes.
func entryToDriver(e manifest.Entry, s shape) ([]edit, error) {
	name, value := e.Name, ""
	switch e.Name {
	case "secretName":
	case "name":
		name = "configMapName"
	case "defaultMode":
		mode, ok := e.Value.Scalar().(int)
		if !ok {
			return nil, fmt.Errorf("defaultMode is no number")
		}
		name, value = "mode", modeText(e.Value, int32(mode))
	case "defaultUser":
		uid, ok := e.Value.Scalar().(int)
		if !ok {
			return nil, fmt.Errorf("defaultUser is no number")
		}
		name, value = "uid", strconv.Itoa(uid)
	case "optional":
		optional, ok := e.Value.Scalar().(bool)
		if !ok {
			return nil, fmt.Errorf("optional is neither true nor false")
		}
		value = strconv.FormatBool(optional)
	default:
		return nil, fmt.Errorf("%s of a %s volume is not known, or empty", e.Name, s)
	}
	rename, err := renamed(e.Key, name)
	if err != nil || value == "" {
		return []edit{rename}, err
	}
	change, err := replaced(e.Value, `"`+value+`"`)
	return []edit{rename, change}, err
}

// dropped reports whether an entry is only there because the driver's default was written out on the way to Kubernetes' own volumes.
func dropped(text string, e manifest.Entry, v inTree, podUser *uint32) bool {
	end, ok := e.Value.End()
	if !ok {
		return false
	}
	switch comment(text, end) {
	case driverDefault:
		return e.Name == "defaultMode" && v.Mode != nil && *v.Mode == int32(defaultMode(v))
	case podsUser:
		return e.Name == "defaultUser" && v.User != nil && podUser != nil && *v.User == int64(*podUser)
	}
	return false
}

// defaultMode is what files of the volume have with this driver if it does not say.
func defaultMode(v inTree) uint32 {
	for _, source := range v.Sources {
		if source.Secret != nil {
			return attributes.DefaultMode(attributes.Secret)
		}
	}
	return attributes.DefaultMode(attributes.ConfigMap)
}

// flowToDriver wraps what is in the brackets of an in-tree source.
func flowToDriver(key, source manifest.Node, s shape, v inTree, added []attribute) ([]edit, error) {
	var (
		doc     = source.Document()
		text    = doc.Text
		start   = source.Start()
		end, ok = source.End()
		entries = source.Entries()
	)
	if !ok || len(entries) == 0 {
		return nil, errNotEditable
	}
	f, err := newFlow(text, key, source)
	if err != nil {
		return nil, err
	}
	edits := f.wrap()
	for _, e := range entries {
		var more []edit
		if list := e.Name == "items" || e.Name == "sources"; list && e.Value.IsList() {
			more, err = f.listToDriver(doc, e)
		} else {
			more, err = entryToDriver(e, s)
		}
		if err != nil {
			return nil, err
		}
		edits = append(edits, more...)
	}
	last, ok := entries[len(entries)-1].Value.End()
	if !ok {
		return nil, errNotEditable
	}
	for _, a := range added {
		value := `"` + a.value + `"`
		// There is no room for a comment: a spelling that a person would hardly choose tells the same.
		if a.comment == inTreeDefault && doc.JSON {
			value = `"` + strings.TrimLeft(a.value, "0") + `"`
		} else if a.comment == inTreeDefault {
			value = "'" + a.value + "'"
		}
		edits = append(edits, f.add(last, a.name, value, f.unit))
	}
	for l := range linesBetween(text, nextLine(text, start), end) {
		if !l.isBlank() && f.several {
			edits = append(edits, edit{from: l.from, to: l.from, text: f.unit, layout: true})
		}
	}
	return edits, nil
}

// listToDriver makes a list in brackets the text of an attribute.
func (f flow) listToDriver(doc *manifest.Document, e manifest.Entry) ([]edit, error) {
	start := e.Value.Start()
	end, ok := e.Value.End()
	if !ok {
		return nil, errNotEditable
	}
	edits, err := listEdits(e.Value, e.Name == "sources", true)
	if err != nil {
		return nil, err
	}
	list, ok := apply(doc.Text[start:end], moved(edits, -start))
	if !ok {
		return nil, errNotEditable
	}
	if !doc.JSON {
		return []edit{{from: start, to: end, text: quoted(shifted(list, "", f.unit))}}, nil
	}
	if strings.Contains(list, "\n") {
		var compact bytes.Buffer
		if err := json.Compact(&compact, []byte(list)); err != nil {
			return nil, errNotEditable
		}
		list = compact.String()
	}
	return []edit{{from: start, to: end, text: jsonString(list)}}, nil
}

// moved is edits whose offsets are changed by so much.
func moved(edits []edit, by int) []edit {
	var out []edit
	for _, e := range edits {
		e.from, e.to = e.from+by, e.to+by
		out = append(out, e)
	}
	return out
}

// column is how many bytes stand before offset on its line.
func column(text string, offset int) int { return offset - lineStart(text, offset) }

// afterColon is where the colon behind a key ends.
func afterColon(text string, key manifest.Node) (int, bool) {
	end, ok := key.End()
	if !ok {
		return 0, false
	}
	rest := strings.TrimLeft(text[end:], " ")
	if !strings.HasPrefix(rest, ":") {
		return 0, false
	}
	return len(text) - len(rest) + 1, true
}
