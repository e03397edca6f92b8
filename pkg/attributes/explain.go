// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
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
	const origin = "none; exactly one of secretName, configMapName, volume and the volume's nodePublishSecretRef is needed"
	return []Key{
		{"secretName", "name of a Secret in the pod's own namespace", origin, "the Secret whose keys become files"},
		{"configMapName", "name of a ConfigMap in the pod's own namespace", origin, "the ConfigMap whose keys become files"},
		{"volume", "name of another volume of the pod: secret, configMap, downwardAPI or projected", origin,
			"the volume that says which files there are, with its items, paths, modes and users"},
		{"uid", "decimal, 0 to 2147483647", "the defaultUser of the volume that volume names, else the common runAsUser of the containers that mount this volume, else 0",
			"owner of files and directories"},
		{"gid", "decimal, 0 to 2147483647", "the pod's fsGroup, else 0", "group of files and directories"},
		{"mode", "octal, 0 to 0777", "the defaultMode of the volume that volume names; 0400 for a Secret, 0444 for a ConfigMap",
			"permission bits of files, never widened"},
		{"dirMode", "octal, 0 to 0777", "0755", "permission bits of directories"},
		{"uid/PATH", "decimal, 0 to 2147483647", "uid", "owner of the file PATH"},
		{"gid/PATH", "decimal, 0 to 2147483647", "gid", "group of the file PATH"},
		{"mode/PATH", "octal, 0 to 0777", "mode", "permission bits of the file PATH"},
		{"optional", `"true" or "false"`, "false", "whether the object of secretName or configMapName may be missing"},
		{"refresh", "watch or off", "watch", "whether the files follow the object, or stay as at the pod's start"},
	}
}

// keyNames are the names of attributes that have no PATH.
func keyNames() []string {
	var names []string
	for _, key := range Keys() {
		if !strings.Contains(key.Name, "/") {
			names = append(names, key.Name)
		}
	}
	return names
}

// pathNames are the attributes that also exist for a single file, as name/PATH.
func pathNames() []string { return []string{"uid", "gid", "mode"} }

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
		return "unknown attribute: write items in a secret, configMap or projected volume of the pod, and name that volume in volume"
	case "defaultmode", "filemode":
		called = `"mode" here`
	case "defaultuser", "fsuser", "user", "owner", "runasuser":
		called = `"uid" here, and takes a number`
	case "defaultgroup", "fsgroup", "group", "runasgroup":
		called = `"gid" here, and takes a number`
	}
	if called != "" {
		return "unknown attribute: it is called " + called
	}
	known := keyNames()
	guess := ""
	if near := nearest(name, known); near != "" {
		guess = fmt.Sprintf("; the nearest known one is %q", near)
	}
	return fmt.Sprintf("unknown attribute%s (known: %s, and uid/PATH, gid/PATH, mode/PATH)", guess, strings.Join(known, ", "))
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
		return r == '…' || r < utf8.RuneSelf && (('0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z') || strings.ContainsRune("-_./", r))
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
