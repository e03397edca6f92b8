// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	good := func() Spec {
		return specOf(Source{Object: Object{Secret, "keys"}, Mode: 0o400})
	}
	if errs := Validate(good()); len(errs) > 0 {
		t.Errorf("a good Spec: %s", text(errs))
	}
	for _, tc := range []struct {
		name   string
		change func(*Spec)
		want   string // "" when it is good
	}{
		{"content of the request", func(s *Spec) { s.Sources[0].Object = Object{} }, ""},
		{"the largest ids", func(s *Spec) { s.UID, s.GID = number(1<<31-1), number(1<<31-1) }, ""},
		{"an empty list of items", func(s *Spec) { s.Sources[0].Items = []Item{} }, ""},
		{"no permissions at all", func(s *Spec) { s.Sources[0].Mode, s.DirMode = 0, 0 }, ""},
		{"no refresh", func(s *Spec) { s.Refresh = "" }, `volumeAttributes[refresh]: Invalid value: "": must be exactly`},
		{"no source", func(s *Spec) { s.Sources = nil }, "volumeAttributes[sources]: Required value"},
		{"an unknown kind", func(s *Spec) { s.Sources[0].Object.Kind = "Node" }, `volumeAttributes: Unsupported value: "Node": supported values: "Secret", "ConfigMap"`},
		{"a name without a kind", func(s *Spec) { s.Sources[0].Object.Kind = "" }, "volumeAttributes: Unsupported value"},
		{"a kind without a name", func(s *Spec) { s.Sources[0].Object.Name = "" }, "volumeAttributes[secretName]: Invalid"},
		{"a name that is none", func(s *Spec) { s.Sources[0].Object = Object{ConfigMap, "../x"} }, `volumeAttributes[configMapName]: Invalid value: "../x"`},
		{"a uid that chown would ignore", func(s *Spec) { s.UID = number(1<<32 - 1) }, `volumeAttributes[uid]: Invalid value: "4294967295"`},
		{"a gid out of range", func(s *Spec) { s.GID = number(1 << 31) }, `volumeAttributes[gid]: Invalid value: "2147483648"`},
		{"a setuid mode", func(s *Spec) { s.Sources[0].Mode = 0o4755 }, `volumeAttributes[mode]: Invalid value: "4755"`},
		{"Go's own setuid bit", func(s *Spec) { s.Sources[0].Mode = 1<<23 | 0o755 }, "volumeAttributes[mode]: Invalid"},
		{"a sticky dirMode", func(s *Spec) { s.DirMode = 0o1777 }, `volumeAttributes[dirMode]: Invalid value: "1777"`},
		{"a refresh that is none", func(s *Spec) { s.Refresh = "soon" }, `volumeAttributes[refresh]: Invalid value: "soon"`},
		{"an item's mode", func(s *Spec) { s.Sources[0].Items = []Item{{Key: "a", Path: "b", Mode: number(0o1000)}} }, "volumeAttributes[items][0].mode: Invalid"},
		{"an item's ids", func(s *Spec) { s.Sources[0].Items = []Item{{Key: "a", Path: "b", UID: number(1 << 31)}} }, "volumeAttributes[items][0].uid: Invalid"},
		{"an item's group", func(s *Spec) { s.Sources[0].Items = []Item{{Key: "a", Path: "b", GID: number(1 << 31)}} }, "volumeAttributes[items][0].gid: Invalid"},
		{"an item's path", func(s *Spec) { s.Sources[0].Items = []Item{{Key: "a", Path: "../b"}} }, "volumeAttributes[items][0].path: Invalid"},
		{"an item without a path", func(s *Spec) { s.Sources[0].Items = []Item{{Key: "a"}} }, "volumeAttributes[items][0].path: Required"},
		{"two items at one path", func(s *Spec) { s.Sources[0].Items = []Item{{Key: "a", Path: "b"}, {Key: "c", Path: "b"}} }, "items[0] and items[1] have the same path"},
		{"too many items", func(s *Spec) { s.Sources[0].Items = make([]Item, maxItems+1) }, "volumeAttributes[items]: Too many: 1025"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := good()
			tc.change(&spec)
			got := text(Validate(spec))
			if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) || strings.Contains(got, "\n") {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestValidatePath(t *testing.T) {
	for _, path := range []string{
		"a", "a/b", "a/b/c.d", ".a", "a..b", "a/..b", "a/...", "a b", " ", "-", "a&b", "%2e%2e", "~", "ключ", "id_rsa", "tls.crt",
		strings.Repeat("e", 255), strings.Repeat("e", 255) + "/" + strings.Repeat("e", 255),
		strings.Repeat(strings.Repeat("e", 15)+"/", 255) + strings.Repeat("e", 16), // 4096
	} {
		if got := ValidatePath(path); len(got) > 0 {
			t.Errorf("%.64q: %q", path, got)
		}
	}
	for path, want := range map[string]string{
		"":                                   "must not be empty",
		"/":                                  "must be relative",
		"/abs":                               "must be relative",
		"//abs":                              "empty element",
		"..":                                 "element '..'",
		"../a":                               "element '..'",
		"a/..":                               "element '..'",
		"a/../b":                             "element '..'",
		"..data":                             "must not start with '..'",
		"..x/a":                              "must not start with '..'",
		"...":                                "must not start with '..'",
		".":                                  "element '.'",
		"./a":                                "element '.'",
		"a/.":                                "element '.'",
		"a/./b":                              "element '.'",
		"a/":                                 "empty element",
		"a//b":                               "empty element",
		"a\x00":                              "control characters",
		"a\nb":                               "control characters",
		"a\tb":                               "control characters",
		"a\x7f":                              "control characters",
		"a\u0085b":                           "control characters",
		`a\b`:                                `must not contain '\'`,
		"c:":                                 "or ':'",
		"a\xffb":                             "UTF-8",
		"\xc0\xae\xc0\xae":                   "UTF-8", // an overlong ".."
		strings.Repeat("e", 256):             "more than 255 bytes",
		"a/" + strings.Repeat("é", 128):      "more than 255 bytes", // bytes, not characters
		strings.Repeat("e/", 2048) + "e":     "at most 4096 bytes",
		strings.Repeat("/", 4<<20):           "at most 4096 bytes",
		"/../a//./b\\" + "\n" + "\xff" + ":": "element '..'",
	} {
		got := ValidatePath(path)
		if !strings.Contains(strings.Join(got, "\n"), want) {
			t.Errorf("%.64q: got %q, want %q", path, got, want)
		}
	}
}
