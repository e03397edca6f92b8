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

// toInTree edits the source of a volume of the driver to that of one of Kubernetes' own. v is what it means.
func toInTree(volume manifest.Node, v inTree) ([]edit, error) {
	key, csi := volume.Key("csi"), volume.Get("csi")
	attrs := csi.Get("volumeAttributes")
	rename, err := renamed(key, string(v.Shape))
	if err != nil {
		return nil, err
	}
	var added []attribute
	if !attrs.Get("mode").Exists() && v.Mode != nil {
		mode := fmt.Sprintf("%04o", *v.Mode)
		if attrs.Document().JSON {
			mode = strconv.Itoa(int(*v.Mode))
		}
		added = append(added, attribute{"defaultMode", mode, driverDefault})
	}
	if !attrs.Get("uid").Exists() && v.User != nil {
		added = append(added, attribute{"defaultUser", strconv.FormatInt(*v.User, 10), podsUser})
	}
	var edits []edit
	switch {
	case attrs.Style() == manifest.Flow:
		edits, err = flowToInTree(key, csi, attrs, v, added)
	case attrs.Style() == manifest.Block && csi.Style() == manifest.Block:
		edits, err = blockToInTree(key, csi, attrs, v, added)
	default:
		err = errNotEditable
	}
	return append([]edit{rename}, edits...), err
}

// blockToInTree takes the lines of volumeAttributes one step back, and the other lines of the CSI source away.
func blockToInTree(key, csi, attrs manifest.Node, v inTree, added []attribute) ([]edit, error) {
	text := attrs.Document().Text
	end, ok := attrs.End()
	outer, inner := indentation(text, csi.Start()), indentation(text, attrs.Start())
	unit, deeper := strings.CutPrefix(inner, outer)
	if !ok || !deeper || unit == "" {
		return nil, errNotEditable
	}
	var (
		nl    = newline(text)
		edits []edit
	)
	// A line that goes leaves its comment behind.
	remove := func(n manifest.Node, until int, implied bool) {
		left := comment(text, until)
		if left != "" {
			left = outer + left
		}
		if implied {
			left = ""
		}
		edits = append(edits, withoutLine(text, n.Start(), until, left))
	}
	for _, e := range csi.Entries() {
		until, ok := afterColon(text, e.Key)
		if e.Name != "volumeAttributes" {
			until, ok = e.Value.End()
		}
		if !ok {
			return nil, errNotEditable
		}
		remove(e.Key, until, e.Name == "volumeAttributes" && comment(text, until) == withoutUID)
	}
	for _, e := range attrs.Entries() {
		if e.Name == "items" || e.Name == "sources" {
			more, err := listToInTree(text, e, outer, inner, unit)
			if err != nil {
				return nil, err
			}
			edits = append(edits, more...)
			continue
		}
		until, ok := e.Value.End()
		if !ok {
			return nil, errNotEditable
		}
		implied := e.Name == "mode" && comment(text, until) == inTreeDefault && v.Mode != nil && *v.Mode == inTreeMode
		if implied || e.Name == "dirMode" || e.Name == "refresh" {
			remove(e.Key, until, implied)
			continue
		}
		more, err := entryToInTree(e)
		if err != nil {
			return nil, err
		}
		edits = append(edits, more...)
	}
	last := lineEnd(text, end)
	for l := range linesBetween(text, nextLine(text, end), len(text)) {
		if l.isComment() && len(l.indent) >= len(inner) {
			last = l.to
		} else if !l.isBlank() {
			break
		}
	}
	for l := range linesBetween(text, nextLine(text, csi.Key("volumeAttributes").Start()), last) {
		if len(l.indent) >= len(unit) && !l.isBlank() {
			edits = append(edits, edit{from: l.from, to: l.from + len(unit), layout: true})
		}
	}
	for _, a := range added {
		at := nextLine(text, end)
		line := outer + a.name + ": " + a.value + " " + a.comment + nl
		if at == len(text) && !strings.HasSuffix(text, "\n") {
			line = nl + strings.TrimSuffix(line, nl)
		}
		edits = append(edits, edit{from: at, to: at, text: line})
	}
	return edits, nil
}

