// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/status"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// present fails the test unless the volume is complete and shows the content.
func (h *harness) present(r Request, want content) {
	h.t.Helper()
	h.isThere(r)
	h.shows(r, want)
}

// isThere fails the test unless the volume is mounted once, sealed, recorded, and subscribed to its objects if it
// watches them.
func (h *harness) isThere(r Request) {
	h.t.Helper()
	mounts := testkit.MountsBelow(h.t, r.TargetPath)
	if len(mounts) != 1 {
		h.t.Fatalf("%s has %d mounts, not one: %q", r.ID, len(mounts), mounts)
	}
	fields := strings.Fields(mounts[0])
	for _, option := range []string{"ro", "nosuid", "nodev", "noexec"} {
		if !slices.Contains(strings.Split(fields[5], ","), option) {
			h.t.Errorf("%s is not mounted %s: %s", r.ID, option, mounts[0])
		}
	}
	if !strings.Contains(mounts[0], " - tmpfs "+tmpfs.Source+" ") {
		h.t.Errorf("%s is not a tmpfs of this driver: %s", r.ID, mounts[0])
	}
	v := h.get(r.ID)
	if v == nil {
		h.t.Fatalf("%s is mounted and the Manager does not know it", r.ID)
	}
	if rec := h.record(r.ID); rec == nil {
		h.t.Errorf("%s is mounted without a record", r.ID)
	} else if rec.Device != v.identity.Device || rec.FSID != v.identity.FSID {
		h.t.Errorf("the record of %s is of another tmpfs: %+v, not %+v", r.ID, rec, v.identity)
	}
	if h.fake != nil {
		for _, p := range v.projections {
			if h.fake.subscribed(p.ref, r.ID) != v.watches() {
				h.t.Errorf("%s is subscribed to %s: %v, want %v", r.ID, p.ref, !v.watches(), v.watches())
			}
		}
	}
}

// shows fails the test unless the volume's visible files are these. While workers run, shows waits for them.
func (h *harness) shows(r Request, want content) {
	h.t.Helper()
	if h.stop != nil {
		h.becomes(r, want)
		return
	}
	if got := visible(h.t, r.TargetPath); !maps.Equal(got, want) {
		h.t.Errorf("%s shows %.300q, want %.300q", r.ID, got, want)
	}
}

// becomes waits until these are the volume's visible files.
func (h *harness) becomes(r Request, want content) {
	h.t.Helper()
	testkit.Eventually(h.t, patience, fmt.Sprintf("%s to show %.300q", r.ID, want), func() bool {
		return maps.Equal(visible(h.t, r.TargetPath), want)
	})
}

// visible returns the files that a container sees, by their path. It leaves out a file that is removed in the meantime.
func visible(t testing.TB, target string) content {
	t.Helper()
	c := content{}
	var walk func(string)
	walk = func(dir string) {
		entries, err := os.ReadDir(filepath.Join(target, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if strings.HasPrefix(path, "..") {
				continue
			}
			if st, err := os.Stat(filepath.Join(target, path)); err == nil && st.IsDir() {
				walk(path)
			} else if b, err := os.ReadFile(filepath.Join(target, path)); err == nil {
				c[path] = string(b)
			} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EISDIR) { // a directory may replace it
				t.Fatal(err)
			}
		}
	}
	walk(".")
	return c
}

// absent fails the test if anything is left of the volume.
func (h *harness) absent(r Request) {
	h.t.Helper()
	if mounts := testkit.MountsBelow(h.t, r.TargetPath); len(mounts) > 0 {
		h.t.Errorf("%s is still mounted: %q", r.ID, mounts)
	}
	if _, err := os.Lstat(r.TargetPath); !errors.Is(err, fs.ErrNotExist) {
		h.t.Errorf("the directory of %s is still there: %v", r.ID, err)
	}
	if h.get(r.ID) != nil {
		h.t.Errorf("the Manager still knows %s", r.ID)
	}
	if rec := h.record(r.ID); rec != nil {
		h.t.Errorf("%s still has a record: %+v", r.ID, rec)
	}
	for _, s := range h.subscriptions() {
		if strings.HasSuffix(s, " for "+r.ID) {
			h.t.Errorf("%s is still subscribed: %q", r.ID, s)
		}
	}
	// A worker that was notified of a change may still be looking for the volume.
	testkit.Eventually(h.t, patience, "the lock of "+r.ID+" to be forgotten",
		func() bool { return h.locks.users(r.ID) == 0 })
}

// record reads the record of a volume without changing anything, unlike Store.Load.
func (h *harness) record(id string) *record.Volume {
	h.t.Helper()
	for _, path := range h.recordFiles() {
		var v record.Volume
		if b, err := os.ReadFile(path); err != nil {
			h.t.Error(err)
		} else if json.Unmarshal(b, &v) == nil && v.VolumeID == id {
			return &v
		}
	}
	return nil
}

func (h *harness) recordFiles() []string {
	h.t.Helper()
	paths, err := filepath.Glob(filepath.Join(h.state, "*.json*"))
	must(h.t, err)
	return paths
}

