// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

var update = flag.Bool("update", false, "write what lint says now to testdata, to be read and committed")

func examples(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"testdata/*.yaml", "testdata/*.json"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatal(pattern, paths, err)
		}
		all = append(all, paths...)
	}
	return all
}

func TestGolden(t *testing.T) {
	for _, path := range examples(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := said(filepath.Base(path), string(text))
			golden := path + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("lint says (-update writes it to testdata)\n%s\nwant\n%s", got, want)
			}
			// With CRLF line breaks, the problems are at the same places.
			if got := said(filepath.Base(path), strings.ReplaceAll(string(text), "\n", "\r\n")); got != string(want) {
				t.Errorf("with CRLF it says\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func said(name, text string) string {
	var lines []string
	for _, p := range File(manifest.Parse(name, text)).Problems {
		lines = append(lines, p.String()+"\n")
	}
	return strings.Join(lines, "")
}

func TestWhatWasLookedAtIsCounted(t *testing.T) {
	for _, test := range []struct {
		path       string
		volumes    int
		unreadable bool
	}{{"good.yaml", 6, false}, {"volumes.yaml", 8, false}, {"unreadable.yaml", 1, true}} {
		text, err := os.ReadFile(filepath.Join("testdata", test.path))
		if err != nil {
			t.Fatal(err)
		}
		if r := File(manifest.Parse(test.path, string(text))); r.Volumes != test.volumes || r.Unreadable != test.unreadable {
			t.Errorf("%s: %d volumes, unreadable %v; want %d, %v", test.path, r.Volumes, r.Unreadable, test.volumes,
				test.unreadable)
		}
	}
}

// People copy the project's own examples.
func TestExamplesAreGood(t *testing.T) {
	paths, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if r := File(manifest.Parse(path, string(text))); len(r.Problems) > 0 || r.Volumes == 0 &&
			!strings.Contains(string(text), attributes.AnnotationFSUser) {
			t.Errorf("%s: %d volumes, problems %v", path, r.Volumes, r.Problems)
		}
	}
}

func FuzzFile(f *testing.F) {
	for _, path := range examples(f) {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		lines := 1 + strings.Count(text, "\n")
		for _, p := range File(manifest.Parse("in", text)).Problems {
			if p.Line < 1 || p.Line > lines || p.Column < 1 || p.Message == "" || strings.Contains(p.Message, "\n") {
				t.Errorf("of %d lines: %+v", lines, p)
			}
		}
	})
}
