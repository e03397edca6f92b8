// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// inside calls f with a path where the file system of a volume is writable.
func inside(t testing.TB, r Request, f func(dir string)) {
	t.Helper()
	target, err := tmpfs.OpenTarget(r.TargetPath)
	must(t, err)
	defer target.Close()
	state, err := target.Inspect()
	must(t, err)
	clone, err := target.Clone(state.Identity)
	must(t, err)
	defer clone.Close()
	f(fmt.Sprintf("/proc/self/fd/%d", clone.Dir()))
}

// fill uses all the free bytes of a volume, until undo is called.
func fill(t testing.TB, r Request) (undo func()) {
	t.Helper()
	inside(t, r, func(dir string) {
		f, err := os.Create(dir + "/filler")
		must(t, err)
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	})
	return func() {
		t.Helper()
		inside(t, r, func(dir string) { must(t, os.Remove(dir+"/filler")) })
	}
}

func TestRefreshFollowsTheObject(t *testing.T) {
	h := newHarness(t)
	h.secret("keys", content{"a": "1", "b": "1"})
	r := h.request("v", "secretName", "keys", "uid", "1000")
	h.publish(r)
	mount := mountID(t, r)
	h.run()
	for _, c := range []content{
		{"a": "2", "b": "2"}, // changed
		{"b": "2"},           // one key removed
		{"b": "2", "c": "3"}, // one key added
		{},                   // no key
		{"a": "1", "b": "1"}, // as before
	} {
		h.secret("keys", c)
		h.becomes(r, c)
	}
	h.removeSecret("keys")
	testkit.Eventually(t, patience, "the volume to be stale", func() bool { return h.gauge("fsuser_stale_volumes") == 1 })
	h.present(r, content{"a": "1", "b": "1"})
	h.secret("keys", content{"a": "anew"})
	h.becomes(r, content{"a": "anew"})
	testkit.Eventually(t, patience, "the volume to be current",
		func() bool { return h.gauge("fsuser_stale_volumes") == 0 })
	if now := mountID(t, r); now != mount {
		t.Errorf("it was mounted anew: mount %d, before: %d", now, mount)
	}
	h.unpublish(r)
}

func TestOptionalSecretComesAndGoes(t *testing.T) {
	h := newHarness(t)
	r := h.request("v", "secretName", "later", "optional", "true")
	h.publish(r)
	h.present(r, content{})
	h.run()
	h.secret("later", content{"k": "here"})
	h.becomes(r, content{"k": "here"})
	h.removeSecret("later")
	h.becomes(r, content{})
	if n := h.gauge("fsuser_stale_volumes"); n != 0 {
		t.Errorf("%v stale volumes; the absence of an optional Secret is no failure", n)
	}
	h.unpublish(r)
}

func TestManyChangesAreFewWritesAndTheLastOneStays(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "first"})
	r := h.request("v", "secretName", "keys")
	h.publish(r)
	h.run()
	testkit.Eventually(t, patience, "the workers to be idle", h.idle)
	busy, finish := make(chan struct{}), make(chan struct{})
	h.fake.setAfterGet(func() { h.fake.setAfterGet(nil); close(busy); <-finish })
	h.secret("keys", content{"k": "busy"})
	<-busy // A worker has read the content, and has not written it yet.
	for i := range 1000 {
		h.secret("keys", content{"k": fmt.Sprint(i)})
	}
	close(finish)
	h.becomes(r, content{"k": "999"})
	testkit.Eventually(t, patience, "the workers to be idle", h.idle)
	if n := h.counts()["refresh ok"]; n != 2 {
		t.Errorf("a change, and 1000 changes that came while its worker was busy, took %d writes, want 2", n)
	}
	h.unpublish(r)
}

