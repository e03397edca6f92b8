// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

var update = flag.Bool("update", false, "write what convert does now to testdata, to be read and committed")

// example is a file of testdata.
type example struct {
	name string // to-driver/list
	path string
	text string
	o    Options
}

func examples(t testing.TB) []example {
	t.Helper()
	var all []example
	for _, dir := range []string{"to-driver", "to-native"} {
		paths, err := filepath.Glob(filepath.Join("testdata", dir, "*"))
		if err != nil || len(paths) < 5 {
			t.Fatalf("testdata/%s: %q, %v", dir, paths, err)
		}
		for _, path := range paths {
			if strings.Contains(path, ".golden.") {
				continue
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, example{
				name: dir + "/" + strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)), path: path, text: string(text), o: Options{Native: dir == "to-native"},
			})
		}
	}
	return all
}

func converted(text string, o Options) Result { return File(manifest.Parse("in", text), o) }

func lefts(r Result) string {
	var lines []string
	for _, l := range r.Left {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%d: %s %s: %s", l.Line, l.Object, l.Volume, l.Reason))+"\n")
	}
	return strings.Join(lines, "")
}

func TestGolden(t *testing.T) {
	for _, e := range examples(t) {
		t.Run(e.name, func(t *testing.T) {
			r := converted(e.text, e.o)
			extension := filepath.Ext(e.path)
			base := strings.TrimSuffix(e.path, extension)
			golden(t, base+".golden"+extension, r.Text)
			golden(t, base+".golden.left.txt", lefts(r))
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		if got == "" {
			os.Remove(path)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil && !(os.IsNotExist(err) && got == "") {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s says otherwise (-update writes it anew):\n%s", path, got)
	}
}

// onlyMeaning are the examples that come back in other words, with the same meaning.
var onlyMeaning = []string{"to-native/once"}

func TestThereAndBackChangesNothing(t *testing.T) {
	for _, e := range examples(t) {
		for _, o := range []struct {
			name string
			text string
		}{{"", e.text}, {" with CRLF", strings.ReplaceAll(e.text, "\n", "\r\n")}, {" without a last line break", strings.TrimSuffix(e.text, "\n")}} {
			t.Run(e.name+o.name, func(t *testing.T) {
				there := converted(o.text, e.o)
				if there.Text == o.text {
					if there.Converted != 0 || !strings.Contains(e.name, "left") {
						t.Fatalf("%d were converted, and nothing has changed", there.Converted)
					}
					return
				}
				// A volume of the other side that was there before would go along.
				if strings.HasSuffix(e.name, "to-driver/left") {
					o.text = strings.ReplaceAll(o.text, "driver: fsuser.csi.io", "driver: other")
					there = converted(o.text, e.o)
				}
				back := converted(there.Text, Options{Native: !e.o.Native})
				if back.Converted != there.Converted {
					t.Errorf("%d there, %d back: %v", there.Converted, back.Converted, back.Left)
				}
				if slices.Contains(onlyMeaning, e.name) {
					again := converted(back.Text, e.o)
					if again.Text != there.Text {
						t.Errorf("it means another thing:\n%s\nand before\n%s", again.Text, there.Text)
					}
					return
				}
				if back.Text != o.text {
					t.Errorf("it is now\n%s\nafter\n%s", back.Text, there.Text)
				}
			})
		}
	}
}

// In brackets with a mode of their own nothing can tell that there was no defaultUser: the owner stays, and convert says so.
func TestThePodsUserStaysWhereNothingTellsThatItWasNotThere(t *testing.T) {
	const yaml = "kind: Pod\nspec: {securityContext: {runAsUser: 5}, containers: [{name: c}], volumes: [{name: v, secret: {secretName: s, defaultMode: 0400}}]}\n"
	const json = `{"kind": "Pod", "spec": {"securityContext": {"runAsUser": 5}, "containers": [{"name": "c"}], "volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}`
	for _, test := range []struct{ name, text, want string }{
		{"YAML", yaml, strings.Replace(yaml, "0400}", "0400, defaultUser: 5}", 1)},
		{"JSON", json, strings.Replace(json, `"s"}`, `"s", "defaultUser": 5}`, 1)},
	} {
		there := converted(test.text, Options{})
		back := converted(there.Text, Options{Native: true})
		if there.Converted != 1 || len(there.Notes) != 0 || back.Text != test.want || len(back.Notes) != 1 || !strings.Contains(back.Notes[0].Text, "defaultUser: 5") {
			t.Errorf("%s: back it is\n%s\nafter\n%s\nwith the notes %v", test.name, back.Text, there.Text, back.Notes)
		}
	}
	comment := "volumeAttributes: # without uid the files belong to the pod's runAsUser"
	there := converted("kind: Pod\nspec:\n  securityContext: {runAsUser: 5}\n  containers: [{name: c}]\n  volumes:\n  - name: v\n    secret:\n      secretName: s\n", Options{}).Text
	back := converted(strings.Replace(there, comment, "volumeAttributes:", 1), Options{Native: true}).Text
	if !strings.Contains(there, comment) || !strings.Contains(back, "defaultUser: 5 # the pod's runAsUser") {
		t.Errorf("without the comment it is back\n%s\nafter\n%s", back, there)
	}
}

func TestDecimalModesAreNoted(t *testing.T) {
	const json = `{"kind": "Pod", "spec": {"containers": [], "volumes": [{"name": "v", "secret": %s}]}}`
	for _, test := range []struct{ format, source, want string }{
		{"kind: Pod\nspec: {containers: [], volumes: [{name: v, secret: %s}]}\n", "{secretName: s, defaultMode: 400}",
			"2 Pod/* v: defaultMode: 400 is decimal and means 0620, which it still does; if 0400 was meant, write 0400, and convert again"},
		{"kind: Pod\nspec: {containers: [], volumes: [{name: v, projected: %s}]}\n", "{sources: [{secret: {name: s, items: [{key: a, path: a, mode: 440}]}}]}",
			"2 Pod/* v: sources[0].secret.items[0].mode: 440 is decimal and means 0670, which it still does; if 0440 was meant, write 0440, and convert again"},
		{json, `{"secretName": "s", "defaultMode": 400}`, "1 Pod/* v: defaultMode: 400 is decimal and means 0620, which it still does; if 0400 was meant, write 256, and convert again"},
		{json, `{"secretName": "s", "defaultMode": 256}`, ""},
		{json, `{"secretName": "s", "defaultMode": 420}`, ""},
		{"kind: Pod\nspec: {containers: [], volumes: [{name: v, secret: %s}]}\n", "{secretName: s, defaultMode: 0400}", ""},
		{"kind: Pod\nspec: {containers: [], volumes: [{name: v, secret: %s}]}\n", "{secretName: s, defaultMode: 600}", ""}, // stays as it is
	} {
		r := converted(fmt.Sprintf(test.format, test.source), Options{})
		var got []string
		for _, n := range r.Notes {
			got = append(got, fmt.Sprintf("%d %s %s: %s", n.Line, n.Object, n.Volume, n.Text))
		}
		if strings.Join(got, "\n") != test.want {
			t.Errorf("%s: %q, want %q", test.source, got, test.want)
		}
	}
}

func TestTheSameWithEveryLineBreak(t *testing.T) {
	for _, e := range examples(t) {
		want := strings.ReplaceAll(converted(e.text, e.o).Text, "\n", "\r\n")
		if got := converted(strings.ReplaceAll(e.text, "\n", "\r\n"), e.o).Text; got != want {
			t.Errorf("%s: with CRLF it is\n%q\nwant\n%q", e.name, got, want)
		}
		if got, want := converted("\ufeff"+e.text, e.o).Text, "\ufeff"+converted(e.text, e.o).Text; got != want {
			t.Errorf("%s: after a byte order mark it is\n%q\nwant\n%q", e.name, got, want)
		}
	}
}

func TestASecondTimeChangesNothing(t *testing.T) {
	for _, e := range examples(t) {
		once := converted(e.text, e.o)
		twice := converted(once.Text, e.o)
		if twice.Text != once.Text || twice.Converted != 0 || len(twice.Left) != len(once.Left) {
			t.Errorf("%s: a second time %d are converted, %d left (%d before):\n%s", e.name, twice.Converted, len(twice.Left), len(once.Left), twice.Text)
		}
	}
}

func TestCommentsSurvive(t *testing.T) {
	for _, e := range examples(t) {
		out := converted(e.text, e.o).Text
		for line := range strings.Lines(e.text) {
			if _, comment, found := strings.Cut(line, "# "); found && strings.Count(out, "# "+comment) != strings.Count(e.text, "# "+comment) {
				t.Errorf("%s: the comment %q is gone, or there twice:\n%s", e.name, comment, out)
			}
		}
	}
}

func TestWhatOnlyFSGroupMakesReadableStays(t *testing.T) {
	uid := uint32(7)
	for _, test := range []struct {
		name           string
		pod, container string // its securityContext
		volume         string
		o              Options
		stays          bool
	}{
		{"a mode without the group", "fsGroup: 5", "", "secret: {secretName: s, defaultMode: 0400}", Options{}, true},
		{"of a ConfigMap", "fsGroup: 0", "", "configMap: {name: c, defaultMode: 0604}", Options{}, true},
		{"of an item", "fsGroup: 5", "", "secret: {secretName: s, items: [{key: a, path: a}, {key: b, path: b, mode: 0400}]}", Options{}, true},
		{"of the other items", "fsGroup: 5", "", "secret: {secretName: s, defaultMode: 0400, items: [{key: a, path: a, mode: 0440}, {key: b, path: b}]}", Options{}, true},
		{"of a source", "fsGroup: 5", "", "projected: {defaultMode: 0400, sources: [{downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name}}]}}]}", Options{}, true},
		{"no user in common", "fsGroup: 5", "runAsUser: 6", "secret: {secretName: s, defaultMode: 0400}", Options{}, true},
		{"a group is no owner", "fsGroup: 5", "", "secret: {secretName: s, defaultMode: 0400}", Options{GID: &uid}, true},

		{"the default", "fsGroup: 5", "", "secret: {secretName: s}", Options{}, false},
		{"a mode with the group", "fsGroup: 5", "", "secret: {secretName: s, defaultMode: 0440}", Options{}, false},
		{"no group", "", "", "secret: {secretName: s, defaultMode: 0400}", Options{}, false},
		{"--uid", "fsGroup: 5", "", "secret: {secretName: s, defaultMode: 0400}", Options{UID: &uid}, false},
		{"defaultUser", "fsGroup: 5", "", "secret: {secretName: s, defaultMode: 0400, defaultUser: 6}", Options{}, false},
		{"the pod's user", "fsGroup: 5, runAsUser: 6", "", "secret: {secretName: s, defaultMode: 0400}", Options{}, false},
		{"the item's user", "fsGroup: 5", "", "secret: {secretName: s, items: [{key: a, path: a}, {key: b, path: b, mode: 0400, user: 6}]}", Options{}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := fmt.Sprintf("kind: Pod\nspec: {securityContext: {%s}, containers: [{name: a, securityContext: {%s}}, {name: b}], volumes: [{name: v, %s}]}\n",
				test.pod, test.container, test.volume)
			r := converted(text, test.o)
			if stayed := len(r.Left) == 1; stayed != test.stays || r.Converted+len(r.Left) != 1 || stayed != (r.Text == text) {
				t.Fatalf("stayed %v, want %v: %v\n%s", stayed, test.stays, r.Left, r.Text)
			}
			if test.stays && !(strings.Contains(r.Left[0].Reason, "fsGroup") && strings.Contains(r.Left[0].Reason, "--uid")) {
				t.Errorf("it does not say why, or what to do: %s", r.Left[0].Reason)
			}
		})
	}
}
