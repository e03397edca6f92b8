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
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

func TestRecoverTakesUpWhatWasPublished(t *testing.T) {
	h := newHarness(t)
	h.secret("keys", content{"k": "v"})
	h.secret("changes", content{"k": "before"})
	same := h.described("same", secretVolume("keys", "k", "a/b"), "uid", "1000", "mode/a/b", "0440")
	changes := h.request("changes", "secretName", "changes")
	off := h.request("off", "secretName", "changes", "refresh", "off")
	request := h.request("request")
	group := uint32(3000)
	same.MountGroup = &group
	all := []Request{same, changes, off, request}
	mounts := map[string]uint64{}
	for _, r := range all {
		h.publish(r)
		mounts[r.ID] = mountID(t, r)
	}
	h.end()
	h.secret("changes", content{"k": "changed meanwhile"})
	h.restart()
	h.present(same, content{"a/b": "v"})
	h.present(changes, content{"k": "before"})
	h.present(off, content{"k": "before"})
	h.present(request, content{"k": "from the request"})
	if n := h.config.Source.Watched(); n != 2 {
		t.Errorf("%d objects are watched, want 2", n)
	}
	if n := h.gauge("fsuser_volumes"); n != 4 {
		t.Errorf("%v volumes, want 4", n)
	}

	generation := readlink(t, same)
	h.run()
	h.becomes(changes, content{"k": "changed meanwhile"})
	h.secret("changes", content{"k": "changed after"})
	h.becomes(changes, content{"k": "changed after"})
	h.publish(same)
	h.publish(off)
	h.shows(off, content{"k": "before"})
	if now := readlink(t, same); now != generation {
		t.Error("a volume that was right was written again")
	}
	other := same
	other.Spec.DirMode = 0o700
	isErr(t, h.Publish(t.Context(), other), ErrConflict)
	for _, r := range all {
		if now := mountID(t, r); now != mounts[r.ID] {
			t.Errorf("%s was mounted anew: %d, before: %d", r.ID, now, mounts[r.ID])
		}
		h.unpublish(r)
	}
}

// A volume with refresh off is never read again, so the record has the size of the volume.
func TestTheSizeOfAVolumeIsKnownAfterARestart(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "12345"})
	r := h.request("v", "secretName", "keys", "uid", "0", "refresh", "off")
	h.publish(r)
	h.restart()
	if s, sum := h.statusOf(r), h.gauge("fsuser_volume_bytes"); s.Bytes != 5 || sum != 5 {
		t.Errorf("%d bytes by the status, %v by the metric, want 5", s.Bytes, sum)
	}
	h.unpublish(r)
	if sum := h.gauge("fsuser_volume_bytes"); sum != 0 {
		t.Errorf("%v bytes are left", sum)
	}
}

func TestRecoverWhileTheAPIServerIsAway(t *testing.T) {
	for _, test := range []struct {
		name string
		away func(h *harness)
	}{
		{"it does not answer yet", func(h *harness) { h.fake.hang(secretRef("keys")) }},
		{"it refuses connections", func(h *harness) { h.fake.fail(secretRef("keys"), source.ErrUnavailable) }},
		{"it forbids", func(h *harness) { h.fake.fail(secretRef("keys"), source.ErrForbidden) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "before"})
			r, gone := h.request("v", "secretName", "keys"), h.request("gone", "secretName", "keys")
			h.publish(r)
			h.publish(gone)
			test.away(h)
			h.restart()
			h.run()
			h.present(r, content{"k": "before"})
			h.publish(r)
			h.present(r, content{"k": "before"})
			h.unpublish(gone)
			h.secret("keys", content{"k": "after"})
			h.becomes(r, content{"k": "after"})
			testkit.Eventually(t, patience, "the volume to be current",
				func() bool { return h.gauge("fsuser_stale_volumes") == 0 })
			h.unpublish(r)
		})
	}
}

