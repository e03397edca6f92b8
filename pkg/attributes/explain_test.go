// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"slices"
	"strings"
	"testing"
)

func TestNamesAreWhatParseKnows(t *testing.T) {
	for _, name := range append(Names(), "uid/f", "gid/f", "mode/f") {
		if _, errs := Parse(map[string]string{name: "?"}, true); strings.Contains(messages(errs), "unknown attribute") {
			t.Errorf("Parse does not know %s", name)
		}
	}
}

func TestUnknownNamesAreAnsweredWithTheRightOne(t *testing.T) {
	for given, want := range map[string]string{
		"secretname": `"secretName"`, "SecretName": `"secretName"`, "secret": `"secretName"`, "secretNam": `"secretName"`,
		"configmapname": `"configMapName"`, "configMap": `"configMapName"`, "config-map-name": `"configMapName"`,
		"Mode": `"mode"`, "modes": `"mode"`, "dirmode": `"dirMode"`, "directoryMode": `"dirMode"`,
		"optionnal": `"optional"`, "Optional": `"optional"`, "refreshh": `"refresh"`,
		"UID": `"uid"`, "uuid": `"uid"`, "GID": `"gid"`, "volumes": `"volume"`, "volumeName": `"volume"`,
		"defaultMode": `called "mode"`, "fileMode": `called "mode"`,
		"defaultUser": `called "uid"`, "fsUser": `called "uid"`, "user": `called "uid"`, "owner": `called "uid"`,
		"runAsUser": `called "uid"`, "RUNASUSER": `called "uid"`,
		"fsGroup": `called "gid"`, "group": `called "gid"`, "runAsGroup": `called "gid"`,
		"template": `called "template/PATH"`, "Templates": `called "template/PATH"`,
		"namespace": "pod's own namespace; remove it", "podNamespace": "remove it", "secretNamespace": "remove it",
		"configMapNamespace": "remove it",
		// For these names a guess would mislead.
		"reload": "unknown attribute (known: ", "password": "unknown attribute (known: ",
		"秘密": "unknown attribute (known: secretName, configMapName, volume, uid, gid, mode, dirMode, optional, refresh, " +
			"layout, and uid/PATH, gid/PATH, mode/PATH, template/PATH)",
	} {
		if got := refused(t, with(given, "value"), false); !strings.Contains(got, want) || strings.Contains(got, "value") {
			t.Errorf("%s: got %s, want %s", given, got, want)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2},
		{"uid", "gid", 1}, {"é", "e", 1},
	} {
		if got := EditDistance(tc.a, tc.b); got != tc.want {
			t.Errorf("%q to %q: got %d, want %d", tc.a, tc.b, got, tc.want)
		}
		if EditDistance(tc.b, tc.a) != EditDistance(tc.a, tc.b) {
			t.Errorf("%q and %q: not symmetric", tc.a, tc.b)
		}
	}
}

func TestShortNeverCutsWithinACharacter(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{strings.Repeat("a", 64), strings.Repeat("a", 64)},
		{strings.Repeat("a", 65), strings.Repeat("a", 64) + "…"},
		{"a" + strings.Repeat("é", 40), "a" + strings.Repeat("é", 31) + "…"},
	} {
		if got := short(tc.text); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
	if got := short(strings.Repeat("\xbf", 100)); len(got) > 64+len("…") {
		t.Errorf("%d bytes", len(got))
	}
	if !slices.Equal([]string{printable("a.b/c"), printable("a]b"), printable("")}, []string{"a.b/c", `"a]b"`, `""`}) {
		t.Error("printable")
	}
}
