// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode"
)

// FuzzParse checks that Parse never panics, that a list of errors and a Spec exclude each other, that what it accepts passes
// Validate, that a token never appears in a message, and that messages are fit for a log line.
func FuzzParse(f *testing.F) {
	f.Add("secretName", "keys", "uid", "1000", "items", "[{key: a, path: b, mode: 0400}]", false)
	f.Add("configMapName", "conf", "mode", "0444", "items", `[{"key":"a","path":"b/c","mode":"0400","uid":5}]`, false)
	f.Add("dirMode", "0700", "optional", "true", "refresh", "off", true)
	f.Add("secretname", "a/b", "namespace", "x", "sources", "[]", false)
	f.Add("sources", "[{secret: {name: a}}, {configMap: {name: b, items: [{key: k, path: p}]}}]", "mode", "0400", "", "", false)
	f.Add("sources", "- downwardAPI:\n    items:\n    - {path: l, fieldRef: {fieldPath: \"metadata.labels['a']\"}}", "uid", "1", "gid", "2", false)
	f.Add("", "", "secretName", "", "a\nb]", "\xff", true)
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3 string, requestHasSecrets bool) {
		const token = "s3cr3t-t0k3n"
		if strings.Contains(k1+v1+k2+v2+k3+v3, token) {
			t.Skip()
		}
		context := map[string]string{k1: v1, k2: v2, k3: v3, kubeletPrefix + "serviceAccount.tokens": token, kubeletPrefix + token: "x"}
		spec, errs := Parse(context, requestHasSecrets)
		if zero := reflect.DeepEqual(spec, Spec{}); zero != (len(errs) > 0) {
			t.Fatalf("%q: %d errors and %+v", context, len(errs), spec)
		}
		message := text(errs)
		if strings.Contains(message, token) || strings.Count(message, "\n") > maxProblems {
			t.Fatalf("%q: %q", context, message)
		}
		if i := strings.IndexFunc(message, func(r rune) bool { return unicode.IsControl(r) && r != '\n' }); i >= 0 {
			t.Fatalf("%q: control character in %q", context, message)
		}
		if len(message) > maxProblems*1024 {
			t.Fatalf("%d bytes of message", len(message))
		}
		if len(errs) > 0 {
			return
		}
		if errs := Validate(spec); len(errs) > 0 {
			t.Fatalf("%q: Validate refuses what Parse accepted: %s", context, text(errs))
		}
		if again, _ := Parse(context, requestHasSecrets); !again.Equal(spec) {
			t.Fatalf("%q: not the same again: %+v, %+v", context, spec, again)
		}
	})
}

// FuzzItems checks that what is accepted can be written as JSON and read back as the same.
func FuzzItems(f *testing.F) {
	for _, seed := range []string{
		"[]", "null", "[] []", "- key: a\n  path: b\n  mode: 0400\n", `[{"key":"a","path":"b\u00e9","mode":256,"uid":"5","gid":0}]`,
		"[{<<: {key: a}, path: b}]", "[{key: !!str 1, path: !!binary YWJj}]", "[{key: a, path: \"b&c\"}]", "%YAML 1.1\n---\n[]", "[{? key : a, path: b}]",
		"- &a x\n- *a\n", "!!set {a}", "- |\n  a\n", "[{key: a, key: a}]",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		spec, errs := Parse(with("items", list), false)
		if len(errs) > 0 {
			return
		}
		type jsonItem struct {
			Key  string  `json:"key"`
			Path string  `json:"path"`
			Mode *uint32 `json:"mode"`
			UID  *uint32 `json:"uid"`
			GID  *uint32 `json:"gid"`
		}
		items := []jsonItem{}
		for _, item := range spec.Sources[0].Items {
			items = append(items, jsonItem{item.Key, item.Path, item.Mode, item.UID, item.GID})
		}
		written, err := json.Marshal(items)
		if err != nil {
			t.Fatal(err)
		}
		if len(written) > maxListText {
			t.Skip()
		}
		again, errs := Parse(with("items", string(written)), false)
		if len(errs) > 0 || !again.Equal(spec) {
			t.Fatalf("%q became %+v, and %s became %+v, %s", list, spec.Sources, written, again.Sources, text(errs))
		}
	})
}

