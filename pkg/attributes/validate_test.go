// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	good := func() Spec {
		return specOf(Source{Object: Object{Secret, "keys"}, Mode: 0o400, Items: []Item{{Key: "a", Path: "b"}}})
	}
	if errs := Validate(good()); len(errs) > 0 {
		t.Errorf("a good Spec: %s", messages(errs))
	}
	item := func(s *Spec) *Item { return &s.Sources[0].Items[0] }
	for _, tc := range []struct {
		name   string
		change func(*Spec)
		want   string // "" if the Spec is valid
	}{
		{"content of the request", func(s *Spec) { s.Sources[0] = Source{Mode: 0o400} }, ""},
		{"the largest ids", func(s *Spec) { s.UID, s.GID = number(1<<31-1), number(1<<31-1) }, ""},
		{"no permissions at all", func(s *Spec) { s.Sources[0].Mode, s.DirMode = 0, 0 }, ""},
		{"a described volume without content", func(s *Spec) { s.Sources, s.Volume = nil, "v" }, ""},
		{"two objects and the pod", func(s *Spec) {
			s.Sources = append(s.Sources, s.Sources[0],
				Source{Object: Object{Kind: Pod}})
		}, ""},
		{"no refresh", func(s *Spec) { s.Refresh = "" }, `volumeAttributes[refresh]: Invalid value: "": must be exactly`},
		{"no source", func(s *Spec) { s.Sources = nil }, "volumeAttributes: Required value"},
		{"an unknown kind", func(s *Spec) { s.Sources[0].Object.Kind = "Node" }, "must be a Secret, a ConfigMap or the Pod"},
		{"a name without a kind", func(s *Spec) { s.Sources[0].Object.Kind = "" },
			"must be a Secret, a ConfigMap or the Pod"},
		{"content of the request among others", func(s *Spec) { s.Sources = append(s.Sources, Source{}) },
			"must be a Secret, a ConfigMap or the Pod"},
		{"a kind without a name", func(s *Spec) { s.Sources[0].Object.Name = "" }, "RFC 1123"},
		{"a name that is none", func(s *Spec) { s.Sources[0].Object = Object{ConfigMap, "../x"} }, `Invalid value: "../x"`},
		{"a pod of another name", func(s *Spec) { s.Sources[0].Object = Object{Pod, "x"} }, "neither name nor optional"},
		{"a uid that chown would ignore", func(s *Spec) { s.UID = number(1<<32 - 1) },
			"volumeAttributes[uid]: Invalid value: 4294967295"},
		{"a default user out of range", func(s *Spec) { s.DefaultUser = number(1 << 31) },
			"volumeAttributes[volume]: Invalid value: 2147483648"},
		{"a gid out of range", func(s *Spec) { s.GID = number(1 << 31) }, "volumeAttributes[gid]: Invalid value: 2147483648"},
		{"a setuid mode", func(s *Spec) { s.Sources[0].Mode = 0o4755 }, "volumeAttributes[mode]: Invalid value: 2541"},
		{"Go's own setuid bit", func(s *Spec) { s.Sources[0].Mode = 1<<23 | 0o755 }, "volumeAttributes[mode]: Invalid"},
		{"a sticky dirMode", func(s *Spec) { s.DirMode = 0o1777 }, "volumeAttributes[dirMode]: Invalid value: 1023"},
		{"a refresh that is none", func(s *Spec) { s.Refresh = "soon" }, `volumeAttributes[refresh]: Invalid value: "soon"`},
		{"no layout", func(s *Spec) { s.Layout = "" }, `volumeAttributes[layout]: Invalid value: "": must be exactly`},
		{"a layout that is none", func(s *Spec) { s.Layout = "copies" },
			`volumeAttributes[layout]: Invalid value: "copies"`},
		{"an item's mode", func(s *Spec) { item(s).Mode = number(0o1000) }, "volumeAttributes[mode/b]: Invalid"},
		{"an item's user", func(s *Spec) { item(s).UID = number(1 << 31) }, "volumeAttributes[uid/b]: Invalid"},
		{"an item's path", func(s *Spec) { item(s).Path = "../b" }, `volumeAttributes: Invalid value: "../b"`},
		{"an item's path that is not clean", func(s *Spec) { item(s).Path = "a//b" }, "shortest form"},
		{"an item without a path", func(s *Spec) { item(s).Path = "" }, "must name a file"},
		{"the path of permissions", func(s *Spec) { s.Paths = map[string]Permissions{"/a": {}} },
			"must be relative to the volume"},
		{"permissions", func(s *Spec) { s.Paths = map[string]Permissions{"a": {UID: number(1 << 31)}} },
			"volumeAttributes[uid/a]: Invalid"},
		{"a group of permissions", func(s *Spec) { s.Paths = map[string]Permissions{"a": {GID: number(1 << 31)}} },
			"volumeAttributes[gid/a]: Invalid"},
		{"a mode of permissions", func(s *Spec) { s.Paths = map[string]Permissions{"a": {Mode: number(0o1000)}} },
			"volumeAttributes[mode/a]: Invalid"},
		{"a template", func(s *Spec) { s.Templates = map[string]Template{"a": "$(b)"} }, ""},
		{"the path of a template", func(s *Spec) { s.Templates = map[string]Template{"../a": "b"} },
			`Invalid value: "../a"`},
		{"an empty template", func(s *Spec) { s.Templates = map[string]Template{"a": ""} },
			"volumeAttributes[template/a]: Invalid value: must have 1 to 16384 bytes"},
		{"a template of a file elsewhere", func(s *Spec) { s.Templates = map[string]Template{"a": "$(../b)"} },
			`volumeAttributes[template/a]: Invalid value: "$(../b)"`},
		{"a mount point", func(s *Spec) { s.MountPoints = []string{"../a"} }, `Invalid value: "../a"`},
		{"a subPath", func(s *Spec) { s.SubPaths = []string{"/a"} }, `Invalid value: "/a"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec := good()
			tc.change(&spec)
			got := messages(Validate(spec))
			if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) || strings.Contains(got, "\n") {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestCleanPath(t *testing.T) {
	for path, want := range map[string]string{
		"a": "a", "a/b": "a/b", ".a": ".a", "a..b": "a..b", "a/..b": "a/..b", "a/...": "a/...", "a b": "a b", " ": " ",
		"ключ": "ключ",
		"a/":   "a", "a//b": "a/b", "./a": "a", "a/./b": "a/b", "certs.d/host:5000/ca.crt": "certs.d/host:5000/ca.crt",
		`a\b`: `a\b`, "a\n": "a\n", "a\tb": "a\tb", "…": "…", strings.Repeat("e", 255): strings.Repeat("e", 255),
	} {
		if got, problem := CleanPath(path); got != want || problem != "" {
			t.Errorf("%q: got %q, %q, want %q", path, got, problem, want)
		}
	}
	for path, want := range map[string]string{
		"": "must name a file", ".": "must name a file", "./": "must name a file", "/": "relative", "/a": "relative",
		"//a": "relative", "..": "element '..'", "../a": "element '..'", "a/../b": "element '..'", "a/..": "element '..'",
		"..a":   "must not start with '..'",
		"./..a": "must not start with '..'", "...": "must not start with '..'", "..data/a": "must not start with '..'",
		"a\x00":                  "NUL",
		strings.Repeat("e", 256): "255 bytes", "a/" + strings.Repeat("é", 128): "255 bytes",
		strings.Repeat("a/", 2049): "4096 bytes",
	} {
		if got, problem := CleanPath(path); got != "" || !strings.Contains(problem, want) {
			t.Errorf("%.40q: got %q, %q, want %q", path, got, problem, want)
		}
	}
}
