// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// TestNoSpace gives a volume that holds one version every number of pages, or of inodes, from what this version takes
// to what both take, so that the write of the next fails at each of its steps in turn.
func TestNoSpace(t *testing.T) {
	before := payload(file("a", strings.Repeat("a", 5000)), file("d/b", "b"))
	after := payload(file("a", strings.Repeat("A", 9000)), file("d/e/b", "B"), file("d/e/c", "C"), file("new", "N"),
		file(strings.Repeat("n", 255), "a name whose link takes a page"))
	for _, limit := range []struct {
		name      string
		from, to  int
		options   func(n int) string
		wantSteps []string
	}{
		{"inodes", 8, 40, func(n int) string { return fmt.Sprintf("nr_inodes=%d", n) },
			[]string{"make directory", "create", "publish new generation", "make visible links"}},
		{"pages", 3, 20, func(n int) string { return fmt.Sprintf("size=%dk", 4*n) },
			[]string{"file \"a\"", "make visible links"}},
	} {
		t.Run(limit.name, func(t *testing.T) {
			testkit.NothingLeft(t)
			failures := map[string]bool{}
			succeeded := false
			for n := limit.from; n <= limit.to; n++ {
				dir := newVolume(t, limit.options(n))
				if _, err := tryWrite(t, dir, before); err != nil {
					if !errors.Is(err, unix.ENOSPC) {
						t.Fatalf("%d: first version: %v", n, err)
					}
					continue
				}
				// Twice: a failure must not eat up the room for the next try.
				for range 2 {
					changed, err := tryWrite(t, dir, after)
					switch {
					case err == nil:
						succeeded = true
						check(t, dir, after)
					case !errors.Is(err, unix.ENOSPC):
						t.Fatalf("%d: %v", n, err)
					case !changed && look(t, filepath.Join(dir, "..data", "a")).content[0] == 'a':
						// The old version, and not a trace of the new.
						check(t, dir, before)
					default:
						// The new version is published, and a link of it is missing.
						if got := look(t, filepath.Join(dir, "..data", "d/e/c")); got.content != "C" {
							t.Errorf("%d: changed is true, but ..data shows %v", n, got)
						}
					}
					if err != nil {
						failures[err.Error()] = true
					}
				}
				// With room, all is put right.
				if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=1m,nr_inodes=1000"); err != nil {
					t.Fatal(err)
				}
				write(t, dir, after)
			}
			if !succeeded {
				t.Error("no limit was high enough: the failures above show nothing")
			}
			for _, step := range limit.wantSteps {
				found := false
				for f := range failures {
					found = found || strings.Contains(f, step)
				}
				if !found {
					t.Errorf("no write failed at %q; it failed with %v", step, failures)
				}
			}
		})
	}
	reliability.Shown(t, "F-16",
		"a write that runs out of inodes or pages at each of its steps, from the first page to enough")
}

func TestNoSpaceForTheFirstVersion(t *testing.T) {
	testkit.NothingLeft(t)
	dir := newVolume(t, "size=64k")
	changed, err := tryWrite(t, dir, payload(file("small", "x"), file("large", strings.Repeat("x", 1<<20))))
	if !errors.Is(err, unix.ENOSPC) || changed {
		t.Errorf("changed %v, error %v", changed, err)
	}
	if got := walk(t, dir); len(got) != 1 {
		t.Errorf("left: %q", got)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Bfree != st.Blocks {
		t.Errorf("%d of %d pages are in use, error %v", st.Blocks-st.Bfree, st.Blocks, err)
	}
}