func TestRefreshThatFailsKeepsTheFiles(t *testing.T) {
	optional := secretVolume("keys")
	optional.Secret.Optional = ptr.To(true)
	for _, test := range []struct {
		name      string
		described corev1.VolumeSource
		// fail makes the next refresh fail. repair ends the failure, and returns the content that the volume shows then.
		fail func(h *harness, r Request) (repair func() content)
		want error
		// retried means that the driver retries the refresh although nothing has changed.
		retried bool
	}{
		{"the volume is full", secretVolume("keys"), func(h *harness, r Request) func() content {
			undo := fill(h.t, r)
			h.secret("keys", content{"a": "2", "b": "2"})
			return func() content { undo(); return content{"a": "2", "b": "2"} }
		}, unix.ENOSPC, true},
		{"there is more content than a volume may hold", secretVolume("keys"), func(h *harness, r Request) func() content {
			h.secret("keys", content{"a": strings.Repeat("x", 5<<20)})
			return func() content { h.secret("keys", content{"a": "3"}); return content{"a": "3"} }
		}, ErrPrecondition, false},
		{"a key that an item names is gone", secretVolume("keys", "a", "a", "b", "b"),
			func(h *harness, r Request) func() content {
				h.secret("keys", content{"a": "2"})
				return func() content { h.secret("keys", content{"a": "3", "b": "3"}); return content{"a": "3", "b": "3"} }
			}, ErrPrecondition, false},
		{"a key is no file name", secretVolume("keys"), func(h *harness, r Request) func() content {
			h.secret("keys", content{"a": "2", "../b": "2"})
			return func() content { h.secret("keys", content{"a": "3"}); return content{"a": "3"} }
		}, ErrPrecondition, false},
		{"the Secret is deleted", secretVolume("keys"), objectFails(source.ErrNotFound), source.ErrNotFound, false},
		{"the Secret may not be read any more", secretVolume("keys"), objectFails(source.ErrForbidden), source.ErrForbidden,
			false},
		{"the Secret can't be read now", secretVolume("keys"), objectFails(source.ErrUnavailable), source.ErrUnavailable,
			false},
		{"an optional Secret may not be read any more, which is not missing", optional, objectFails(source.ErrForbidden),
			source.ErrForbidden, false},
		{"an optional Secret can't be read now, which is not missing", optional, objectFails(source.ErrUnavailable),
			source.ErrUnavailable, false},
		{"somebody mounted something over the volume", secretVolume("keys"), func(h *harness, r Request) func() content {
			must(h.t, unix.Mount("somebody", r.TargetPath, "tmpfs", 0, ""))
			must(h.t, os.WriteFile(r.TargetPath+"/precious", nil, 0o600))
			h.secret("keys", content{"a": "2"})
			return func() content {
				if _, err := os.Stat(r.TargetPath + "/precious"); err != nil {
					h.t.Errorf("what somebody else mounted was written to: %v", err)
				}
				must(h.t, unix.Unmount(r.TargetPath, 0))
				h.secret("keys", content{"a": "3"})
				return content{"a": "3"}
			}
		}, tmpfs.ErrNotMounted, false},
		{"somebody unmounted the volume", secretVolume("keys"), func(h *harness, r Request) func() content {
			must(h.t, unix.Unmount(r.TargetPath, 0))
			h.secret("keys", content{"a": "2"})
			return func() content { h.publish(r); return content{"a": "2"} }
		}, tmpfs.ErrNotMounted, false},
		{"somebody removed the directory", secretVolume("keys"), func(h *harness, r Request) func() content {
			// The first collection may come late. It forgets a volume without a directory, unless a call holds the lock.
			unlock, err := h.locks.lock(h.t.Context(), r.ID)
			must(h.t, err)
			must(h.t, unix.Unmount(r.TargetPath, 0))
			must(h.t, os.RemoveAll(filepath.Dir(r.TargetPath)))
			h.secret("keys", content{"a": "2"})
			return func() content {
				must(h.t, os.Mkdir(filepath.Dir(r.TargetPath), 0o750))
				unlock()
				h.publish(r)
				return content{"a": "2"}
			}
		}, fs.ErrNotExist, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"a": "1", "b": "1"})
			h.secret("healthy", content{"k": "1"})
			healthy, r := h.request("healthy", "secretName", "healthy"), h.described("v", test.described)
			h.publish(healthy)
			h.publish(r)
			h.run()
			generation := readlink(t, r)
			container, undo := testkit.AsContainer(t, r.TargetPath)
			defer undo()

			repair := test.fail(h, r)
			testkit.Eventually(t, patience, "the volume to be stale",
				func() bool { return h.gauge("fsuser_stale_volumes") == 1 })
			if got := visible(t, container); !maps.Equal(got, content{"a": "1", "b": "1"}) &&
				!(got["filler"] != "" && got["a"] == "1" && got["b"] == "1") {
				t.Errorf("the container sees %.200q", got)
			}
			if now, err := os.Readlink(container + "/..data"); now != generation {
				t.Errorf("..data names %q, %v, not %q", now, err, generation)
			}
			isErr(t, h.get(r.ID).snapshot().stale, test.want)
			if test.retried {
				n := h.counts()["refresh error"]
				testkit.Eventually(t, patience, "another attempt", func() bool { return h.counts()["refresh error"] > n })
			} else {
				testkit.Eventually(t, patience, "the workers to be idle", h.idle)
				if n := h.queue.NumRequeues(h.get(r.ID)); n != 0 {
					t.Errorf("it was put back %d times, although only a change helps", n)
				}
			}
			// Other volumes are refreshed.
			h.secret("healthy", content{"k": "2"})
			h.becomes(healthy, content{"k": "2"})

			// A refresh that is retried needs no notification.
			want := repair()
			h.becomes(r, want)
			testkit.Eventually(t, patience, "the volume to be current",
				func() bool { return h.gauge("fsuser_stale_volumes") == 0 })
			testkit.Eventually(t, patience, "the failures to be forgotten",
				func() bool { return h.queue.NumRequeues(h.get(r.ID)) == 0 })
			h.present(r, want)
			h.unpublish(r)
		})
	}
	reliability.Shown(t, "F-16", "a refresh without room: the old version whole, the new one when there is room")
}