// A record is untrusted input: the driver does not use a record that does not agree with the machine, and touches
// nothing that the record names.
func TestRecoverDoesNotTrustRecords(t *testing.T) {
	tamper := func(change func(*record.Volume)) func(*testing.T, *harness, Request) {
		return func(t *testing.T, h *harness, r Request) {
			rec := h.record(r.ID)
			change(rec)
			b, err := json.Marshal(rec)
			must(t, err)
			must(t, os.WriteFile(h.recordFiles()[0], b, 0o600))
		}
	}
	overwrite := func(text string) func(*testing.T, *harness, Request) {
		return func(t *testing.T, h *harness, r Request) {
			must(t, os.WriteFile(h.recordFiles()[0], []byte(text), 0o600))
		}
	}
	const (
		dropped, aside, stays = "dropped", "moved aside", "stays"
	)
	for _, test := range []struct {
		name    string
		prepare func(*testing.T, *harness, Request)
		record  string
		// adopted means that the volume's own mount is still there, and a republish adopts it.
		adopted bool
	}{
		{"the mount is gone, as after a reboot",
			func(t *testing.T, h *harness, r Request) { must(t, unix.Unmount(r.TargetPath, 0)) }, dropped, false},
		{"the directory is gone", func(t *testing.T, h *harness, r Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			must(t, os.Remove(r.TargetPath))
		}, dropped, false},
		{"the pod's directory is gone", func(t *testing.T, h *harness, r Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			must(t, os.RemoveAll(filepath.Join(h.root, "pods", r.Pod.UID)))
		}, dropped, false},
		{"another tmpfs is at the target", func(t *testing.T, h *harness, r Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			foreignTmpfs(t, r.TargetPath)
		}, dropped, false},
		{"another tmpfs is above the volume", func(t *testing.T, h *harness, r Request) { foreignTmpfs(t, r.TargetPath) },
			dropped, false},
		{"another directory is bound to the target", func(t *testing.T, h *harness, r Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			must(t, unix.Mount(t.TempDir(), r.TargetPath, "", unix.MS_BIND, ""))
			t.Cleanup(func() { unix.Unmount(r.TargetPath, unix.MNT_DETACH) })
		}, dropped, false},
		{"the target is a file now", func(t *testing.T, h *harness, r Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			must(t, os.Remove(r.TargetPath))
			must(t, os.WriteFile(r.TargetPath, nil, 0o600))
		}, dropped, false},
		{"the target is a link to another volume now", func(t *testing.T, h *harness, r Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			must(t, os.Remove(r.TargetPath))
			must(t, os.Symlink(h.target("uid-healthy", "healthy"), r.TargetPath))
		}, dropped, false},
		{"kubelet's directory is a link now", func(t *testing.T, h *harness, r Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			must(t, os.RemoveAll(filepath.Dir(r.TargetPath)))
			must(t, os.Symlink(filepath.Dir(h.target("uid-healthy", "healthy")), filepath.Dir(r.TargetPath)))
		}, dropped, false},
		{"the device is another", tamper(func(v *record.Volume) { v.Device++ }), dropped, true},
		{"the file system is another", tamper(func(v *record.Volume) { v.FSID++ }), dropped, true},
		{"the target is /etc", tamper(func(v *record.Volume) { v.TargetPath = "/etc" }), aside, true},
		{"the target is not clean", tamper(func(v *record.Volume) { v.TargetPath += "/../../../../../.." }), aside, true},
		{"the target is another volume's", tamper(func(v *record.Volume) {
			v.TargetPath = strings.Replace(strings.Replace(v.TargetPath, "uid-v", "uid-healthy", 1), "/v/mount",
				"/healthy/mount", 1)
		}), aside, true},
		{"the pod is another", tamper(func(v *record.Volume) { v.Pod.UID = "uid-healthy" }), aside, true},
		{"the mode has the setuid bit", tamper(func(v *record.Volume) { v.Spec.Sources[0].Mode = 0o4755 }), aside, true},
		{"the directories' mode has the sticky bit", tamper(func(v *record.Volume) { v.Spec.DirMode = 0o1777 }), aside, true},
		{"the owner is beyond what there is", tamper(func(v *record.Volume) { uid := uint32(1 << 31); v.Spec.UID = &uid }),
			aside, true},
		{"an item leads out", tamper(func(v *record.Volume) {
			v.Spec.Sources[0].Items = []record.Item{{Key: "k",
				Path: "../../escaped"}}
		}), aside, true},
		{"an item's path is not clean", tamper(func(v *record.Volume) {
			v.Spec.Sources[0].Items = []record.Item{{Key: "k", Path: "a//b"}}
		}), aside, true},
		{"a PATH leads out", tamper(func(v *record.Volume) { v.Spec.Paths = map[string]record.Permissions{"../x": {}} }),
			aside, true},
		{"a PATH has the setuid bit", tamper(func(v *record.Volume) {
			mode := uint32(0o4755)
			v.Spec.Paths = map[string]record.Permissions{"k": {Mode: &mode}}
		}), aside, true},
		{"a mount point leads out", tamper(func(v *record.Volume) { v.Spec.MountPoints = []string{"../../escaped"} }), aside,
			true},
		{"a subPath leads out", tamper(func(v *record.Volume) { v.Spec.SubPaths = []string{"/etc"} }), aside, true},
		{"the default user is beyond what there is",
			tamper(func(v *record.Volume) { uid := uint32(1 << 31); v.Spec.DefaultUser = &uid }), aside, true},
		{"the object's name is a path", tamper(func(v *record.Volume) { v.Spec.Sources[0].Name = "../../configmaps/x" }),
			aside, true},
		{"a name without a kind", tamper(func(v *record.Volume) { v.Spec.Sources[0].Kind = "" }), aside, true},
		{"there is no source", tamper(func(v *record.Volume) { v.Spec.Sources = nil }), aside, true},
		{"the pod is said to have another name", tamper(func(v *record.Volume) {
			v.Spec.Sources[0] = record.Source{Kind: "Pod", Name: "other",
				Items: []record.Item{{Key: "metadata.name", Path: "a"}}}
		}), aside, true},
		{"the kind is none", tamper(func(v *record.Volume) { v.Spec.Sources[0].Kind = "Node" }), aside, true},
		{"refresh is neither watch nor off", tamper(func(v *record.Volume) { v.Spec.Refresh = "" }), aside, true},
		{"the file is empty", overwrite(""), aside, true},
		{"the file is cut off", overwrite(`{"version":4,"volumeID":"csi-v","targetPa`), aside, true},
		{"the file is no JSON", overwrite("\x00\xff\x00"), aside, true},
		{"the file is for another volume than its name says", tamper(func(v *record.Volume) { v.VolumeID = "csi-other" }),
			aside, true},
		{"a driver of the first design wrote it",
			overwrite(`{"version":3,"volumeID":"csi-v","targetPath":"/etc","secretRef":"x"}`), stays, true},
		{"a newer driver wrote it", overwrite(`{"version":99,"volumeID":"csi-v","targetPath":"/etc","new":{}}`), stays, true},
		{"the file has no version", overwrite(`{"volumeID":"csi-v"}`), aside, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "v"})
			h.secret("healthy", content{"k": "healthy"})
			r, healthy := h.request("v", "secretName", "keys"), h.request("healthy", "secretName", "healthy")
			h.publish(r)
			test.prepare(t, h, r)
			h.publish(healthy)
			records := h.recordFiles()
			mounts, files := testkit.MountTable(t), listing(t, h.root)

			h.restart()
			if now := testkit.MountTable(t); now != mounts {
				t.Errorf("mounts were touched:\n%s\nbefore:\n%s", now, mounts)
			}
			if now := listing(t, h.root); !maps.Equal(now, files) {
				t.Errorf("files were touched: %v, before: %v", now, files)
			}
			if h.get(r.ID) != nil {
				t.Error("the volume was taken up")
			}
			if got := h.subscriptions(); !slices.Equal(got, []string{`Secret "ns/healthy" for csi-healthy`}) {
				t.Errorf("watches: %q", got)
			}
			h.run()
			h.secret("healthy", content{"k": "2"})
			h.becomes(healthy, content{"k": "2"})
			bad, _ := filepath.Glob(filepath.Join(h.state, "bad", "*"))
			switch left := len(h.recordFiles()); {
			case test.record == dropped && (left != len(records)-1 || len(bad) != 0),
				test.record == aside && (left != len(records)-1 || len(bad) != 1),
				test.record == stays && (left != len(records) || len(bad) != 0):
				t.Errorf("the record should be %s; there are %d, before: %d, and aside: %q", test.record, left, len(records), bad)
			}

			if got := h.gauge("fsuser_bad_records_total"); got == 1 != (test.record != dropped) {
				t.Errorf("%v bad records are counted, and the record should be %s", got, test.record)
			}

			if test.adopted {
				mount := mountID(t, r)
				h.secret("keys", content{"k": "new"})
				h.publish(r)
				h.present(r, content{"k": "new"})
				if now := mountID(t, r); now != mount {
					t.Error("it was mounted anew")
				}
				h.unpublish(r)
			}
		})
	}
}