// listToInTree makes the text of an attribute the list that it describes.
func listToInTree(text string, e manifest.Entry, outer, inner, unit string) ([]edit, error) {
	colon, found := afterColon(text, e.Key)
	start := e.Value.Start()
	end, ok := e.Value.End()
	if !ok || !found {
		return nil, errNotEditable
	}
	if e.Value.Style() != manifest.Literal {
		list, err := listFromQuotes(e, text[start:end])
		if err != nil {
			return nil, err
		}
		return []edit{{from: start, to: end, text: shifted(list, unit, "")}}, nil
	}
	header := start + len(strings.Fields(text[start:])[0])
	from := nextLine(text, start)
	list, err := rewriteList(text[from:end], e.Name == "sources", false, false)
	if err != nil {
		return nil, err
	}
	lines := strings.Split(list, "\n")
	depth := -1
	for i, l := range lines {
		indent := len(l) - len(strings.TrimLeft(l, " "))
		if strings.TrimSpace(l) == "" {
			continue
		}
		if depth < 0 {
			depth = indent
		}
		if indent < depth {
			return nil, errNotEditable
		}
		// A list may be as deep as its key; what is in brackets may not.
		target := len(outer) + max(0, depth-len(inner)-len(unit))
		if strings.HasPrefix(strings.TrimSpace(list), "[") {
			target = max(depth-len(unit), len(outer)+1)
		}
		lines[i] = strings.Repeat(" ", target+indent-depth) + l[indent:]
	}
	return []edit{{from: colon, to: header}, {from: from, to: end, text: strings.Join(lines, "\n")}}, nil
}

// listFromQuotes returns the list that stands in quotes.
func listFromQuotes(e manifest.Entry, raw string) (string, error) {
	list := e.Value.Text()
	if e.Value.Style() == manifest.Single {
		// With its lines as they are: YAML would join them.
		list = strings.ReplaceAll(raw[1:len(raw)-1], "''", "'")
	} else if e.Value.Style() != manifest.Double || strings.Contains(list, "\n") || strings.Contains(raw, "\n") {
		return "", fmt.Errorf(`%s is written in a way that convert can't edit: begin it with "%s: |" and put the list on the lines below`, e.Name, e.Name)
	}
	if !strings.HasPrefix(strings.TrimSpace(list), "[") {
		return "", fmt.Errorf(`%s is written in a way that convert can't edit: begin it with "%s: |" and put the list on the lines below`, e.Name, e.Name)
	}
	return rewriteList(list, e.Name == "sources", false, e.Value.Document().JSON)
}

// entryToInTree gives one attribute its name and value in Kubernetes' own volumes.
func entryToInTree(e manifest.Entry) ([]edit, error) {
	name, value, text := e.Name, "", e.Value.Text()
	switch e.Name {
	case "secretName":
	case "configMapName":
		name = "name"
	case "mode":
		number, err := modeNumber(text, e.Value.Document().JSON)
		if err != nil {
			return nil, err
		}
		name, value = "defaultMode", number
	case "uid":
		name, value = "defaultUser", text
	case "optional":
		value = text
	default:
		return nil, fmt.Errorf("%s has no counterpart in Kubernetes' own volumes: remove it, and convert again", e.Name)
	}
	rename, err := renamed(e.Key, name)
	if err != nil || value == "" {
		return []edit{rename}, err
	}
	change, err := replaced(e.Value, value)
	return []edit{rename, change}, err
}

// flowToInTree keeps the brackets of volumeAttributes, and takes those of the CSI source away.
func flowToInTree(key, csi, attrs manifest.Node, v inTree, added []attribute) ([]edit, error) {
	var (
		doc         = attrs.Document()
		text        = doc.Text
		start       = attrs.Start()
		colon, ok1  = afterColon(text, key)
		end, ok2    = attrs.End()
		csiEnd, ok3 = csi.End()
		entries     = attrs.Entries()
	)
	if !ok1 || !ok2 || !ok3 || len(entries) == 0 {
		return nil, errNotEditable
	}
	from, gap := csi.Start(), ""
	if csi.Style() == manifest.Block {
		from, gap = colon, " "
	}
	if strings.Contains(text[from:start], "#") || strings.Contains(text[end:csiEnd], "#") {
		return nil, fmt.Errorf("there is a comment between its attributes, which would be lost: move it in front of the volume")
	}
	edits := []edit{{from: from, to: start, text: gap}, {from: end, to: csiEnd}}
	f, err := newFlow(text, key, attrs)
	if err != nil {
		return nil, err
	}
	unit := ""
	if f.several {
		outer := strings.Repeat(" ", column(text, key.Start()))
		if csi.Style() == manifest.Flow {
			outer = indentation(text, csiEnd-1)
		}
		var deeper bool
		if unit, deeper = strings.CutPrefix(f.outer, outer); !deeper {
			return nil, errNotEditable
		}
		f.inner = strings.TrimPrefix(f.inner, unit)
	}
	for i, e := range entries {
		entryEnd, ok := e.Value.End()
		if !ok {
			return nil, errNotEditable
		}
		implied := i == len(entries)-1 && v.Mode != nil && *v.Mode == inTreeMode && impliedMode(e)
		var more []edit
		switch {
		case implied, e.Name == "dirMode", e.Name == "refresh":
			more, err = removed(text, entries, i)
		case e.Name == "items", e.Name == "sources":
			more, err = f.listToInTree(text, e, unit)
		default:
			more, err = entryToInTree(e)
		}
		if err != nil {
			return nil, err
		}
		edits = append(edits, more...)
		if i == len(entries)-1 {
			for _, a := range added {
				edits = append(edits, f.add(entryEnd, a.name, a.value, ""))
			}
		}
	}
	for l := range linesBetween(text, nextLine(text, start), end) {
		if f.several && !l.isBlank() && strings.HasPrefix(l.indent, unit) {
			edits = append(edits, edit{from: l.from, to: l.from + len(unit), layout: true})
		}
	}
	return edits, nil
}