func objectFails(reason error) func(*harness, Request) func() content {
	return func(h *harness, r Request) func() content {
		h.fake.fail(secretRef("keys"), reason)
		return func() content { h.secret("keys", content{"a": "3"}); return content{"a": "3"} }
	}
}

// The new version is visible, but some of its links are missing. The old version, which may hold a revoked value, still
// exists. The next attempt must not regard the volume as current because the new version is visible.
func TestRefreshThatGetsHalfwayIsFinished(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"a": "taken back"})
	r := h.request("v", "secretName", "keys")
	h.publish(r)
	// The new version takes five inodes: a directory, three files and a link. Then the links b and c take an inode each,
	// and one inode becomes free.
	const leave = 5
	inside(t, r, func(dir string) {
		target, err := tmpfs.OpenTarget(r.TargetPath)
		must(t, err)
		defer target.Close()
		clone, err := target.Clone(h.get(r.ID).identity)
		must(t, err)
		defer clone.Close()
		// Room enough that the refresh grows nothing.
		must(t, clone.Grow(tmpfs.Limits{Bytes: 1 << 20, Inodes: 100}, h.config.Features.NoSwap))
		n := 0
		for ; err == nil; n++ {
			err = os.WriteFile(fmt.Sprintf("%s/filler%d", dir, n), nil, 0o600)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		for i := range leave {
			must(t, os.Remove(fmt.Sprintf("%s/filler%d", dir, i)))
		}
	})
	old := filepath.Join(r.TargetPath, readlink(t, r))
	h.secret("keys", content{"a": "new", "b": "new", "c": "new"})
	err := h.refreshNow(r)
	isErr(t, err, unix.ENOSPC)
	if b, err := os.ReadFile(r.TargetPath + "/a"); string(b) != "new" {
		t.Fatalf("this test wants the new version to be visible; a holds %q, %v", b, err)
	}
	if n := h.gauge("fsuser_stale_volumes"); n != 1 {
		t.Errorf("%v stale volumes, want 1", n)
	}

	// The removal of the old version frees the inodes that the links need.
	must(t, h.refreshNow(r))
	h.present(r, content{"a": "new", "b": "new", "c": "new"})
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old version is still there: %v", err)
	}
	if n := h.gauge("fsuser_stale_volumes"); n != 0 {
		t.Errorf("%v stale volumes, want none", n)
	}
}

func TestVolumeGrowsBeyondItsFirstSize(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "tiny"})
	r := h.request("v", "secretName", "keys")
	h.publish(r)
	h.run()
	many := content{}
	for i := range 2048 {
		many[fmt.Sprint("key", i)] = "tiny"
	}
	for _, c := range []content{
		{"k": strings.Repeat("x", 4<<20)}, {"k": strings.Repeat("y", 4<<20)}, many, {"k": "tiny"},
		{"a": strings.Repeat("x", 2<<20), "b": strings.Repeat("y", 2<<20)},
	} {
		h.secret("keys", c)
		h.becomes(r, c)
	}
	if n := h.counts()["refresh error"]; n != 0 {
		t.Errorf("%d refreshes failed", n)
	}
	h.unpublish(r)
}

