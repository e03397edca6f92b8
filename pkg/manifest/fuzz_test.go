// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"
)

// FuzzParse compares the values that this package reads with those that kubectl's decoder reads.
func FuzzParse(f *testing.F) {
	paths, err := filepath.Glob("../convert/testdata/*/*.yaml")
	if err != nil || len(paths) < 10 {
		f.Fatal(paths, err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	for _, text := range []string{
		"a: yes\nb: 0o17\nc: 017\nd: 1_000\ne: 0x1F\nf: ~\ng:\nh: 1e3\ni: 2001-01-01\nj: .inf\nk: 'no'\nl: !!str 1\n",
		"a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n  e: 2\nf: {<<: [*x, {b: 2, g: 3}], b: 4}\n",
		"a: |\n  x\n  y\nb: >-\n  z\n\n  w\nc: \"\\u263a\"\nd: a\n  b\n",
		"{\"a\": [1, 2.5, true, null, \"x\"]}\n{\"b\": 1}",
		"\ufeffa: ü\u2028b: 1",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, d := range Parse("in", text).Documents {
			if d.Text != text[d.Start:d.Start+len(d.Text)] && d.Start >= 0 {
				t.Fatalf("the document at %d is %q", d.Start, d.Text)
			}
			if d.Err != nil || d.Root.Kind == Absent {
				continue
			}
			places(t, d.Root)
			mine := d.Root.Any(func(_ string, _ *Node, value any) any { return value })
			if !ordinary(d) {
				continue
			}
			var theirs any
			if yaml.Unmarshal([]byte(d.Text), &theirs) != nil {
				continue
			}
			a, errA := json.Marshal(mine)
			b, errB := json.Marshal(theirs)
			if errA == nil && errB == nil && string(a) != string(b) {
				t.Errorf("%q is read as\n%s\nand by kubectl as\n%s", d.Text, a, b)
			}
		}
	})
}

// emptyTag matches a tag that the decoder does not report.
var emptyTag = regexp.MustCompile(`!(\s|$)`)

// ordinary reports whether a document has no tags and only strings as keys. All objects of Kubernetes are like that,
// and the decoders differ for other documents.
func ordinary(d *Document) bool {
	root, err := decodeYAML(d.Text)
	if d.JSON || err != nil || emptyTag.MatchString(d.Text) {
		return d.JSON
	}
	var check func(y *yamlv3.Node) bool
	check = func(y *yamlv3.Node) bool {
		if y.Style&yamlv3.TaggedStyle != 0 {
			return false
		}
		for i, child := range y.Content {
			if isKey := y.Kind == yamlv3.MappingNode && i%2 == 0; isKey {
				key, isText := yamlScalar(child.Value, child.Style != 0).(string)
				if child.Kind != yamlv3.ScalarNode || !isText || key == "" {
					return false
				}
			}
			if !check(child) {
				return false
			}
		}
		return true
	}
	return check(root)
}

// places checks that the values are at their reported places.
func places(t *testing.T, n *Node) {
	if text := n.Document.Text; n.Start > len(text) {
		t.Fatalf("a value is at %d of %q", n.Start, text)
	}
	if line, column := n.Position(); line < 1 || column < 1 {
		t.Errorf("a value is at %d:%d", line, column)
	}
	for _, item := range n.Items {
		places(t, item)
	}
	for _, e := range n.Entries {
		places(t, e.Value)
	}
}
