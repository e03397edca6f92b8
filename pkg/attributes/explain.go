// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Key describes one attribute to people: in help texts, in documentation, in lint.
type Key struct {
	Name    string // as written under volumeAttributes
	Value   string // what values it takes
	Default string // what holds when it is absent
	Meaning string // one line
}

// Keys returns the vocabulary in the order in which it is best read. The slice is the caller's own.
func Keys() []Key {
	const oneObject = "none; exactly one of secretName, configMapName, sources and the volume's nodePublishSecretRef is needed"
	return []Key{
		{"secretName", "name of a Secret in the pod's own namespace", oneObject, "the Secret whose keys become files"},
		{"configMapName", "name of a ConfigMap in the pod's own namespace", oneObject, "the ConfigMap whose keys become files"},
		{"sources", "YAML or JSON list shaped like projected.sources: secret, configMap, downwardAPI", oneObject,
			"several objects, and fields of the pod, in one volume"},
		{"uid", "decimal, 0 to 2147483647", "the pod's common runAsUser, else 0", "owner of files and directories"},
		{"gid", "decimal, 0 to 2147483647", "the pod's fsGroup, else 0", "group of files and directories"},
		{"mode", "octal, 0 to 0777", "0400 for a Secret, else 0444", "permission bits of files, never widened"},
		{"dirMode", "octal, 0 to 0777", "0755", "permission bits of directories"},
		{"items", "YAML or JSON list of {key, path, mode, uid, gid}", "every key, at the path of its name",
			"which keys to project, and where; mode, uid and gid override the volume's"},
		{"optional", `"true" or "false"`, "false", "whether the object, or a key among items, may be missing"},
		{"refresh", "watch or off", "watch", "whether the files follow the object, or stay as at the pod's start"},
	}
}

func keyNames() []string {
	var names []string
	for _, key := range Keys() {
		names = append(names, key.Name)
	}
	return names
}

// unknownName says what is wrong with a name that is not among known: what to write instead. It never mentions the value, which
// may be anything, such as a password put in the wrong place. What is "attribute" or "field".
func unknownName(what, name string, known []string) string {
	// What users know from the Kubernetes API, from KEP-5280 and KEP-5936, and from other drivers.
	called := ""
	switch strings.ToLower(name) {
	case "namespace", "podnamespace", "secretnamespace", "configmapnamespace", "objectnamespace":
		return fmt.Sprintf("unknown %s: the object is always read from the pod's own namespace; remove it", what)
	case "secretname", "configmapname":
		called = "name"
	case "defaultmode", "filemode":
		called = "mode"
	case "defaultuser", "fsuser", "user", "owner", "runasuser":
		called = "uid"
	case "defaultgroup", "fsgroup", "group", "runasgroup":
		called = "gid"
	}
	if called != "" && slices.Contains(known, called) {
		takes := ""
		if called == "uid" || called == "gid" {
			takes = ", and takes a number"
		}
		return fmt.Sprintf("unknown %s: it is called %q here%s", what, called, takes)
	}
	guess := ""
	if near := nearest(name, known); near != "" {
		guess = fmt.Sprintf("; the nearest known one is %q", near)
	}
	return fmt.Sprintf("unknown %s%s (known: %s)", what, guess, strings.Join(known, ", "))
}

// nearest returns the one of known that takes the fewest edits to reach from name, upper and lower case being the same; the first
// of equals. It returns "" when more than half of the letters would change: "uid" is no answer to "password".
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

// printable makes a user's name fit for a place in a message: short, and quoted unless it is plain. Nobody can break a log line
// with it or make it look like another place.
func printable(name string) string {
	name = short(name)
	plain := func(r rune) bool {
		return r == '…' || r < utf8.RuneSelf && (isAlnum(byte(r)) || strings.ContainsRune("-_./", r))
	}
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !plain(r) }) {
		return strconv.Quote(name)
	}
	return name
}

// short cuts a user's text to what fits in a message.
func short(text string) string {
	const limit = 64 // bytes
	if len(text) <= limit {
		return text
	}
	end := limit
	for end > limit-utf8.UTFMax && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// oneLine makes a foreign error's text fit for a message.
func oneLine(text string) string {
	const limit = 200 // bytes
	text = strings.Join(strings.Fields(strings.TrimPrefix(text, "yaml: ")), " ")
	if len(text) > limit {
		text = text[:limit] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, text)
}
