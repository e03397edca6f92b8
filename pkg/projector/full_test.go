// SPDX-License-Identifier: Apache-2.0

package projector

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// TestNoSpace writes a second version into volumes of all sizes between that of one version and that of both, in pages
// or in inodes, so that the write fails at each of its steps in turn.
func TestNoSpace(t *testing.T) {
	forEachLayout(t, func(t *testing.T, layout Layout) {
		t.Run("inodes", func(t *testing.T) {
			steps := []string{"make directory", "create"}
			if layout == Links {
				steps = append(steps, "publish new generation", "make visible links")
			}
			noSpace(t, layout, 4, 40, func(n int) string { return fmt.Sprintf("nr_inodes=%d", n) }, steps)
		})
		t.Run("pages", func(t *testing.T) {
			steps := map[Layout][]string{
				Links: {`file "a"`, "make visible links"}, Files: {`file "a"`}, InPlace: {`file "a"`, "reserve"},
			}
			noSpace(t, layout, 3, 20, func(n int) string { return fmt.Sprintf("size=%dk", 4*n) }, steps[layout])
		})
	})
	reliability.Shown(t, "F-16",
		"a write that runs out of inodes or pages at each of its steps, from the first page to enough, with each layout")
}

// noSpace writes one version after another into volumes of each size, and checks the steps at which a write fails.
func noSpace(t *testing.T, layout Layout, from, to int, options func(n int) string, wantSteps []string) {
	testkit.NothingLeft(t)
	before := payload(file("a", strings.Repeat("a", 5000)), file("d/b", "b"))
	after := payload(file("a", strings.Repeat("A", 9000)), file("d/e/b", "B"), file("d/e/c", "C"), file("new", "N"),
		file(strings.Repeat("n", 255), "a name whose link takes a page"))
	before.Layout, after.Layout = layout, layout
	var failures []string
	succeeded := false
	for n := from; n <= to; n++ {
		dir := newVolume(t, options(n))
		if _, err := tryWrite(t, dir, before); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("%d: first version: %v", n, err)
			}
			continue
		}
		// The second try checks that the failure has not used up room.
		for range 2 {
			used := usage(t, dir)
			changed, err := tryWrite(t, dir, after)
			switch {
			case err == nil:
				succeeded = true
				check(t, dir, after)
				continue
			case !errors.Is(err, unix.ENOSPC):
				t.Fatalf("%d: %v", n, err)
			case changed && layout == Links:
				// The new version is published, and one of its links is missing.
				if got := look(t, filepath.Join(dir, "..data", "d/e/c")); got.content != "C" {
					t.Errorf("%d: changed is true, but ..data shows %v", n, got)
				}
			case changed:
				t.Errorf("%d: a part of the new version is visible: %v", n, err)
			default:
				// The volume has the old version, and nothing of the new one.
				check(t, dir, before)
				if now := usage(t, dir); now != used {
					t.Errorf("%d: the failed write has left something: %s, before: %s", n, now, used)
				}
			}
			failures = append(failures, err.Error())
		}
		// With enough room, the write completes the version.
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=1m,nr_inodes=1000"); err != nil {
			t.Fatal(err)
		}
		write(t, dir, after)
	}
	if !succeeded {
		t.Error("no limit was high enough: the failures above show nothing")
	}
	for _, step := range wantSteps {
		if !slices.ContainsFunc(failures, func(f string) bool { return strings.Contains(f, step) }) {
			t.Errorf("no write failed at %q; it failed with %q", step, failures)
		}
	}
}

// usage returns the usage of the tmpfs at dir as text.
func usage(t *testing.T, dir string) string {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d pages and %d inodes", st.Blocks-st.Bfree, st.Files-st.Ffree)
}

func TestNoSpaceForTheFirstVersion(t *testing.T) {
	forEachLayout(t, func(t *testing.T, layout Layout) {
		testkit.NothingLeft(t)
		dir := newVolume(t, "size=64k")
		p := payload(file("small", "x"), file("large", strings.Repeat("x", 1<<20)))
		p.Layout = layout
		changed, err := tryWrite(t, dir, p)
		if !errors.Is(err, unix.ENOSPC) || changed {
			t.Errorf("changed %v, error %v", changed, err)
		}
		if got := walk(t, dir); len(got) != 1 {
			t.Errorf("left: %q", got)
		}
		if got, want := usage(t, dir), "0 pages and 1 inodes"; got != want {
			t.Errorf("%s are in use, want %s", got, want)
		}
	})
}