// FuzzSources checks that no list of sources is accepted that Validate would refuse, and that what is accepted can be projected: each
// source has its object, and no two items have one path.
func FuzzSources(f *testing.F) {
	for _, seed := range []string{
		"[]", "[{}]", "[{secret: {name: a}}]", "- secret: {name: a, optional: true, items: [{key: k, path: p, mode: 256}]}\n- configMap:\n    name: b\n",
		`[{"downwardAPI":{"items":[{"path":"l","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.labels['a/b']"}}]}}]`,
		"[{downwardAPI: {items: [{path: c, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}]}}]",
		"[{serviceAccountToken: {path: t}}]", "[{secret: {name: a}, configMap: {name: a}}]", "[{secret: null}]", "[{secret: a}]",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		spec, errs := Parse(map[string]string{"sources": list}, false)
		if len(errs) > 0 {
			return
		}
		if errs := validate(spec, true); len(errs) > 0 {
			t.Fatalf("%q: Validate refuses what Parse accepted: %s", list, text(errs))
		}
		paths := map[string]bool{}
		for _, source := range spec.Sources {
			if (source.Object.Name == "") != (source.Object.Kind == Pod) {
				t.Fatalf("%q: object %+v", list, source.Object)
			}
			for _, item := range source.Items {
				if paths[item.Path] || len(ValidatePath(item.Path)) > 0 {
					t.Fatalf("%q: path %q", list, item.Path)
				}
				paths[item.Path] = true
			}
		}
	})
}

// FuzzAnchors checks hasAnchor against the decoder: in a text that it lets pass, '&' is a character like any other.
func FuzzAnchors(f *testing.F) {
	for _, seed := range []string{"[&a x]", "[a&b, 'c &']", "- & a", "{a: b&c}", "[\"&\", '&&']", "&", "!!a&b c", "|2&a", "[{k:&a x}]", "*a&b", "?&a b", "# &a\n- b&\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, given string) {
		if strings.Contains(given, "Q") || len(given) > 4096 {
			t.Skip()
		}
		got, err := list{}.entries(given)
		if err != nil {
			return
		}
		want, err := list{}.entries(strings.ReplaceAll(given, "&", "Q"))
		if err != nil {
			t.Fatalf("%q: %v", given, err)
		}
		if g, w := strings.ReplaceAll(fmt.Sprintf("%v", got), "&", "Q"), fmt.Sprintf("%v", want); len(got) != len(want) || len(g) != len(w) {
			t.Fatalf("%q: got %s, want %s", given, g, w)
		}
	})
}

// FuzzNumbers checks that an accepted number is the one that was written.
func FuzzNumbers(f *testing.F) {
	for _, seed := range []string{"0", "0400", "400", "256", "2147483647", "2147483648", "-1", "00400", "1e3", "٤"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, written string) {
		id, problem := idFromText(written)
		if (id == nil) != (problem != "") || id != nil && (fmt.Sprint(*id) != written || *id > maxID) {
			t.Errorf("id %q: %v, %q", written, id, problem)
		}
		mode, problem := modeFromText(written)
		if (mode == nil) != (problem != "") ||
			mode != nil && (*mode > maxMode || len(written) > 4 || strings.TrimLeft(written, "0") != strings.TrimLeft(fmt.Sprintf("%o", *mode), "0")) {
			t.Errorf("mode %q: %v, %q", written, mode, problem)
		}
	})
}

// FuzzValidatePath checks an accepted path against what others make of paths.
func FuzzValidatePath(f *testing.F) {
	for _, seed := range []string{"a", "a/b", "..data", "a/..b", "../a", "./a", "a//b", "/a", "a\x00", "c:", `a\b`, "", strings.Repeat("a", 256)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if len(ValidatePath(p)) > 0 {
			return
		}
		if !fs.ValidPath(p) || !filepath.IsLocal(p) || path.Clean(p) != p || p == "." || strings.HasPrefix(p, "..") || len(p) > 4096 {
			t.Errorf("%q", p)
		}
	})
}
