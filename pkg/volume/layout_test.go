// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLayouts shows the effect of a change on a file that a container has mounted by subPath, and on the file itself.
func TestLayouts(t *testing.T) {
	for layout, want := range map[string]struct{ link, follows bool }{
		"links": {link: true}, "files": {}, "in-place": {follows: true},
	} {
		t.Run(layout, func(t *testing.T) {
			h := newHarness(t)
			h.secret("keys", content{"k": "before"})
			r := h.request("app", "secretName", "keys", "layout", layout, "uid", "1000")
			h.publish(r)
			h.present(r, content{"k": "before"})
			path := filepath.Join(r.TargetPath, "k")
			info, err := os.Lstat(path)
			must(t, err)
			if link := info.Mode()&os.ModeSymlink != 0; link != want.link {
				t.Errorf("the file is a link: %v", link)
			}
			mounted := filepath.Join(t.TempDir(), "k")
			must(t, os.WriteFile(mounted, nil, 0o600))
			must(t, unix.Mount(path, mounted, "", unix.MS_BIND, ""))
			defer func() { must(t, unix.Unmount(mounted, 0)) }()

			h.run()
			h.secret("keys", content{"k": "after", "more": ""})
			h.becomes(r, content{"k": "after", "more": ""})
			b, err := os.ReadFile(mounted)
			must(t, err)
			if follows := string(b) == "after"; follows != want.follows {
				t.Errorf("the mounted file shows %q", b)
			}
			h.secret("keys", content{"more": ""})
			h.becomes(r, content{"more": ""})
			h.unpublish(r)
		})
	}
}

// A process was killed while it made a version visible. The next process completes the version although the API server
// does not answer, even if the record of the volume is lost.
func TestAHalfVisibleVersionIsCompleted(t *testing.T) {
	for _, layout := range []string{"files", "in-place"} {
		for name, start := range map[string]func(*harness, Request){
			"restart":        func(h *harness, _ Request) { h.restart(); h.run() },
			"without record": func(h *harness, r Request) { h.loseRecords(); h.run(); h.publish(r) },
		} {
			t.Run(layout+", "+name, func(t *testing.T) {
				h := newFakeHarness(t)
				h.secret("keys", content{"a": "before", "b": "before"})
				r := h.request("app", "secretName", "keys", "layout", layout, "uid", "1000")
				h.publish(r)
				h.end()
				killedWriter(t, r, content{"a": "after, and longer", "b": "after"})
				h.fake.hang(secretRef("keys"))
				start(h, r)
				h.becomes(r, content{"a": "after, and longer", "b": "after"})
				if left, err := filepath.Glob(filepath.Join(r.TargetPath, "..*")); err != nil || len(left) > 0 {
					t.Errorf("left: %q, %v", left, err)
				}
				if log := logged.Text(); name == "restart" && strings.Contains(log, "Not refreshed") {
					t.Errorf("the log tells of a failure:\n%s", log)
				}
				h.secret("keys", content{"a": "newer", "b": "after"})
				h.becomes(r, content{"a": "newer", "b": "after"})
				h.unpublish(r)
			})
		}
	}
}

// killedWriter leaves in a volume what a process leaves that is killed after the first bytes of the file "a".
func killedWriter(t *testing.T, r Request, files content) {
	t.Helper()
	inside(t, r, func(dir string) {
		must(t, os.Mkdir(filepath.Join(dir, "..pending"), 0o700))
		for path, text := range files {
			staged := filepath.Join(dir, "..pending", path)
			must(t, os.WriteFile(staged, []byte(text), 0o400))
			must(t, os.Chown(staged, 1000, 0))
		}
		f, err := os.OpenFile(filepath.Join(dir, "a"), os.O_WRONLY, 0)
		must(t, err)
		defer f.Close()
		_, err = f.WriteString("aft")
		must(t, err)
	})
}