// listing returns the results of lstat for the files below a directory, by path, without the time of the last access.
func listing(t testing.TB, dir string) map[string]unix.Stat_t {
	t.Helper()
	all := map[string]unix.Stat_t{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		st.Atim = unix.Timespec{}
		all[path] = st
		return nil
	})
	must(t, err)
	return all
}

// A failure of one volume, or of the directory of the records, does not affect the other volumes.
func TestRecoverGoesOn(t *testing.T) {
	setUp := func(t *testing.T) (h *harness, sick, healthy Request) {
		h = newFakeHarness(t)
		h.secret("keys", content{"k": "v"})
		sick, healthy = h.request("sick", "secretName", "keys"), h.request("healthy", "secretName", "keys")
		h.publish(sick)
		h.publish(healthy)
		return h, sick, healthy
	}
	t.Run("if a target can't be looked at", func(t *testing.T) {
		h, sick, healthy := setUp(t)
		// A name that is too long for any file system is an example for all errors of an inspection.
		h.checkAny()
		rec := h.record(sick.ID)
		for _, path := range h.recordFiles() {
			if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), `"csi-sick"`) {
				continue
			}
			rec.TargetPath = h.root + "/" + strings.Repeat("x", 300)
			b, err := json.Marshal(rec)
			must(t, err)
			must(t, os.WriteFile(path, b, 0o600))
		}
		h.restart()
		if h.get(sick.ID) != nil || h.get(healthy.ID) == nil {
			t.Errorf("known: %s", h.snapshot())
		}
		// The mount may exist.
		if h.record(sick.ID) == nil {
			t.Error("the record is dropped although nobody knows whether the mount is there")
		}
		must(t, h.Unpublish(t.Context(), healthy.ID, healthy.TargetPath))
	})
	t.Run("if a record can't be moved aside", func(t *testing.T) {
		h, sick, healthy := setUp(t)
		rec := h.record(sick.ID)
		rec.Spec.Sources[0].Mode = 0o4755
		must(t, h.config.Records.Save(*rec))
		readOnly(t, h.state)
		h.restart()
		if h.get(sick.ID) != nil || h.get(healthy.ID) == nil {
			t.Errorf("known: %s", h.snapshot())
		}
		must(t, h.Unpublish(t.Context(), healthy.ID, healthy.TargetPath))
	})
	t.Run("if a record can't be dropped", func(t *testing.T) {
		h, sick, healthy := setUp(t)
		must(t, unix.Unmount(sick.TargetPath, 0))
		readOnly(t, h.state)
		h.restart()
		if h.get(sick.ID) != nil || h.get(healthy.ID) == nil {
			t.Errorf("known: %s", h.snapshot())
		}
		must(t, h.Unpublish(t.Context(), healthy.ID, healthy.TargetPath))
	})
	t.Run("but not without the directory of the records", func(t *testing.T) {
		h, _, _ := setUp(t)
		must(t, os.RemoveAll(h.state))
		if err := h.Recover(t.Context()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v, want %v", err, fs.ErrNotExist)
		}
	})
}

