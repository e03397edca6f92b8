// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"encoding/json"
	"errors"
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
	w := newWorld(t)
	w.secret("keys", content{"k": "v"})
	w.secret("changes", content{"k": "before"})
	same := w.request("same", "secretName", "keys", "uid", "1000", "items", "[{key: k, path: a/b, mode: \"0440\"}]")
	changes := w.request("changes", "secretName", "changes")
	off := w.request("off", "secretName", "changes", "refresh", "off")
	request := w.request("request")
	group := uint32(3000)
	same.MountGroup = &group
	all := []Request{same, changes, off, request}
	mounts := map[string]uint64{}
	for _, r := range all {
		w.publish(r)
		mounts[r.ID] = mountID(t, r)
	}
	w.end()
	w.secret("changes", content{"k": "changed meanwhile"})
	w.restart()
	w.present(same, content{"a/b": "v"})
	w.present(changes, content{"k": "before"})
	w.present(off, content{"k": "before"})
	w.present(request, content{"k": "from the request"})
	if n := w.Source.Watched(); n != 2 {
		t.Errorf("%d objects are watched, want 2", n)
	}
	if n := w.gauge("fsuser_volumes"); n != 4 {
		t.Errorf("%v volumes, want 4", n)
	}

	generation := readlink(t, same)
	w.run()
	w.becomes(changes, content{"k": "changed meanwhile"})
	w.secret("changes", content{"k": "changed after"})
	w.becomes(changes, content{"k": "changed after"})
	w.publish(same)
	w.publish(off)
	w.shows(off, content{"k": "before"})
	if now := readlink(t, same); now != generation {
		t.Error("a volume that was right was written again")
	}
	other := copied(same)
	other.Spec.Sources[0].Mode = 0o444
	isErr(t, w.Publish(t.Context(), other), ErrConflict)
	for _, r := range all {
		if now := mountID(t, r); now != mounts[r.ID] {
			t.Errorf("%s was mounted anew: %d, before: %d", r.ID, now, mounts[r.ID])
		}
		w.unpublish(r)
	}
}

// What is never refreshed is never read again.
func TestTheSizeOfAVolumeIsKnownAfterARestart(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("keys", content{"k": "12345"})
	r := w.request("v", "secretName", "keys", "uid", "0", "refresh", "off")
	w.publish(r)
	w.restart()
	if s, sum := one(t, w), w.gauge("fsuser_volume_bytes"); s.Bytes != 5 || sum != 5 {
		t.Errorf("%d bytes by the status, %v by the metric, want 5", s.Bytes, sum)
	}
	w.unpublish(r)
	if sum := w.gauge("fsuser_volume_bytes"); sum != 0 {
		t.Errorf("%v bytes are left", sum)
	}
}

func TestRecoverWhileTheAPIServerIsAway(t *testing.T) {
	for _, test := range []struct {
		name string
		away func(w *world)
	}{
		{"it does not answer yet", func(w *world) { w.fake.hang(secretRef("keys")) }},
		{"it refuses connections", func(w *world) { w.fake.fail(secretRef("keys"), source.ErrUnavailable) }},
		{"it forbids", func(w *world) { w.fake.fail(secretRef("keys"), source.ErrForbidden) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			w.secret("keys", content{"k": "before"})
			r, gone := w.request("v", "secretName", "keys"), w.request("gone", "secretName", "keys")
			w.publish(r)
			w.publish(gone)
			test.away(w)
			w.restart()
			w.run()
			w.present(r, content{"k": "before"})
			w.publish(r)
			w.present(r, content{"k": "before"})
			w.unpublish(gone)
			w.secret("keys", content{"k": "after"})
			w.becomes(r, content{"k": "after"})
			testkit.Eventually(t, patience, "the volume to be current", func() bool { return w.gauge("fsuser_stale_volumes") == 0 })
			w.unpublish(r)
		})
	}
}