func TestVolumeThatSomebodyShrankGrowsBack(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "1"})
	r := h.request("v", "secretName", "keys")
	h.publish(r)
	h.run()
	// Not mount(2): it would make the file system read-only, or the mount writable.
	fs, err := unix.Fspick(unix.AT_FDCWD, r.TargetPath, unix.FSPICK_CLOEXEC)
	must(t, err)
	defer unix.Close(fs)
	must(t, unix.FsconfigSetString(fs, "size", "4k"))
	if h.config.Features.NoSwap {
		must(t, unix.FsconfigSetFlag(fs, "noswap"))
	}
	must(t, unix.FsconfigReconfigure(fs))
	if u, err := h.Usage(t.Context(), r.ID, r.TargetPath); err != nil || u.BytesFree != 0 {
		t.Fatalf("this test wants a volume without room: %+v, %v", u, err)
	}
	h.secret("keys", content{"k": "2", "l": "2"})
	h.becomes(r, content{"k": "2", "l": "2"})
	h.unpublish(r)
}

// A volume that follows its objects may begin with a version from the API server's cache. A volume with refresh off
// would keep that version, so its objects are read once, in their newest version, without a watch.
func TestVolumeWithRefreshOffReadsTheNewest(t *testing.T) {
	h := newFakeHarness(t, func(c *Config) { c.Limits.Objects = 1 })
	h.secret("watched", content{"k": "v"})
	h.publish(h.request("watch", "secretName", "watched"))
	watched := h.subscriptions()
	h.secret("keys", content{"k": "v"})
	missing := secretProjection("missing")
	missing.Secret.Optional = ptr.To(true)
	r := h.described("v", projectedVolume(secretProjection("keys"), missing), "refresh", "off")
	h.publish(r)
	h.present(r, content{"k": "v"})
	if n := h.fake.called("Read"); n != 2 || !slices.Equal(h.subscriptions(), watched) {
		t.Errorf("%d reads, subscriptions %q; want a read of each object", n, h.subscriptions())
	}
	h.unpublish(r)

	h.fake.fail(secretRef("keys"), source.ErrForbidden)
	before := h.snapshot()
	isErr(t, h.Publish(t.Context(), r), source.ErrForbidden, `Secret "ns/keys"`)
	h.unchanged(before)
}

func TestVolumeWithRefreshOffIsNeverWritten(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "as published"})
	r := h.request("v", "secretName", "keys", "refresh", "off")
	h.publish(r)
	h.present(r, content{"k": "as published"})
	h.run()
	reads := h.fake.called("Read")
	inodes := h.snapshot()
	h.secret("keys", content{"k": "changed"})
	h.queue.Add(h.get(r.ID)) // a notification from another source
	h.publish(r)
	testkit.Eventually(t, patience, "the workers to be idle", h.idle)
	h.unchanged(inodes)
	if now := h.fake.called("Read"); now != reads || h.fake.called("Get") != 0 {
		t.Errorf("its object was read %d times after the first publish", now-reads)
	}
	if n := h.counts()["refresh ok"] + h.counts()["refresh error"]; n != 0 {
		t.Errorf("it was refreshed %d times", n)
	}
	h.restart()
	h.run()
	h.publish(r)
	h.present(r, content{"k": "as published"})
	if got := h.subscriptions(); len(got) != 0 {
		t.Errorf("after a restart it watches %q", got)
	}
	h.unpublish(r)
}

