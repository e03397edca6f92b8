// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/fsuser-csi/fsuser-csi/internal/text"
)

// Names returns the names of the attributes in the order of the documentation, without those of PathNames.
func Names() []string {
	return []string{"secretName", "configMapName", "volume", "uid", "gid", "mode", "dirMode", "optional", "refresh",
		"layout"}
}

// PathNames returns the names of the attributes of a single file. Each of them is written as name/PATH.
func PathNames() []string { return []string{"uid", "gid", "mode", "template"} }

// originNames returns the attributes that set the origin of the content.
func originNames() []string { return []string{"secretName", "configMapName", "volume"} }

// unknownAttribute returns the message for an unknown name of an attribute, with the remedy. It never contains the
// value, which may be anything, for example a password in the wrong place.
func unknownAttribute(name string) string {
	// Users know these names from the Kubernetes API, from KEP-5280 and KEP-5936, and from other drivers.
	called := ""
	switch strings.ToLower(name) {
	case "namespace", "podnamespace", "secretnamespace", "configmapnamespace", "objectnamespace":
		return "unknown attribute: the object is always read from the pod's own namespace; remove it"
	case "items":
		return "unknown attribute: write items in a secret, configMap or projected volume of the pod, " +
			"and name that volume in volume"
	case "defaultmode", "filemode":
		called = `"mode" here`
	case "defaultuser", "fsuser", "user", "owner", "runasuser":
		called = `"uid" here, and takes a number`
	case "defaultgroup", "fsgroup", "group", "runasgroup":
		called = `"gid" here, and takes a number`
	case "template", "templates":
		called = `"template/PATH" here, and PATH is the path of the file`
	}
	if called != "" {
		return "unknown attribute: it is called " + called
	}
	known := Names()
	guess := ""
	if near := nearest(name, known); near != "" {
		guess = fmt.Sprintf("; the nearest known one is %q", near)
	}
	return fmt.Sprintf("unknown attribute%s (known: %s, and %s/PATH)", guess, strings.Join(known, ", "),
		strings.Join(PathNames(), "/PATH, "))
}

// nearest returns the name in known with the smallest edit distance to name, ignoring case; the first one of several.
// It returns "" if more than half of the letters differ: "uid" is no suggestion for "password".
func nearest(name string, known []string) string {
	name = strings.ToLower(short(name)) // a short name limits the work
	edits := func(candidate string) int { return EditDistance(name, strings.ToLower(candidate)) }
	best := slices.MinFunc(known, func(a, b string) int { return edits(a) - edits(b) })
	if 2*edits(best) > max(utf8.RuneCountInString(name), len(best)) {
		return ""
	}
	return best
}

// EditDistance returns the Levenshtein distance: the number of letters to insert, remove or replace to get from a to b.
func EditDistance(a, b string) int {
	from, to := []rune(a), []rune(b)
	row := make([]int, len(to)+1) // row[j] is the distance between the processed letters of a and the first j of b.
	for j := range row {
		row[j] = j
	}
	for i, letter := range from {
		diagonal := row[0]
		row[0] = i + 1
		for j, wanted := range to {
			replace := diagonal
			if letter != wanted {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, diagonal+1)
		}
	}
	return row[len(to)]
}

// root returns the place of problems that concern no single attribute.
func root() *field.Path { return field.NewPath("volumeAttributes") }

// attribute returns the place of an attribute in messages.
func attribute(key string) *field.Path { return root().Key(printable(key)) }

// printable returns a user's name in a form for messages: short, and quoted unless it is plain. So a name can't break a
// line of the log or imitate another place.
func printable(name string) string {
	name = short(name)
	plain := func(r rune) bool {
		return r == '…' || r < utf8.RuneSelf && (('0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z') ||
			strings.ContainsRune("-_./", r))
	}
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) {
		return strconv.Quote(name)
	}
	return name
}

// short shortens a user's text for a message.
func short(value string) string { return text.Shorten(value, 64) }
