// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// Spellings. There and back must end where it began, so a number tells by its spelling how it was written on the other side: an octal
// defaultMode: 0400 is mode: "0400" with its zero, a decimal 256 is "400" without. JSON has no octal numbers, so there it is "0400".

var octal = regexp.MustCompile(`^0[0-7]{1,3}$`)

// modeText spells a mode of Kubernetes' own volumes for this driver.
func modeText(value manifest.Node, mode int32) string {
	switch {
	case value.Style() == manifest.Plain && octal.MatchString(value.Text()):
		return value.Text()
	case value.Document().JSON:
		return fmt.Sprintf("%04o", mode)
	}
	return strconv.FormatInt(int64(mode), 8)
}

// modeNumber spells a mode of this driver, octal digits, for Kubernetes' own volumes.
func modeNumber(text string, json bool) (string, error) {
	if !json && octal.MatchString(text) {
		return text, nil
	}
	value, err := strconv.ParseUint(text, 8, 32)
	if err != nil {
		return "", fmt.Errorf("mode %q is no octal number", text)
	}
	return strconv.FormatUint(value, 10), nil
}

// renamed is the edit that gives a key another name, in the quotes that it has.
func renamed(key manifest.Node, name string) (edit, error) {
	switch key.Style() {
	case manifest.Single:
		name = "'" + name + "'"
	case manifest.Double:
		name = `"` + name + `"`
	}
	return replaced(key, name)
}

// replaced is the edit that puts another text in the place of a value.
func replaced(n manifest.Node, text string) (edit, error) {
	end, ok := n.End()
	if !ok || !n.IsScalar() {
		return edit{}, errNotEditable
	}
	return edit{from: n.Start(), to: end, text: text}, nil
}

var errNotEditable = errors.New("it is written in a way that convert can't edit (aliases, anchors, tags, or a plain text over several lines): write it plainly")

// listEdits puts the list items, or sources if there is a list of them, into the words of the other side.
func listEdits(list manifest.Node, sources, toDriver bool) ([]edit, error) {
	if !sources {
		return itemEdits(list, toDriver)
	}
	var edits []edit
	for _, entry := range list.Items() {
		for _, source := range entry.Entries() {
			more, err := itemEdits(source.Value.Get("items"), toDriver)
			if err != nil {
				return nil, err
			}
			edits = append(edits, more...)
		}
	}
	return edits, nil
}

func itemEdits(items manifest.Node, toDriver bool) ([]edit, error) {
	var edits []edit
	from, to := "user", "uid"
	if !toDriver {
		from, to = to, from
	}
	for _, item := range items.Items() {
		for _, e := range item.Entries() {
			var (
				change edit
				err    error
			)
			switch text := e.Value.Text(); {
			case e.Name == from:
				if change, err = renamed(e.Key, to); err != nil {
					return nil, err
				}
				edits = append(edits, change)
				if toDriver || e.Value.Style() == manifest.Plain {
					continue
				}
				change, err = replaced(e.Value, text)
			case e.Name == "mode" && toDriver && e.Value.Style() == manifest.Plain && octal.MatchString(text) && !e.Value.Document().JSON:
				change, err = replaced(e.Value, `"`+text+`"`)
			case e.Name == "mode" && !toDriver && e.Value.Style() != manifest.Plain:
				var number string
				if number, err = modeNumber(text, e.Value.Document().JSON); err == nil {
					change, err = replaced(e.Value, number)
				}
			default:
				continue
			}
			if err != nil {
				return nil, err
			}
			edits = append(edits, change)
		}
	}
	return edits, nil
}

// rewriteList does listEdits on a list that is a text of its own. json tells that it will stand in a JSON document.
func rewriteList(text string, sources, toDriver, json bool) (string, error) {
	f := manifest.Parse("", text)
	if len(f.Documents) != 1 || f.Documents[0].Err != nil || !f.Documents[0].Root.IsList() {
		return "", errNotEditable
	}
	d := f.Documents[0]
	d.JSON = json
	edits, err := listEdits(d.Root, sources, toDriver)
	if err != nil {
		return "", err
	}
	out, ok := apply(text, edits)
	if !ok || d.Start != 0 {
		return "", errNotEditable
	}
	return out, nil
}

// quoted puts a list of one or several lines in single quotes.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// shifted changes the indentation of the lines of text after the first: from is taken away and to put in its place.
func shifted(text, from, to string) string {
	lines := strings.Split(text, "\n")
	for i := 1; i < len(lines); i++ {
		if strings.TrimSpace(lines[i]) != "" {
			lines[i] = to + strings.TrimPrefix(lines[i], from)
		}
	}
	return strings.Join(lines, "\n")
}
