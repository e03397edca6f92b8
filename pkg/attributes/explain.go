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

// Names returns the names of the attributes in the order in which they are best read, without those of PathNames.
func Names() []string {
	return []string{"secretName", "configMapName", "volume", "uid", "gid", "mode", "dirMode", "optional", "refresh",
		"layout"}
}

// PathNames returns the names of the attributes of a single file. Each of them is written as name/PATH.
func PathNames() []string { return []string{"uid", "gid", "mode", "template"} }

// originNames are the attributes that say where the content comes from.
func originNames() []string { return []string{"secretName", "configMapName", "volume"} }

// unknownAttribute says what is wrong with the name of an attribute that does not exist, and what to write instead. It
// never mentions the value, which may be anything, such as a password in the wrong place.
func unknownAttribute(name string) string {
	// What users know from the Kubernetes API, from KEP-5280 and KEP-5936, and from other drivers.
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

// nearest returns the one of known that takes the fewest edits to reach from name, upper and lower case being the same;
// the first of equals. It returns "" when more than half of the letters would change: "uid" is no answer to "password".
func nearest(name string, known []string) string {
	name = strings.ToLower(short(name)) // bounds the work
	edits := func(candidate string) int { return EditDistance(name, strings.ToLower(candidate)) }
	best := slices.MinFunc(known, func(a, b string) int { return edits(a) - edits(b) })
	if 2*edits(best) > max(utf8.RuneCountInString(name), len(best)) {
		return ""
	}
	return best
}

// EditDistance is Levenshtein's: how many letters must be inserted, removed or replaced to get from a to b.
func EditDistance(a, b string) int {
	from, to := []rune(a), []rune(b)
	row := make([]int, len(to)+1) // row[j]: distance from the letters of a seen so far to the first j of b
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

// root is the place of problems that concern no single attribute.
func root() *field.Path { return field.NewPath("volumeAttributes") }

// attribute is the place of an attribute in messages.
func attribute(key string) *field.Path { return root().Key(printable(key)) }

// printable makes a user's name fit for a place in a message: short, and quoted unless it is plain. Nobody can break a
// log line with it or make it look like another place.
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

// short cuts a user's text to what fits in a message.
func short(value string) string { return text.Shorten(value, 64) }