// subscriptions returns the objects and their subscribers. For a source of manifests only the number of objects is
// known.
func (h *harness) subscriptions() []string {
	if h.fake != nil {
		return h.fake.subscriptions()
	}
	return slices.Repeat([]string{"an object"}, h.config.Source.Watched())
}

// snapshot returns everything that a call could have changed: directories with their content, mounts, records,
// subscriptions, known volumes. If two snapshots are equal, nothing was changed.
func (h *harness) snapshot() string {
	h.t.Helper()
	var b strings.Builder
	for _, dir := range []string{h.root, h.state} {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			text := ""
			switch {
			case e.Type().IsRegular():
				data, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				text = fmt.Sprintf("%.80q (%d bytes)", data, len(data))
			case e.Type() == fs.ModeSymlink:
				text, _ = os.Readlink(path)
			}
			rel, _ := filepath.Rel(h.root, path)
			fmt.Fprintf(&b, "%s: device %d inode %d mode %o owner %d:%d %s\n",
				rel, st.Dev, st.Ino, st.Mode, st.Uid, st.Gid, text)
			return nil
		})
		must(h.t, err)
	}
	fmt.Fprintf(&b, "subscriptions: %q\nmounts:\n%s", h.subscriptions(), testkit.MountTable(h.t))
	var known []string
	for _, v := range h.all() {
		known = append(known, v.id)
	}
	slices.Sort(known)
	fmt.Fprintf(&b, "known: %q stale: %v\n", known, h.gauge("fsuser_stale_volumes"))
	return b.String()
}

// unchanged fails the test unless the node is as it was before.
func (h *harness) unchanged(before string) {
	h.t.Helper()
	after := h.snapshot()
	if after == before {
		return
	}
	old, now := strings.Split(before, "\n"), strings.Split(after, "\n")
	var diff []string
	for _, line := range old {
		if !slices.Contains(now, line) {
			diff = append(diff, "- "+line)
		}
	}
	for _, line := range now {
		if !slices.Contains(old, line) {
			diff = append(diff, "+ "+line)
		}
	}
	h.t.Errorf("something was touched:\n%s", strings.Join(diff, "\n"))
}

// gauge returns the value of a metric without labels: a gauge, or a counter.
func (h *harness) gauge(name string) float64 {
	h.t.Helper()
	families, err := h.registry.Gather()
	must(h.t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	h.t.Fatalf("there is no metric %s", name)
	return 0
}

// counts returns the number of operations by operation and outcome, as "publish ok": 1. It leaves zeros out.
func (h *harness) counts() map[string]int {
	return h.counted("fsuser_volume_operation_duration_seconds", "outcome")
}

// failures returns the number of failed operations by operation and reason, as "publish precondition": 1.
func (h *harness) failures() map[string]int {
	return h.counted("fsuser_volume_failures_total", "reason")
}

// counted returns the counts of a metric by operation and another label.
func (h *harness) counted(name, label string) map[string]int {
	h.t.Helper()
	families, err := h.registry.Gather()
	must(h.t, err)
	counts := map[string]int{}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var op, other string
			for _, l := range m.GetLabel() {
				switch l.GetName() {
				case "operation":
					op = l.GetValue()
				case label:
					other = l.GetValue()
				}
			}
			if n := int(m.GetHistogram().GetSampleCount()) + int(m.GetCounter().GetValue()); n > 0 {
				counts[op+" "+other] = n
			}
		}
	}
	return counts
}

// isErr fails the test unless err is want and its text contains all of says.
func isErr(t testing.TB, err, want error, says ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got the error %v, want %v", err, want)
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// statusOf returns the status of the volume of a request.
func (h *harness) statusOf(r Request) status.Volume {
	h.t.Helper()
	for _, s := range h.Status() {
		if s.PodUID == r.Pod.UID {
			return s
		}
	}
	h.t.Fatalf("%s has no status", r.ID)
	return status.Volume{}
}

// becomesStale waits until the status shows that the volume is stale, and the reason.
func (h *harness) becomesStale(r Request, says string) {
	h.t.Helper()
	testkit.Eventually(h.t, patience, fmt.Sprintf("%s to be stale: %q", r.ID, says), func() bool {
		s := h.statusOf(r)
		return s.Stale != "" && strings.Contains(s.Stale, says)
	})
}

// becomesCurrent waits until the status shows that the volume is not stale.
func (h *harness) becomesCurrent(r Request) {
	h.t.Helper()
	testkit.Eventually(h.t, patience, r.ID+" to be current", func() bool { return h.statusOf(r).Stale == "" })
}

// permissions are the mode, uid and gid of a file or directory of a volume. Links are followed.
type permissions struct{ mode, uid, gid uint32 }

// hasPermissions fails the test unless the files and directories of the volume have these permissions.
func (h *harness) hasPermissions(r Request, want map[string]permissions) {
	h.t.Helper()
	for path, want := range want {
		var st unix.Stat_t
		must(h.t, unix.Stat(filepath.Join(r.TargetPath, path), &st))
		if got := (permissions{st.Mode & 0o7777, st.Uid, st.Gid}); got != want {
			h.t.Errorf("%s: mode %04o, owner %d:%d, want mode %04o, owner %d:%d",
				path, got.mode, got.uid, got.gid, want.mode, want.uid, want.gid)
		}
	}
}