// checkAny makes later starts accept records with any target.
func (h *harness) checkAny() {
	h.configure = append(h.configure, func(c *Config) { c.CheckTarget = func(_, _, _ string) error { return nil } })
}

func TestCollect(t *testing.T) {
	setUp := func(t *testing.T, configure ...func(*Config)) (h *harness, gone, healthy Request) {
		h = newFakeHarness(t, configure...)
		h.secret("keys", content{"k": "v"})
		h.secret("healthy", content{"k": "v"})
		gone, healthy = h.request("gone", "secretName", "keys"), h.request("healthy", "secretName", "healthy")
		h.publish(gone)
		h.publish(healthy)
		h.fake.fail(secretRef("keys"), source.ErrForbidden)
		h.publish(gone) // The volume is stale now.
		return h, gone, healthy
	}
	remove := func(h *harness, r Request) {
		must(h.t, unix.Unmount(r.TargetPath, 0))
		must(h.t, os.RemoveAll(filepath.Join(h.root, "pods", r.Pod.UID)))
	}
	collected := func(h *harness, gone, healthy Request) {
		h.t.Helper()
		h.absent(gone)
		h.present(healthy, content{"k": "v"})
		if n := h.gauge("fsuser_stale_volumes"); n != 0 {
			h.t.Errorf("%v stale volumes, want none", n)
		}
		if n := h.config.Source.Watched(); n != 1 {
			h.t.Errorf("%d objects are watched, want the healthy volume's", n)
		}
	}

	t.Run("forgets a volume whose directory is gone, and touches nothing else", func(t *testing.T) {
		h, gone, healthy := setUp(t)
		remove(h, gone)
		before := listing(t, h.root)
		h.Collect()
		collected(h, gone, healthy)
		if now := listing(t, h.root); !maps.Equal(now, before) {
			t.Errorf("files were touched: %v, before: %v", now, before)
		}
	})
	t.Run("by itself, from time to time", func(t *testing.T) {
		h, gone, healthy := setUp(t, func(c *Config) { c.CollectEvery = time.Millisecond })
		h.run()
		remove(h, gone)
		testkit.Eventually(t, patience, "the volume to be forgotten",
			func() bool { return h.get(gone.ID) == nil && h.record(gone.ID) == nil })
		collected(h, gone, healthy)
	})
	t.Run("leaves a volume alone whose directory is there, whatever else is not", func(t *testing.T) {
		h, gone, _ := setUp(t)
		must(t, unix.Unmount(gone.TargetPath, 0))
		must(t, os.Remove(gone.TargetPath))
		h.fake.fail(secretRef("keys"), source.ErrNotFound)
		before := h.snapshot()
		h.Collect()
		h.unchanged(before)
	})
	t.Run("leaves a volume alone whose directory is something else now", func(t *testing.T) {
		h, gone, _ := setUp(t)
		remove(h, gone)
		must(t, os.MkdirAll(filepath.Dir(filepath.Dir(gone.TargetPath)), 0o750))
		must(t, os.Symlink("/nowhere", filepath.Dir(gone.TargetPath)))
		before := h.snapshot()
		h.Collect()
		h.unchanged(before)
	})
	t.Run("leaves a volume alone for which a call is under way", func(t *testing.T) {
		h, gone, _ := setUp(t)
		remove(h, gone)
		unlock, err := h.locks.lock(t.Context(), gone.ID)
		must(t, err)
		h.Collect()
		if h.get(gone.ID) == nil {
			t.Error("the volume was forgotten during a call")
		}
		unlock()
		h.Collect()
		h.absent(gone)
	})
}