// impliedMode reports whether the last of the attributes in brackets is a mode spelled as convert spells the default of Kubernetes' own volumes.
func impliedMode(e manifest.Entry) bool {
	if e.Value.Document().JSON {
		return e.Name == "mode" && e.Value.Text() == "644"
	}
	return e.Name == "mode" && e.Value.Style() == manifest.Single && e.Value.Text() == "0644"
}

// hadNoUser reports whether a volume of the driver tells that it was one of Kubernetes' own without defaultUser. Where nothing can be sure to
// be convert's own writing it tells nothing: files of the pod's user shall not go to root. So JSON never does.
func hadNoUser(csi manifest.Node) bool {
	attrs, key := csi.Get("volumeAttributes"), csi.Key("volumeAttributes")
	switch attrs.Style() {
	case manifest.Block:
		text := attrs.Document().Text
		until, ok := afterColon(text, key)
		return ok && comment(text, until) == withoutUID
	case manifest.Flow:
		entries := attrs.Entries()
		return !attrs.Document().JSON && len(entries) > 0 && impliedMode(entries[len(entries)-1])
	}
	return false
}

// removed takes an entry out of brackets, with its comma.
func removed(text string, entries []manifest.Entry, i int) ([]edit, error) {
	from, to := entries[i].Key.Start(), 0
	to, ok := entries[i].Value.End()
	switch {
	case i > 0:
		var before bool
		from, before = entries[i-1].Value.End()
		ok = ok && before
	case len(entries) > 1:
		to = entries[1].Key.Start()
	}
	if !ok || strings.Contains(text[from:to], "#") {
		return nil, errNotEditable
	}
	return []edit{{from: from, to: to}}, nil
}

// listToInTree makes the text of an attribute in brackets the list that it describes.
func (f flow) listToInTree(text string, e manifest.Entry, unit string) ([]edit, error) {
	start := e.Value.Start()
	end, ok := e.Value.End()
	if !ok {
		return nil, errNotEditable
	}
	list, err := listFromQuotes(e, text[start:end])
	if err != nil {
		return nil, err
	}
	if e.Value.Document().JSON && f.several {
		var compact, laidOut bytes.Buffer
		if json.Compact(&compact, []byte(list)) == nil && compact.String() == list && json.Indent(&laidOut, []byte(list), f.inner, f.unit) == nil {
			return []edit{{from: start, to: end, text: strings.ReplaceAll(laidOut.String(), "\n", f.nl)}}, nil
		}
	}
	return []edit{{from: start, to: end, text: shifted(list, unit, "")}}, nil
}

// attributesOf returns the volumeAttributes of a volume as strings; not ok if one is none.
func attributesOf(attrs manifest.Node) (map[string]string, error) {
	values := map[string]string{}
	for _, e := range attrs.Entries() {
		text, ok := e.Value.Scalar().(string)
		if !ok {
			return nil, fmt.Errorf("volumeAttributes[%s] is no string: put it in quotes", e.Name)
		}
		values[e.Name] = text
	}
	return values, nil
}

// expressed returns what a volume of the driver means in Kubernetes' own words, and what of it can't be said so.
func expressed(csi manifest.Node, podUser *uint32) (inTree, []string, error) {
	values, err := attributesOf(csi.Get("volumeAttributes"))
	if err != nil {
		return inTree{}, nil, err
	}
	spec, errs := attributes.Parse(values, csi.Get("nodePublishSecretRef").Exists())
	if len(errs) > 0 {
		return inTree{}, nil, fmt.Errorf("%w", errs.ToAggregate())
	}
	s := sourcesShape
	switch {
	case values["secretName"] != "":
		s = secretShape
	case values["configMapName"] != "":
		s = configMapShape
	}
	v, reasons := express(spec, s, podUser)
	return v, reasons, nil
}
