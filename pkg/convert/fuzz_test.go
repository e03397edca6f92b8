// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"strings"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

func FuzzConvert(f *testing.F) {
	for _, e := range examples(f) {
		f.Add(e.text, e.o.Native)
		f.Add(strings.ReplaceAll(e.text, "\n", "\r\n"), e.o.Native)
		f.Add(converted(e.text, e.o).Text, !e.o.Native)
	}
	f.Fuzz(func(t *testing.T, text string, native bool) {
		before := manifest.Parse("in", text)
		o := Options{Native: native}
		there := File(before, o)
		after := manifest.Parse("out", there.Text)
		if there.Converted == 0 && there.Text != text {
			t.Fatalf("nothing was converted, but it is now %q", there.Text)
		}
		if len(after.Documents) != len(before.Documents) {
			t.Fatalf("%d documents were %d before: %q", len(after.Documents), len(before.Documents), there.Text)
		}
		for i, d := range before.Documents {
			switch now := after.Documents[i]; {
			case (now.Err == nil) != (d.Err == nil):
				t.Errorf("document %d: %v, before %v", i, now.Err, d.Err)
			case len(d.Objects()) == 0 && now.Text != d.Text:
				t.Errorf("document %d has no object, but it is %q, before %q", i, now.Text, d.Text)
			case native && !strings.Contains(d.Text, "csi") && now.Text != d.Text:
				t.Errorf("document %d has no volume of the driver, but it is %q, before %q", i, now.Text, d.Text)
			}
		}
		if again := File(after, o); again.Text != there.Text {
			t.Errorf("a second time it becomes %q, and was %q", again.Text, there.Text)
		}
		// Whatever comes back goes there again, if nothing of the other side was there before.
		if there.Converted == 0 || native || strings.Contains(text, attributes.Driver) {
			return
		}
		back := File(after, Options{Native: true})
		if len(back.Notes) > 0 { // what was not to be seen before is written out
			return
		}
		if again := converted(back.Text, o); len(back.Left) == len(unreadable(there)) && len(there.Left) == len(back.Left) && again.Text != there.Text {
			t.Errorf("there it was %q, back %q, and there again %q", there.Text, back.Text, again.Text)
		}
	})
}

func unreadable(r Result) []Left {
	var all []Left
	for _, l := range r.Left {
		if l.Object == "" {
			all = append(all, l)
		}
	}
	return all
}