// The content of a published volume does not become older: a volume whose content was shown before requires the newest
// version.
func TestNewestIsAskedForAfterContentWasShown(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "v"})
	r := h.request("v", "secretName", "keys")
	newest := fmt.Sprintf("%s for %s", secretRef("keys"), r.ID)
	asks := func(when string, want ...string) {
		t.Helper()
		if got := h.fake.askedForNewest(); !slices.Equal(got, want) {
			t.Errorf("%s: the newest version was asked for by %q, want %q", when, got, want)
		}
	}
	h.publish(r)
	asks("the first publish")
	h.restart()
	asks("recovery", newest)
	h.publish(r)
	asks("a republish")

	must(t, unix.Unmount(r.TargetPath, unix.MNT_DETACH))
	h.fake.fail(secretRef("keys"), source.ErrUnavailable)
	isErr(t, h.Publish(t.Context(), r), source.ErrUnavailable)
	asks("a publish after the mount went away", newest)
	h.secret("keys", content{"k": "v"})
	h.publish(r)
	asks("the next attempt", newest)

	h.loseRecords()
	h.publish(r)
	asks("adoption", newest)

	must(t, unix.Unmount(r.TargetPath, unix.MNT_DETACH))
	h.loseRecords()
	h.publish(r)
	asks("a publish after a reboot", newest)
	h.present(r, content{"k": "v"})
	h.unpublish(r)
	h.publish(r)
	asks("a publish after an unpublish")
	h.unpublish(r)
}