func TestOneVolumeIsWrittenByOneAtATime(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "0"})
	r := h.request("v", "secretName", "keys")
	h.publish(r)
	h.run()
	var busy, most atomic.Int32
	h.fake.setAfterGet(func() {
		most.Store(max(most.Load(), busy.Add(1)))
		for range 200 { // gives other goroutines time
			runtime.Gosched()
		}
		busy.Add(-1)
	})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for range 30 {
				if err := h.Publish(t.Context(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 200 {
		h.secret("keys", content{"k": fmt.Sprint(i)})
		runtime.Gosched()
	}
	callers.Wait()
	h.becomes(r, content{"k": "199"})
	if n := most.Load(); n != 1 {
		t.Errorf("%d wrote the volume at the same time", n)
	}
	h.fake.setAfterGet(nil)
	h.unpublish(r)
}

func TestVolumesAreRefreshedInParallel(t *testing.T) {
	h := newFakeHarness(t, func(c *Config) { c.Workers = 3 })
	var requests []Request
	for i := range 3 {
		h.secret(fmt.Sprint("s", i), content{"k": "1"})
		requests = append(requests, h.request(fmt.Sprint("v", i), "secretName", fmt.Sprint("s", i)))
		h.publish(requests[i])
	}
	for h.queue.Len() > 0 { // the volumes that Publish queued
		id, _ := h.queue.Get()
		h.queue.Done(id)
	}
	// Each refresh waits until three have begun.
	together := sync.WaitGroup{}
	together.Add(3)
	h.fake.setAfterGet(func() { together.Done(); together.Wait() })
	for i := range requests {
		h.secret(fmt.Sprint("s", i), content{"k": "2"})
	}
	h.run()
	together.Wait()
	h.fake.setAfterGet(nil)
	for _, r := range requests {
		h.becomes(r, content{"k": "2"})
	}
}

// A pod whose Secret is missing may wait for minutes, and must not delay other volumes.
func TestPublishesThatWaitHoldUpNoRefresh(t *testing.T) {
	h := newFakeHarness(t, func(c *Config) { c.Workers = 1 })
	h.secret("other", content{"k": "1"})
	other := h.request("other", "secretName", "other")
	h.publish(other)
	h.run()
	slow := h.described("slow", projectedVolume(secretProjection("first"), secretProjection("second")))
	waiting := h.fake.hang(secretRef("second"))
	h.secret("first", content{"a": "1"}) // A worker handles the first result.
	published := make(chan error)
	go func() { published <- h.Publish(t.Context(), slow) }()
	<-waiting
	h.secret("first", content{"a": "2"})
	h.secret("other", content{"k": "2"})
	h.becomes(other, content{"k": "2"})

	// A worker shows the change that comes after the content was read and before the volume is published.
	var once sync.Once
	h.fake.setAfterGet(func() { once.Do(func() { h.secret("first", content{"a": "3"}) }) })
	h.secret("second", content{"b": "1"})
	must(t, <-published)
	h.becomes(slow, content{"a": "3", "b": "1"})
	h.fake.setAfterGet(nil)
	h.unpublish(slow)
	h.unpublish(other)
}

// A reader that opens ..data once sees one whole version, even while versions change as fast as they can.
func TestReaderNeverSeesAMixOfVersions(t *testing.T) {
	const versions = 60
	h := newFakeHarness(t)
	version := func(n int) content {
		// The text is longer than a page, and has different lengths.
		text := strings.Repeat(fmt.Sprintf("version %d ", n), 500+n)
		return content{"a": text, "b": text, "d.conf": text}
	}
	h.secret("keys", version(0))
	r := h.described("v", secretVolume("keys", "a", "a", "b", "d/b", "d.conf", "d/e/c"), "uid", "1000")
	h.publish(r)
	h.run()
	var seen atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			files, err := readVersion(r.TargetPath+"/..data", "a", "d/b", "d/e/c")
			if err != nil {
				continue // A new version removed this one.
			}
			if !bytes.Equal(files[0], files[1]) || !bytes.Equal(files[1], files[2]) {
				t.Errorf("a mix: %.20q, %.20q, %.20q", files[0], files[1], files[2])
				return
			}
			var n int64
			if _, err := fmt.Sscanf(string(files[0]), "version %d", &n); err != nil || string(files[0]) != version(int(n))["a"] {
				t.Errorf("not a version: %.40q... (%d bytes), %v", files[0], len(files[0]), err)
				return
			}
			seen.Store(max(seen.Load(), n))
		}
	}()
	for n := 1; n <= versions; n++ {
		h.secret("keys", version(n))
		if n%3 == 0 {
			testkit.Eventually(t, patience, "the reader to see a version",
				func() bool { return int(seen.Load()) == n || isClosed(stopped) })
		}
	}
	close(stop)
	<-stopped
	h.unpublish(r)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// readVersion opens a directory once and reads files below it.
func readVersion(dir string, paths ...string) (files [][]byte, err error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for _, path := range paths {
		file, err := unix.Openat(fd, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(file), path)
		b, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		files = append(files, b)
	}
	return files, nil
}
