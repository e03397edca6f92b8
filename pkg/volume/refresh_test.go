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
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
	"github.com/fsuser-csi/fsuser-csi/test/reliability"
)

// inside calls f with a path below which the file system of a volume can be written to.
func inside(t testing.TB, r Request, f func(dir string)) {
	t.Helper()
	point, err := tmpfs.OpenTarget(r.Target)
	must(t, err)
	defer point.Close()
	state, err := point.Inspect()
	must(t, err)
	clone, err := point.Clone(state.Identity)
	must(t, err)
	defer clone.Close()
	f(fmt.Sprintf("/proc/self/fd/%d", clone.Dir()))
}

// fill takes all the bytes that a volume has left, until undo is called.
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
	w := newWorld(t)
	w.secret("keys", content{"a": "1", "b": "1"})
	r := w.request("v", "secretName", "keys", "uid", "1000")
	w.publish(r)
	mount := mountID(t, r)
	w.run()
	for _, c := range []content{
		{"a": "2", "b": "2"}, // changed
		{"b": "2"},           // a key less
		{"b": "2", "c": "3"}, // a key more
		{},                   // none
		{"a": "1", "b": "1"}, // as before
	} {
		w.secret("keys", c)
		w.becomes(r, c)
	}
	w.removeSecret("keys")
	testkit.Eventually(t, patience, "the volume to be stale", func() bool { return w.gauge("fsuser_stale_volumes") == 1 })
	w.present(r, content{"a": "1", "b": "1"})
	w.secret("keys", content{"a": "anew"})
	w.becomes(r, content{"a": "anew"})
	testkit.Eventually(t, patience, "the volume to be current", func() bool { return w.gauge("fsuser_stale_volumes") == 0 })
	if now := mountID(t, r); now != mount {
		t.Errorf("it was mounted anew: mount %d, before: %d", now, mount)
	}
	w.unpublish(r)
}

func TestOptionalSecretComesAndGoes(t *testing.T) {
	w := newWorld(t)
	r := w.request("v", "secretName", "later", "optional", "true")
	w.publish(r)
	w.present(r, content{})
	w.run()
	w.secret("later", content{"k": "here"})
	w.becomes(r, content{"k": "here"})
	w.removeSecret("later")
	w.becomes(r, content{})
	if n := w.gauge("fsuser_stale_volumes"); n != 0 {
		t.Errorf("%v stale volumes; the absence of an optional Secret is no failure", n)
	}
	w.unpublish(r)
}

func TestManyChangesAreFewWritesAndTheLastOneStays(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("keys", content{"k": "first"})
	r := w.request("v", "secretName", "keys")
	w.publish(r)
	w.run()
	testkit.Eventually(t, patience, "the queue to be empty", func() bool { return w.queue.Len() == 0 && w.locks.isEmpty() })
	// While this call has the volume no worker can write.
	unlock, err := w.locks.lock(t.Context(), r.ID)
	must(t, err)
	for i := range 1000 {
		w.secret("keys", content{"k": fmt.Sprint(i)})
	}
	unlock()
	w.becomes(r, content{"k": "999"})
	testkit.Eventually(t, patience, "the queue to be empty", func() bool { return w.queue.Len() == 0 && w.locks.isEmpty() })
	// One for which a worker waited already, one for what came meanwhile.
	if n := w.counts()["refresh ok"]; n < 1 || n > 2 {
		t.Errorf("1000 changes that came while the volume was busy took %d writes", n)
	}
	w.unpublish(r)
}

