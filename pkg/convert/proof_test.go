// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"strings"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// No example makes an edit go wrong, so here edits are made that do.
func TestAWrongEditIsNoticed(t *testing.T) {
	const inTree = `kind: Pod
metadata: {name: a, labels: {l: x}}
spec:
  containers: [{name: c, args: [one, two]}]
  volumes:
  - name: v
    secret: {secretName: s, defaultMode: 0400, defaultUser: 5, items: [{key: k, path: p}]}
`
	ours := converted(inTree, Options{}).Text
	for _, test := range []struct {
		name     string
		native   bool
		old, new string // where the edit goes wrong
		wrong    bool   // the volume, and nothing else
	}{
		{"nothing", false, "", "", false},
		{"another value", false, "l: x", "l: y", false},
		{"another key", false, "l: x", "m: x", false},
		{"one key more", false, "l: x", "l: x, m: x", false},
		{"one element less", false, "one, ", "", false},
		{"another type", false, "[one, two]", "{}", false},
		{"no YAML", false, "kind: Pod", "kind: [", false},
		{"two documents", false, "spec:", "---\nspec:", false},
		{"the volume's name", false, "name: v", "name: w", true},
		{"an item's key", false, "key: k", "key: l", true},
		{"an item's path", false, "path: p", "path: q", true},
		{"the object", false, "secretName: s", "secretName: t", true},
		{"an item's key on the way back", true, "key: k", "key: l", true},
		{"the object on the way back", true, "secretName: s", "secretName: t", true},
		{"another value on the way back", true, "l: x", "l: y", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			text, o := inTree, Options{Native: test.native}
			if test.native {
				text = ours
			}
			d := manifest.Parse("in", text).Documents[0]
			pod := d.Objects()[0].Pods()[0]
			c, skip, err := plan(pod, pod.Spec().Get("volumes").Items()[0], o)
			if skip || err != nil {
				t.Fatal(skip, err)
			}
			// Both edits of a value that both change can't be made at once: make the wrong one after the right ones.
			right, ok := apply(d.Text, c.edits)
			if !ok || !strings.Contains(right, test.old) {
				t.Fatalf("the right edits make %q, %v", right, ok)
			}
			c.edits = []edit{{from: 0, to: len(d.Text), text: strings.Replace(right, test.old, test.new, 1)}}
			_, wrong, err := edited(d, []change{c}, o)
			switch {
			case test.old == "" && (err != nil || len(wrong) > 0):
				t.Errorf("what is right is wrong: %v, %v", wrong, err)
			case test.wrong && (err != nil || len(wrong) != 1):
				t.Errorf("the volume is not wrong: %v, %v", wrong, err)
			case test.old != "" && !test.wrong && err == nil:
				t.Errorf("it was not noticed: %v", wrong)
			}
		})
	}
}

func TestOneWrongEditLeavesTheOthers(t *testing.T) {
	var text strings.Builder
	text.WriteString("kind: Pod\nmetadata: {name: a}\nspec:\n  containers: []\n  volumes:\n")
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		text.WriteString("  - name: " + name + "\n    secret: {secretName: s}\n")
	}
	d := manifest.Parse("in", text.String()).Documents[0]
	pod := d.Objects()[0].Pods()[0]
	var changes []change
	for _, volume := range pod.Spec().Get("volumes").Items() {
		c, _, err := plan(pod, volume, Options{})
		if err != nil {
			t.Fatal(err)
		}
		changes = append(changes, c)
	}
	changes[1].edits = []edit{{from: changes[1].volume.Start(), to: changes[1].volume.Start() + 1, text: "}"}} // no YAML
	changes[3].want.Sources[0].Secret.Name = "another"
	good, bad := proven(d, changes, Options{})
	if len(good) != 3 || len(bad) != 2 || bad[0].left.Reason == "" || bad[1].left.Reason == "" {
		t.Errorf("%d good and %d bad: %+v", len(good), len(bad), bad)
	}
}