// A record is input: what the machine does not bear out counts for nothing, and nothing that it names is touched.
func TestRecoverDoesNotTrustRecords(t *testing.T) {
	tamper := func(change func(*record.Volume)) func(*testing.T, *world, Request) {
		return func(t *testing.T, w *world, r Request) {
			rec := w.record(r.ID)
			change(rec)
			b, err := json.Marshal(rec)
			must(t, err)
			must(t, os.WriteFile(w.recordFiles()[0], b, 0o600))
		}
	}
	overwrite := func(text string) func(*testing.T, *world, Request) {
		return func(t *testing.T, w *world, r Request) {
			must(t, os.WriteFile(w.recordFiles()[0], []byte(text), 0o600))
		}
	}
	const (
		dropped, aside, stays = "dropped", "moved aside", "stays"
	)
	for _, test := range []struct {
		name    string
		prepare func(*testing.T, *world, Request)
		record  string
		// adopted: the volume's own mount is still there, and a republish takes it up.
		adopted bool
	}{
		{"the mount is gone, as after a reboot", func(t *testing.T, w *world, r Request) { must(t, unix.Unmount(r.Target, 0)) }, dropped, false},
		{"the directory is gone", func(t *testing.T, w *world, r Request) {
			must(t, unix.Unmount(r.Target, 0))
			must(t, os.Remove(r.Target))
		}, dropped, false},
		{"the pod's directory is gone", func(t *testing.T, w *world, r Request) {
			must(t, unix.Unmount(r.Target, 0))
			must(t, os.RemoveAll(filepath.Join(w.root, "pods", r.Pod.UID)))
		}, dropped, false},
		{"another tmpfs is at the target", func(t *testing.T, w *world, r Request) {
			must(t, unix.Unmount(r.Target, 0))
			foreignTmpfs(t, r.Target)
		}, dropped, false},
		{"another tmpfs is above the volume", func(t *testing.T, w *world, r Request) { foreignTmpfs(t, r.Target) }, dropped, false},
		{"another directory is bound to the target", func(t *testing.T, w *world, r Request) {
			must(t, unix.Unmount(r.Target, 0))
			must(t, unix.Mount(t.TempDir(), r.Target, "", unix.MS_BIND, ""))
			t.Cleanup(func() { unix.Unmount(r.Target, unix.MNT_DETACH) })
		}, dropped, false},
		{"the target is a file now", func(t *testing.T, w *world, r Request) {
			must(t, unix.Unmount(r.Target, 0))
			must(t, os.Remove(r.Target))
			must(t, os.WriteFile(r.Target, nil, 0o600))
		}, dropped, false},
		{"the target is a link to another volume now", func(t *testing.T, w *world, r Request) {
			must(t, unix.Unmount(r.Target, 0))
			must(t, os.Remove(r.Target))
			must(t, os.Symlink(w.target("uid-healthy", "healthy"), r.Target))
		}, dropped, false},
		{"kubelet's directory is a link now", func(t *testing.T, w *world, r Request) {
			must(t, unix.Unmount(r.Target, 0))
			must(t, os.RemoveAll(filepath.Dir(r.Target)))
			must(t, os.Symlink(filepath.Dir(w.target("uid-healthy", "healthy")), filepath.Dir(r.Target)))
		}, dropped, false},
		{"the device is another", tamper(func(v *record.Volume) { v.Device++ }), dropped, true},
		{"the file system is another", tamper(func(v *record.Volume) { v.FSID++ }), dropped, true},
		{"the target is /etc", tamper(func(v *record.Volume) { v.TargetPath = "/etc" }), aside, true},
		{"the target is not clean", tamper(func(v *record.Volume) { v.TargetPath += "/../../../../../.." }), aside, true},
		{"the target is another volume's", tamper(func(v *record.Volume) {
			v.TargetPath = strings.Replace(strings.Replace(v.TargetPath, "uid-v", "uid-healthy", 1), "/v/mount", "/healthy/mount", 1)
		}), aside, true},
		{"the pod is another", tamper(func(v *record.Volume) { v.Pod.UID = "uid-healthy" }), aside, true},
		{"the mode has the setuid bit", tamper(func(v *record.Volume) { v.Spec.Sources[0].Mode = 0o4755 }), aside, true},
		{"the directories' mode has the sticky bit", tamper(func(v *record.Volume) { v.Spec.DirMode = 0o1777 }), aside, true},
		{"the owner is beyond what there is", tamper(func(v *record.Volume) { uid := uint32(1 << 31); v.Spec.UID = &uid }), aside, true},
		{"an item leads out", tamper(func(v *record.Volume) { v.Spec.Sources[0].Items = []record.Item{{Key: "k", Path: "../../escaped"}} }), aside, true},
		{"two items clash", tamper(func(v *record.Volume) {
			v.Spec.Sources[0].Items = []record.Item{{Key: "k", Path: "a"}, {Key: "k", Path: "a/b"}}
		}), aside, true},
		{"the object's name is a path", tamper(func(v *record.Volume) { v.Spec.Sources[0].Name = "../../configmaps/x" }), aside, true},
		{"a nodePublishSecretRef is not that of the attributes", tamper(func(v *record.Volume) { v.SecretRef = "another" }), aside, true},
		{"a nodePublishSecretRef's name is a path", tamper(func(v *record.Volume) {
			v.Spec.Sources[0].Kind, v.Spec.Sources[0].Name, v.SecretRef = "", "", "../../configmaps/x"
		}), aside, true},
		{"there is no source", tamper(func(v *record.Volume) { v.Spec.Sources = nil }), aside, true},
		{"the pod is said to have another name", tamper(func(v *record.Volume) {
			v.Spec.Sources[0] = record.Source{Kind: "Pod", Name: "other", Items: []record.Item{{Key: "metadata.name", Path: "a"}}}
		}), aside, true},
		{"the kind is none", tamper(func(v *record.Volume) { v.Spec.Sources[0].Kind = "Node" }), aside, true},
		{"refresh is neither watch nor off", tamper(func(v *record.Volume) { v.Spec.Refresh = "" }), aside, true},
		{"the file is empty", overwrite(""), aside, true},
		{"the file is cut off", overwrite(`{"version":1,"volumeID":"csi-v","targetPa`), aside, true},
		{"the file is no JSON", overwrite("\x00\xff\x00"), aside, true},
		{"the file is for another volume than its name says", tamper(func(v *record.Volume) { v.VolumeID = "csi-other" }), aside, true},
		{"a newer driver wrote it", overwrite(`{"version":99,"volumeID":"csi-v","targetPath":"/etc","new":{}}`), stays, true},
		{"the file has no version", overwrite(`{"volumeID":"csi-v"}`), aside, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			w.secret("keys", content{"k": "v"})
			w.secret("healthy", content{"k": "healthy"})
			r, healthy := w.request("v", "secretName", "keys"), w.request("healthy", "secretName", "healthy")
			w.publish(r)
			test.prepare(t, w, r)
			w.publish(healthy)
			records := w.recordFiles()
			mounts, files := testkit.MountTable(t), listing(t, w.root)

			w.restart()
			if now := testkit.MountTable(t); now != mounts {
				t.Errorf("mounts were touched:\n%s\nbefore:\n%s", now, mounts)
			}
			if now := listing(t, w.root); !maps.Equal(now, files) {
				t.Errorf("files were touched: %v, before: %v", now, files)
			}
			if w.get(r.ID) != nil {
				t.Error("the volume was taken up")
			}
			if got := w.watches(); !slices.Equal(got, []string{`Secret "ns/healthy" for csi-healthy`}) {
				t.Errorf("watches: %q", got)
			}
			w.run()
			w.secret("healthy", content{"k": "2"})
			w.becomes(healthy, content{"k": "2"})
			bad, _ := filepath.Glob(filepath.Join(w.state, "bad", "*"))
			switch left := len(w.recordFiles()); {
			case test.record == dropped && (left != len(records)-1 || len(bad) != 0),
				test.record == aside && (left != len(records)-1 || len(bad) != 1),
				test.record == stays && (left != len(records) || len(bad) != 0):
				t.Errorf("the record should be %s; there are %d, before: %d, and aside: %q", test.record, left, len(records), bad)
			}

			if got := w.gauge("fsuser_bad_records_total"); got == 1 != (test.record != dropped) {
				t.Errorf("%v bad records are counted, and the record should be %s", got, test.record)
			}

			if test.adopted {
				mount := mountID(t, r)
				w.secret("keys", content{"k": "new"})
				w.publish(r)
				w.present(r, content{"k": "new"})
				if now := mountID(t, r); now != mount {
					t.Error("it was mounted anew")
				}
				w.unpublish(r)
			}
		})
	}
}

