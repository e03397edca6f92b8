// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

var update = flag.Bool("update", false, "write what convert does now to testdata, to be read and committed")

// example is a file of testdata.
type example struct {
	path, text string
	options    Options
}

func examples(t testing.TB) (all []example) {
	t.Helper()
	for dir, minimum := range map[string]int{"to-driver": 10, "back": 2} {
		paths, err := filepath.Glob(filepath.Join("testdata", dir, "*"))
		if err != nil || len(paths) < minimum {
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
			all = append(all, example{path, string(text), Options{Back: dir == "back"}})
		}
	}
	return all
}

func converted(text string, o Options) Result { return File(manifest.Parse("in", text), o) }

func TestGolden(t *testing.T) {
	for _, e := range examples(t) {
		t.Run(e.path, func(t *testing.T) {
			r := converted(e.text, e.options)
			var left strings.Builder
			for _, l := range r.Left {
				fmt.Fprintf(&left, "%d: %s %s: %s\n", l.Line, l.Object, l.Volume, l.Reason)
			}
			for _, n := range r.Notes {
				fmt.Fprintf(&left, "note: %d: %s %s: %s\n", n.Line, n.Object, n.Volume, n.Reason)
			}
			extension := filepath.Ext(e.path)
			base := strings.TrimSuffix(e.path, extension)
			golden(t, base+".golden"+extension, r.Text)
			golden(t, base+".golden.left.txt", left.String())
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
		t.Errorf("%s differs (-update writes it anew):\n%s", path, got)
	}
}

// variants returns an example with other line breaks.
func (e example) variants() map[string]string {
	return map[string]string{
		"as it is": e.text, "with CRLF": strings.ReplaceAll(e.text, "\n", "\r\n"),
		"without a last line break": strings.TrimSuffix(e.text, "\n"), "with a byte order mark": "\ufeff" + e.text,
	}
}

func TestThereAndBackChangesNothing(t *testing.T) {
	uid := uint32(1000)
	for _, e := range examples(t) {
		for name, text := range e.variants() {
			for _, o := range []Options{{}, {UID: &uid, GID: &uid}} {
				there := converted(text, o)
				back := converted(there.Text, Options{Back: true})
				// The conversion back also converts volumes of the driver that were there before.
				if want := converted(text, Options{Back: true}); back.Text != want.Text {
					t.Errorf("%s %s comes back as\n%s\nwant\n%s", e.path, name, back.Text, want.Text)
				}
				if there.Converted > 0 && there.Text == text {
					t.Errorf("%s: %d were converted, and nothing has changed", e.path, there.Converted)
				}
				again := converted(there.Text, o)
				if again.Converted != 0 || again.Text != there.Text || len(again.Left) != len(there.Left) {
					t.Errorf("%s %s: a second time %d are converted, %d left (%d before):\n%s", e.path, name, again.Converted,
						len(again.Left), len(there.Left), again.Text)
				}
			}
		}
	}
}

func TestLineBreaksAndByteOrderMarksAreKept(t *testing.T) {
	for _, e := range examples(t) {
		plain := converted(e.text, e.options).Text
		if got, want := converted(strings.ReplaceAll(e.text, "\n", "\r\n"), e.options).Text,
			strings.ReplaceAll(plain, "\n", "\r\n"); got != want {
			t.Errorf("%s: with CRLF it is\n%q\nwant\n%q", e.path, got, want)
		}
		if got, want := converted("\ufeff"+e.text, e.options).Text, "\ufeff"+plain; got != want {
			t.Errorf("%s: after a byte order mark it is\n%q\nwant\n%q", e.path, got, want)
		}
	}
}

func TestOwners(t *testing.T) {
	uid, gid := uint32(7), uint32(8)
	for _, test := range []struct {
		name    string
		source  string
		options Options
		want    string // the expected attributes
	}{
		{"none", "secret: {secretName: s}", Options{}, "{volume: v}"},
		{"both", "secret: {secretName: s}", Options{UID: &uid, GID: &gid}, `{volume: v, uid: "7", gid: "8"}`},
		{"the volume's own user comes first", "configMap: {name: c, defaultUser: 5}", Options{UID: &uid}, "{volume: v}"},
		{"a file's own user does not stand for all", "secret: {secretName: s, items: [{key: a, path: a, user: 5}]}",
			Options{UID: &uid}, `{volume: v, uid: "7"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := fmt.Sprintf("kind: Pod\nspec: {containers: [{name: c, volumeMounts: [{name: v, mountPath: /v}]}], volumes: "+
				"[{name: v, %s}]}\n", test.source)
			r := converted(text, test.options)
			if r.Converted != 1 || !strings.Contains(r.Text, "volumeAttributes: "+test.want+"}}") {
				t.Errorf("%d converted, %v:\n%s", r.Converted, r.Left, r.Text)
			}
		})
	}
}

// No example makes an edit go wrong, so this test makes wrong edits itself.
func TestAWrongEditIsNoticed(t *testing.T) {
	const text = `kind: Pod
metadata: {name: a, labels: {l: x}}
spec:
  containers: [{name: c, volumeMounts: [{name: v, mountPath: /v}]}]
  volumes:
  - name: v
    secret: {secretName: s}
`
	for _, test := range []struct{ name, old, new string }{
		{"another value", "l: x", "l: y"},
		{"another key", "l: x", "m: x"},
		{"one key more", "l: x", "l: x, m: x"},
		{"another type", "{l: x}", "[]"},
		{"no YAML", "kind: Pod", "kind: ["},
		{"two documents", "spec:", "---\nspec:"},
		{"the volume's name", "- name: v", "- name: w"},
		{"the object", "secretName: s", "secretName: t"},
		{"bytes that mean nothing", "l: x}}", "l: x} }"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := manifest.Parse("in", text).Documents[0]
			changes := plan(d, Options{}).changes
			if _, ok := apply(d, Options{}, changes); !ok || len(changes) != 1 {
				t.Fatalf("without a wrong edit it is refused: %+v", changes)
			}
			at := strings.Index(text, test.old)
			changes[0].edits = append(changes[0].edits, edit{at, at + len(test.old), test.new})
			if got, ok := apply(d, Options{}, changes); ok {
				t.Errorf("it is taken:\n%s", got)
			}
		})
	}
}

func FuzzConvert(f *testing.F) {
	for _, e := range examples(f) {
		for _, text := range e.variants() {
			f.Add(text)
			f.Add(converted(text, e.options).Text)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		before := manifest.Parse("in", text)
		there := File(before, Options{})
		after := manifest.Parse("out", there.Text)
		if there.Converted == 0 && there.Text != text {
			t.Fatalf("nothing was converted, but it is now %q", there.Text)
		}
		if len(after.Documents) != len(before.Documents) {
			t.Fatalf("%d documents were %d before: %q", len(after.Documents), len(before.Documents), there.Text)
		}
		for i, d := range before.Documents {
			if now := after.Documents[i]; !reflect.DeepEqual(now.Err == nil, d.Err == nil) {
				t.Errorf("document %d: %v, before %v", i, now.Err, d.Err)
			}
		}
		if again := File(after, Options{}); again.Text != there.Text {
			t.Errorf("a second time it becomes %q, and was %q", again.Text, there.Text)
		}
		was, now := File(before, Options{Back: true}), File(after, Options{Back: true})
		if now.Text != was.Text {
			t.Errorf("it comes back as %q, want %q; between it was %q", now.Text, was.Text, there.Text)
		}
		if was.Converted == 0 && now.Text != text {
			t.Errorf("it comes back as %q; between it was %q", now.Text, there.Text)
		}
	})
}