func TestRefreshThatFailsKeepsTheFiles(t *testing.T) {
	for _, test := range []struct {
		name  string
		attrs []string
		// fail has the next refresh fail, and returns what lets it succeed, with the content that it then shows.
		fail func(w *world, r Request) (repair func() content)
		want error
		// retried: it is tried again although nothing has changed.
		retried bool
	}{
		{"the volume is full", nil, func(w *world, r Request) func() content {
			undo := fill(w.t, r)
			w.secret("keys", content{"a": "2", "b": "2"})
			return func() content { undo(); return content{"a": "2", "b": "2"} }
		}, unix.ENOSPC, true},
		{"there is more content than a volume may hold", nil, func(w *world, r Request) func() content {
			w.secret("keys", content{"a": strings.Repeat("x", 5<<20)})
			return func() content { w.secret("keys", content{"a": "3"}); return content{"a": "3"} }
		}, ErrPrecondition, false},
		{"a key that items name is gone", []string{"items", "[{key: a, path: a}, {key: b, path: b}]"}, func(w *world, r Request) func() content {
			w.secret("keys", content{"a": "2"})
			return func() content { w.secret("keys", content{"a": "3", "b": "3"}); return content{"a": "3", "b": "3"} }
		}, ErrPrecondition, false},
		{"a key is no file name", nil, func(w *world, r Request) func() content {
			w.secret("keys", content{"a": "2", "../b": "2"})
			return func() content { w.secret("keys", content{"a": "3"}); return content{"a": "3"} }
		}, ErrPrecondition, false},
		{"the Secret is deleted", nil, objectFails(source.ErrNotFound), source.ErrNotFound, false},
		{"the Secret may not be read any more", nil, objectFails(source.ErrForbidden), source.ErrForbidden, false},
		{"the Secret can't be read now", nil, objectFails(source.ErrUnavailable), source.ErrUnavailable, false},
		{"an optional Secret may not be read any more, which is not missing", []string{"optional", "true"}, objectFails(source.ErrForbidden), source.ErrForbidden, false},
		{"an optional Secret can't be read now, which is not missing", []string{"optional", "true"}, objectFails(source.ErrUnavailable), source.ErrUnavailable, false},
		{"somebody mounted something over the volume", nil, func(w *world, r Request) func() content {
			must(w.t, unix.Mount("somebody", r.Target, "tmpfs", 0, ""))
			must(w.t, os.WriteFile(r.Target+"/precious", nil, 0o600))
			w.secret("keys", content{"a": "2"})
			return func() content {
				if _, err := os.Stat(r.Target + "/precious"); err != nil {
					w.t.Errorf("what somebody else mounted was written to: %v", err)
				}
				must(w.t, unix.Unmount(r.Target, 0))
				w.secret("keys", content{"a": "3"})
				return content{"a": "3"}
			}
		}, tmpfs.ErrNotMounted, false},
		{"somebody unmounted the volume", nil, func(w *world, r Request) func() content {
			must(w.t, unix.Unmount(r.Target, 0))
			w.secret("keys", content{"a": "2"})
			return func() content { w.publish(r); return content{"a": "2"} }
		}, tmpfs.ErrNotMounted, false},
		{"somebody removed the directory", nil, func(w *world, r Request) func() content {
			must(w.t, unix.Unmount(r.Target, 0))
			must(w.t, os.RemoveAll(filepath.Dir(r.Target)))
			w.secret("keys", content{"a": "2"})
			return func() content {
				must(w.t, os.Mkdir(filepath.Dir(r.Target), 0o750))
				w.publish(r)
				return content{"a": "2"}
			}
		}, fs.ErrNotExist, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			w.secret("keys", content{"a": "1", "b": "1"})
			w.secret("healthy", content{"k": "1"})
			healthy, r := w.request("healthy", "secretName", "healthy"), w.request("v", append(test.attrs, "secretName", "keys")...)
			w.publish(healthy)
			w.publish(r)
			w.run()
			generation := readlink(t, r)
			container, undo := testkit.AsContainer(t, r.Target)
			defer undo()

			repair := test.fail(w, r)
			testkit.Eventually(t, patience, "the volume to be stale", func() bool { return w.gauge("fsuser_stale_volumes") == 1 })
			if got := visible(t, container); !maps.Equal(got, content{"a": "1", "b": "1"}) && !(got["filler"] != "" && got["a"] == "1" && got["b"] == "1") {
				t.Errorf("the container sees %.200q", got)
			}
			if now, err := os.Readlink(container + "/..data"); now != generation {
				t.Errorf("..data names %q, %v, not %q", now, err, generation)
			}
			v := w.get(r.ID)
			unlock, err := w.locks.lock(t.Context(), r.ID)
			must(t, err)
			stale := v.stale
			unlock()
			isErr(t, stale, test.want)
			if test.retried {
				n := w.counts()["refresh error"]
				testkit.Eventually(t, patience, "another attempt", func() bool { return w.counts()["refresh error"] > n })
			} else {
				testkit.Eventually(t, patience, "the queue to be empty", func() bool { return w.queue.Len() == 0 && w.locks.isEmpty() })
				if n := w.queue.NumRequeues(r.ID); n != 0 {
					t.Errorf("it was put back %d times, although only a change helps", n)
				}
			}
			// The others go on.
			w.secret("healthy", content{"k": "2"})
			w.becomes(healthy, content{"k": "2"})

			// Without another notification if it is retried.
			want := repair()
			w.becomes(r, want)
			testkit.Eventually(t, patience, "the volume to be current", func() bool { return w.gauge("fsuser_stale_volumes") == 0 })
			testkit.Eventually(t, patience, "the failures to be forgotten", func() bool { return w.queue.NumRequeues(r.ID) == 0 })
			w.present(r, want)
			w.unpublish(r)
		})
	}
	reliability.Shown(t, "F-16", "a refresh without room: the old version whole, the new one when there is room")
}