// listing is the files below a directory, by their path, with what lstat says of each. Changes that a healthy volume may have are left out.
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

// What is wrong with one volume, or with the directory of the records, keeps the driver from nothing else.
func TestRecoverGoesOn(t *testing.T) {
	setUp := func(t *testing.T) (w *world, sick, healthy Request) {
		w = newFakeWorld(t)
		w.secret("keys", content{"k": "v"})
		sick, healthy = w.request("sick", "secretName", "keys"), w.request("healthy", "secretName", "keys")
		w.publish(sick)
		w.publish(healthy)
		return w, sick, healthy
	}
	t.Run("if a target can't be looked at", func(t *testing.T) {
		w, sick, healthy := setUp(t)
		// A name too long for any file system stands for all the errors that a look can end in.
		w.checkAny()
		rec := w.record(sick.ID)
		for _, path := range w.recordFiles() {
			if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), `"csi-sick"`) {
				continue
			}
			rec.TargetPath = w.root + "/" + strings.Repeat("x", 300)
			b, err := json.Marshal(rec)
			must(t, err)
			must(t, os.WriteFile(path, b, 0o600))
		}
		w.restart()
		if w.get(sick.ID) != nil || w.get(healthy.ID) == nil {
			t.Errorf("known: %s", w.snapshot())
		}
		// Nothing is known against it.
		if w.record(sick.ID) == nil {
			t.Error("the record is dropped although nobody knows whether the mount is there")
		}
		must(t, w.Unpublish(t.Context(), healthy.ID, healthy.Target))
	})
	t.Run("if a record can't be moved aside", func(t *testing.T) {
		w, sick, healthy := setUp(t)
		rec := w.record(sick.ID)
		rec.Spec.Sources[0].Mode = 0o4755
		must(t, w.Records.Save(*rec))
		readOnly(t, w.state)
		w.restart()
		if w.get(sick.ID) != nil || w.get(healthy.ID) == nil {
			t.Errorf("known: %s", w.snapshot())
		}
		must(t, w.Unpublish(t.Context(), healthy.ID, healthy.Target))
	})
	t.Run("if a record can't be dropped", func(t *testing.T) {
		w, sick, healthy := setUp(t)
		must(t, unix.Unmount(sick.Target, 0))
		readOnly(t, w.state)
		w.restart()
		if w.get(sick.ID) != nil || w.get(healthy.ID) == nil {
			t.Errorf("known: %s", w.snapshot())
		}
		must(t, w.Unpublish(t.Context(), healthy.ID, healthy.Target))
	})
	t.Run("but not without the directory of the records", func(t *testing.T) {
		w, _, _ := setUp(t)
		must(t, os.RemoveAll(w.state))
		if err := w.Recover(t.Context()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v, want %v", err, fs.ErrNotExist)
		}
	})
}