func objectFails(reason error) func(*world, Request) func() content {
	return func(w *world, r Request) func() content {
		w.fake.fail(secretRef("keys"), reason)
		return func() content { w.secret("keys", content{"a": "3"}); return content{"a": "3"} }
	}
}

// The new version is visible, but not all its links could be made and the old version is still there: a value that was taken back could
// be read on. The next attempt must not take the volume for current because its version is.
func TestRefreshThatGetsHalfwayIsFinished(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("keys", content{"a": "taken back"})
	r := w.request("v", "secretName", "keys")
	w.publish(r)
	// The new version is a directory, three files and a link; after that the links b and c need an inode each, and one comes free.
	const leave = 5
	inside(t, r, func(dir string) {
		point, err := tmpfs.OpenTarget(r.Target)
		must(t, err)
		defer point.Close()
		clone, err := point.Clone(w.get(r.ID).identity)
		must(t, err)
		defer clone.Close()
		must(t, clone.Grow(tmpfs.Limits{Bytes: 1 << 20, Inodes: 100}, w.Features.NoSwap)) // enough, so that the refresh grows nothing
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
	old := filepath.Join(r.Target, readlink(t, r))
	w.secret("keys", content{"a": "new", "b": "new", "c": "new"})
	err := w.refresh(t.Context(), r.ID)
	isErr(t, err, unix.ENOSPC)
	if b, err := os.ReadFile(r.Target + "/a"); string(b) != "new" {
		t.Fatalf("this test wants the new version to be visible; a holds %q, %v", b, err)
	}
	if n := w.gauge("fsuser_stale_volumes"); n != 1 {
		t.Errorf("%v stale volumes, want 1", n)
	}

	// Removing the old version first makes the inodes free that the links need.
	must(t, w.refresh(t.Context(), r.ID))
	w.present(r, content{"a": "new", "b": "new", "c": "new"})
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old version is still there: %v", err)
	}
	if n := w.gauge("fsuser_stale_volumes"); n != 0 {
		t.Errorf("%v stale volumes, want none", n)
	}
}

func TestVolumeGrowsBeyondItsFirstSize(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("keys", content{"k": "tiny"})
	r := w.request("v", "secretName", "keys")
	w.publish(r)
	w.run()
	many := content{}
	for i := range 2048 {
		many[fmt.Sprint("key", i)] = "tiny"
	}
	for _, c := range []content{
		{"k": strings.Repeat("x", 4<<20)}, {"k": strings.Repeat("y", 4<<20)}, many, {"k": "tiny"},
		{"a": strings.Repeat("x", 2<<20), "b": strings.Repeat("y", 2<<20)},
	} {
		w.secret("keys", c)
		w.becomes(r, c)
	}
	if n := w.counts()["refresh error"]; n != 0 {
		t.Errorf("%d refreshes failed", n)
	}
	w.unpublish(r)
}

func TestVolumeThatSomebodyShrankGrowsBack(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("keys", content{"k": "1"})
	r := w.request("v", "secretName", "keys")
	w.publish(r)
	w.run()
	// Not mount(2): it would make the file system read-only, or the mount writable.
	fs, err := unix.Fspick(unix.AT_FDCWD, r.Target, unix.FSPICK_CLOEXEC)
	must(t, err)
	defer unix.Close(fs)
	must(t, unix.FsconfigSetString(fs, "size", "4k"))
	if w.Features.NoSwap {
		must(t, unix.FsconfigSetFlag(fs, "noswap"))
	}
	must(t, unix.FsconfigReconfigure(fs))
	if u, err := w.Usage(t.Context(), r.ID, r.Target); err != nil || u.BytesFree != 0 {
		t.Fatalf("this test wants a volume without room: %+v, %v", u, err)
	}
	w.secret("keys", content{"k": "2", "l": "2"})
	w.becomes(r, content{"k": "2", "l": "2"})
	w.unpublish(r)
}

// A volume that follows its objects may begin with what an API server has at hand; one that does not would keep it.
func TestVolumeWithRefreshOffAsksForTheNewest(t *testing.T) {
	for _, refresh := range []attributes.Refresh{attributes.RefreshWatch, attributes.RefreshOff} {
		v := testVolume(parse(t, map[string]string{"sources": threeSources, "refresh": string(refresh)}, false), nil)
		for _, object := range v.objects {
			if want := refresh == attributes.RefreshOff; object.Newest != want {
				t.Errorf("with refresh %s it asks for the newest %s: %v, want %v", refresh, object, object.Newest, want)
			}
		}
	}
}

func TestVolumeWithRefreshOffIsNeverWritten(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("keys", content{"k": "as published"})
	r := w.request("v", "secretName", "keys", "refresh", "off")
	w.publish(r)
	w.present(r, content{"k": "as published"})
	w.run()
	gets := w.fake.numberOfGets()
	inodes := w.snapshot()
	w.secret("keys", content{"k": "changed"})
	w.queue.Add(r.ID) // somebody else's notification
	w.publish(r)
	testkit.Eventually(t, patience, "the queue to be empty", func() bool { return w.queue.Len() == 0 && w.locks.isEmpty() })
	w.unchanged(inodes)
	if now := w.fake.numberOfGets(); now != gets {
		t.Errorf("its object was read %d times after the first publish", now-gets)
	}
	if n := w.counts()["refresh ok"] + w.counts()["refresh error"]; n != 0 {
		t.Errorf("it was refreshed %d times", n)
	}
	w.restart()
	w.run()
	w.publish(r)
	w.present(r, content{"k": "as published"})
	if got := w.watches(); len(got) != 0 {
		t.Errorf("after a restart it watches %q", got)
	}
	w.unpublish(r)
}

func TestOneVolumeIsWrittenByOneAtATime(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("keys", content{"k": "0"})
	r := w.request("v", "secretName", "keys")
	w.publish(r)
	w.run()
	var busy, most atomic.Int32
	w.fake.setAfterGet(func() {
		most.Store(max(most.Load(), busy.Add(1)))
		for range 200 { // a chance for others
			runtime.Gosched()
		}
		busy.Add(-1)
	})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for range 30 {
				if err := w.Publish(t.Context(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 200 {
		w.secret("keys", content{"k": fmt.Sprint(i)})
		runtime.Gosched()
	}
	callers.Wait()
	w.becomes(r, content{"k": "199"})
	if n := most.Load(); n != 1 {
		t.Errorf("%d wrote the volume at the same time", n)
	}
	w.fake.setAfterGet(nil)
	w.unpublish(r)
}

func TestVolumesAreRefreshedInParallel(t *testing.T) {
	w := newFakeWorld(t, func(c *Config) { c.Workers = 3 })
	var requests []Request
	for i := range 3 {
		w.secret(fmt.Sprint("s", i), content{"k": "1"})
		requests = append(requests, w.request(fmt.Sprint("v", i), "secretName", fmt.Sprint("s", i)))
		w.publish(requests[i])
	}
	for w.queue.Len() > 0 { // what Publish put there
		id, _ := w.queue.Get()
		w.queue.Done(id)
	}
	// Nobody goes on before three are there.
	together := sync.WaitGroup{}
	together.Add(3)
	w.fake.setAfterGet(func() { together.Done(); together.Wait() })
	for i := range requests {
		w.secret(fmt.Sprint("s", i), content{"k": "2"})
	}
	w.run()
	together.Wait()
	w.fake.setAfterGet(nil)
	for _, r := range requests {
		w.becomes(r, content{"k": "2"})
	}
}

// A pod whose Secret is missing may wait for minutes, and no other volume with it.
func TestPublishesThatWaitHoldUpNoRefresh(t *testing.T) {
	w := newFakeWorld(t, func(c *Config) { c.Workers = 1 })
	w.secret("other", content{"k": "1"})
	other := w.request("other", "secretName", "other")
	w.publish(other)
	w.run()
	slow := w.request("slow", "sources", "[{secret: {name: first}}, {secret: {name: second}}]")
	waiting := w.fake.hang(secretRef("second"))
	w.secret("first", content{"a": "1"}) // a verdict, which is for a worker
	published := make(chan error)
	go func() { published <- w.Publish(t.Context(), slow) }()
	<-waiting
	w.secret("first", content{"a": "2"})
	w.secret("other", content{"k": "2"})
	w.becomes(other, content{"k": "2"})

	// What changes between reading and being published is for a worker again.
	var once sync.Once
	w.fake.setAfterGet(func() { once.Do(func() { w.secret("first", content{"a": "3"}) }) })
	w.secret("second", content{"b": "1"})
	must(t, <-published)
	w.becomes(slow, content{"a": "3", "b": "1"})
	w.fake.setAfterGet(nil)
	w.unpublish(slow)
	w.unpublish(other)
}

// A reader that opens ..data once sees one version, whole, while versions change as fast as they can.
func TestReaderNeverSeesAMixOfVersions(t *testing.T) {
	const versions = 60
	w := newFakeWorld(t)
	version := func(n int) content {
		// More than a page, and different lengths.
		text := strings.Repeat(fmt.Sprintf("version %d ", n), 500+n)
		return content{"a": text, "b": text, "d.conf": text}
	}
	w.secret("keys", version(0))
	r := w.request("v", "secretName", "keys", "uid", "1000", "items", "[{key: a, path: a}, {key: b, path: d/b}, {key: d.conf, path: d/e/c}]")
	w.publish(r)
	w.run()
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
			files, err := readVersion(r.Target+"/..data", "a", "d/b", "d/e/c")
			if err != nil {
				continue // it went while we looked
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
		w.secret("keys", version(n))
		if n%3 == 0 {
			testkit.Eventually(t, patience, "the reader to see a version", func() bool { return int(seen.Load()) == n || isClosed(stopped) })
		}
	}
	close(stop)
	<-stopped
	w.unpublish(r)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// readVersion reads files below a directory that is opened once.
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