// checkAny lets the records of later starts name any target.
func (w *world) checkAny() {
	w.configure = append(w.configure, func(c *Config) { c.CheckTarget = func(_, _, _ string) error { return nil } })
}

func TestCollect(t *testing.T) {
	setUp := func(t *testing.T, configure ...func(*Config)) (w *world, gone, healthy Request) {
		w = newFakeWorld(t, configure...)
		w.secret("keys", content{"k": "v"})
		w.secret("healthy", content{"k": "v"})
		gone, healthy = w.request("gone", "secretName", "keys"), w.request("healthy", "secretName", "healthy")
		w.publish(gone)
		w.publish(healthy)
		w.fake.fail(secretRef("keys"), source.ErrForbidden)
		w.publish(gone) // it is stale now
		return w, gone, healthy
	}
	remove := func(w *world, r Request) {
		must(w.t, unix.Unmount(r.Target, 0))
		must(w.t, os.RemoveAll(filepath.Join(w.root, "pods", r.Pod.UID)))
	}
	collected := func(w *world, gone, healthy Request) {
		w.t.Helper()
		w.absent(gone)
		w.present(healthy, content{"k": "v"})
		if n := w.gauge("fsuser_stale_volumes"); n != 0 {
			w.t.Errorf("%v stale volumes, want none", n)
		}
		if n := w.Source.Watched(); n != 1 {
			w.t.Errorf("%d objects are watched, want the healthy volume's", n)
		}
	}

	t.Run("forgets a volume whose directory is gone, and touches nothing else", func(t *testing.T) {
		w, gone, healthy := setUp(t)
		remove(w, gone)
		before := listing(t, w.root)
		w.Collect(t.Context())
		collected(w, gone, healthy)
		if now := listing(t, w.root); !maps.Equal(now, before) {
			t.Errorf("files were touched: %v, before: %v", now, before)
		}
	})
	t.Run("by itself, from time to time", func(t *testing.T) {
		w, gone, healthy := setUp(t, func(c *Config) { c.CollectEvery = time.Millisecond })
		w.run()
		remove(w, gone)
		testkit.Eventually(t, patience, "the volume to be forgotten", func() bool { return w.get(gone.ID) == nil && w.record(gone.ID) == nil && w.locks.isEmpty() })
		collected(w, gone, healthy)
	})
	t.Run("leaves a volume alone whose directory is there, whatever else is not", func(t *testing.T) {
		w, gone, _ := setUp(t)
		must(t, unix.Unmount(gone.Target, 0))
		must(t, os.Remove(gone.Target))
		w.fake.fail(secretRef("keys"), source.ErrNotFound)
		before := w.snapshot()
		w.Collect(t.Context())
		w.unchanged(before)
	})
	t.Run("leaves a volume alone whose directory is something else now", func(t *testing.T) {
		w, gone, _ := setUp(t)
		remove(w, gone)
		must(t, os.MkdirAll(filepath.Dir(filepath.Dir(gone.Target)), 0o750))
		must(t, os.Symlink("/nowhere", filepath.Dir(gone.Target)))
		before := w.snapshot()
		w.Collect(t.Context())
		w.unchanged(before)
	})
	t.Run("waits for a call that is under way, and ends with its context", func(t *testing.T) {
		w, gone, _ := setUp(t)
		remove(w, gone)
		unlock, err := w.locks.lock(t.Context(), gone.ID)
		must(t, err)
		ended := make(chan struct{})
		go func() { defer close(ended); w.Collect(t.Context()) }()
		testkit.Eventually(t, patience, "Collect to wait", func() bool { return w.locks.users(gone.ID) == 2 })
		if w.get(gone.ID) == nil {
			t.Error("it did not wait")
		}
		unlock()
		<-ended
		w.absent(gone)
	})
}
