// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

func TestUnpublish(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, w *world, r *Request)
	}{
		{"a volume", func(t *testing.T, w *world, r *Request) {}},
		{"one that was never published", func(t *testing.T, w *world, r *Request) {
			w.unpublish(*r)
			*r = w.request("unknown", "secretName", "keys")
		}},
		{"twice", func(t *testing.T, w *world, r *Request) { w.unpublish(*r) }},
		{"one whose mount is gone", func(t *testing.T, w *world, r *Request) { must(t, unix.Unmount(r.Target, 0)) }},
		{"one whose directory is gone", func(t *testing.T, w *world, r *Request) {
			must(t, unix.Unmount(r.Target, 0))
			must(t, os.Remove(r.Target))
		}},
		{"one whose parent directory is gone", func(t *testing.T, w *world, r *Request) {
			must(t, unix.Unmount(r.Target, 0))
			must(t, os.RemoveAll(filepath.Dir(r.Target)))
		}},
		{"one whose pod's directory is gone", func(t *testing.T, w *world, r *Request) {
			must(t, unix.Unmount(r.Target, 0))
			must(t, os.RemoveAll(filepath.Join(w.root, "pods", r.Pod.UID)))
		}},
		{"one that is stale", func(t *testing.T, w *world, r *Request) {
			w.fake.fail(secretRef("keys"), source.ErrForbidden)
			w.publish(*r)
		}},
		{"while the API server hangs", func(t *testing.T, w *world, r *Request) { w.fake.hang(secretRef("keys")) }},
		{"one that is mounted twice", func(t *testing.T, w *world, r *Request) {
			must(t, unix.Mount(r.Target, r.Target, "", unix.MS_BIND, ""))
		}},
		{"one below three mounts of others", func(t *testing.T, w *world, r *Request) {
			for range 3 {
				foreignTmpfs(t, r.Target)
			}
		}},
		{"after a restart that knows it", func(t *testing.T, w *world, r *Request) { w.restart() }},
		{"after a restart that does not know it", func(t *testing.T, w *world, r *Request) {
			for _, file := range w.recordFiles() {
				must(t, os.Remove(file))
			}
			w.restart()
		}},
		{"with a record that a newer driver wrote", func(t *testing.T, w *world, r *Request) {
			must(t, os.WriteFile(w.recordFiles()[0], []byte(`{"version": 99, "volumeID": "csi-v"}`), 0o600))
			w.restart()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			w.secret("keys", content{"k": "v"})
			w.secret("healthy", content{"k": "healthy"})
			healthy, r := w.request("healthy", "secretName", "healthy"), w.request("v", "secretName", "keys")
			w.publish(r)
			test.prepare(t, w, &r)
			w.publish(healthy)
			w.unpublish(r)
			if n := w.gauge("fsuser_volumes"); n != 1 {
				t.Errorf("%v volumes, want the healthy one", n)
			}
			if n := w.gauge("fsuser_stale_volumes"); n != 0 {
				t.Errorf("%v stale volumes, want none", n)
			}
			w.present(healthy, content{"k": "healthy"})
			// The id is free again.
			w.secret("keys", content{"k": "anew"})
			must(t, os.MkdirAll(filepath.Dir(r.Target), 0o750))
			w.publish(r)
			w.present(r, content{"k": "anew"})
			w.unpublish(r)
		})
	}
}

func TestUnpublishOfABusyVolume(t *testing.T) {
	w := newWorld(t)
	w.secret("keys", content{"k": "v"})
	r := w.request("v", "secretName", "keys")
	w.publish(r)
	f, err := os.Open(filepath.Join(r.Target, "k"))
	must(t, err)
	defer f.Close()
	w.unpublish(r)
	if b, err := io.ReadAll(f); err != nil || string(b) != "v" {
		t.Errorf("who had the file open reads %q, %v", b, err)
	}
}

// The record of a mount that is gone is dropped by the next start.
func TestUnpublishWritesNothing(t *testing.T) {
	w := newWorld(t)
	w.secret("keys", content{"k": "v"})
	r := w.request("v", "secretName", "keys")
	w.publish(r)
	writable := readOnly(t, w.state)
	must(t, w.Unpublish(t.Context(), r.ID, r.Target))
	must(t, w.Unpublish(t.Context(), r.ID, r.Target))
	if w.get(r.ID) != nil || w.Source.Watched() != 0 || len(testkit.MountsBelow(t, r.Target)) > 0 {
		t.Errorf("it is not unpublished: %s", w.snapshot())
	}
	writable()
	if len(w.recordFiles()) != 1 {
		t.Fatal("this test wants the record to be left")
	}
	w.restart()
	w.absent(r)
}

func TestUnpublishRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, w *world, r *Request)
		want    error
		says    []string
	}{
		{"a known volume at another target", func(t *testing.T, w *world, r *Request) {
			r.Target = w.request("elsewhere").Target
			foreignTmpfs(t, r.Target)
		}, ErrPrecondition, []string{"nothing was unmounted"}},
		{"a known volume at another volume's target", func(t *testing.T, w *world, r *Request) {
			other := w.request("other")
			w.publish(other)
			r.Target = other.Target
		}, ErrPrecondition, []string{"nothing was unmounted"}},
		{"a target that is a link", func(t *testing.T, w *world, r *Request) {
			*r = w.request("link")
			elsewhere := w.request("elsewhere")
			w.publish(elsewhere)
			must(t, os.Symlink(elsewhere.Target, r.Target))
		}, ErrPrecondition, []string{"symbolic link"}},
		{"a target behind a link", func(t *testing.T, w *world, r *Request) {
			*r = w.request("link")
			elsewhere := w.request("elsewhere")
			w.publish(elsewhere)
			must(t, os.Remove(filepath.Dir(r.Target)))
			must(t, os.Symlink(filepath.Dir(elsewhere.Target), filepath.Dir(r.Target)))
		}, ErrPrecondition, []string{"symbolic link"}},
		{"a target that is a file", func(t *testing.T, w *world, r *Request) {
			*r = w.request("file")
			must(t, os.WriteFile(r.Target, []byte("precious"), 0o600))
		}, ErrPrecondition, []string{"not a directory"}},
		{"a directory that is not empty and no mount", func(t *testing.T, w *world, r *Request) {
			*r = w.request("dir")
			must(t, os.Mkdir(r.Target, 0o750))
			must(t, os.WriteFile(filepath.Join(r.Target, "precious"), nil, 0o600))
		}, unix.ENOTEMPTY, []string{"rmdir"}},
		{"a known volume whose mount is gone and whose directory somebody uses", func(t *testing.T, w *world, r *Request) {
			must(t, unix.Unmount(r.Target, 0))
			must(t, os.WriteFile(filepath.Join(r.Target, "precious"), nil, 0o600))
		}, unix.ENOTEMPTY, []string{"unpublish volume csi-v", "rmdir"}},
		{"a path that is not absolute", func(t *testing.T, w *world, r *Request) { r.ID, r.Target = "csi-x", "x/mount" }, nil, []string{"not an absolute clean path"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			w.secret("keys", content{"k": "v"})
			known := w.request("v", "secretName", "keys")
			w.publish(known)
			r := known
			test.prepare(t, w, &r)
			before := w.snapshot()
			err := w.Unpublish(t.Context(), r.ID, r.Target)
			if err == nil {
				t.Fatal("no error")
			}
			if test.want == nil {
				test.want = err
			}
			isErr(t, err, test.want, test.says...)
			// Also what is known stays known: there will be another call.
			w.unchanged(before)
			if w.get(known.ID) == nil {
				t.Error("the known volume is forgotten")
			}
		})
	}
}

func TestUnpublishDuringAPublishThatWaits(t *testing.T) {
	w := newFakeWorld(t)
	waiting := w.fake.hang(secretRef("hangs"))
	w.secret("keys", content{"k": "v"})
	hanging, other := w.request("hangs", "secretName", "hangs"), w.request("other", "secretName", "keys")
	w.publish(other)
	ctx, kubeletHangsUp := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() { failed <- w.Publish(ctx, hanging) }()
	<-waiting

	w.unpublish(other) // does not wait

	impatient, giveUp := context.WithCancel(t.Context())
	go func() { unpublished := w.Unpublish(impatient, hanging.ID, hanging.Target); failed <- unpublished }()
	testkit.Eventually(t, patience, "the call to wait", func() bool { return w.locks.users(hanging.ID) == 2 })
	giveUp()
	isErr(t, <-failed, ErrLocked)

	kubeletHangsUp()
	isErr(t, <-failed, context.Canceled)
	w.unpublish(hanging)
}

func TestPublishAndUnpublishRace(t *testing.T) {
	const iterations = 300
	w := newFakeWorld(t)
	w.secret("keys", content{"k": "0"})
	r := w.request("v", "secretName", "keys")
	w.run()
	before := w.snapshot()
	for i := range iterations {
		var calls sync.WaitGroup
		var published, unpublished error
		ctx, cancel := context.WithCancel(t.Context())
		calls.Go(func() { published = w.Publish(ctx, r) })
		calls.Go(func() { unpublished = w.Unpublish(t.Context(), r.ID, r.Target) })
		calls.Go(func() { w.secret("keys", content{"k": fmt.Sprint(i)}) })
		calls.Go(func() { w.Collect(t.Context()) })
		if i%3 == 0 {
			calls.Go(cancel)
		}
		calls.Wait()
		cancel()
		if unpublished != nil {
			t.Fatalf("unpublish: %v", unpublished)
		}
		if published != nil && !(errors.Is(published, context.Canceled) && i%3 == 0) || errors.Is(published, ErrLeftover) {
			t.Fatalf("publish: %v", published)
		}
		// Either of the two was last; what there is agrees with one of them.
		if w.get(r.ID) != nil {
			w.isThere(r)
			w.becomes(r, content{"k": fmt.Sprint(i)})
		} else {
			w.absent(r)
		}
		// What is acknowledged when nothing else is under way holds.
		if i%2 == 0 {
			w.publish(r)
			w.present(r, content{"k": fmt.Sprint(i)})
		}
		if i%4 != 3 {
			w.unpublish(r)
		}
		if t.Failed() {
			t.Fatalf("in iteration %d", i)
		}
	}
	w.unpublish(r)
	testkit.Eventually(t, patience, "the workers to be idle", func() bool { return w.queue.Len() == 0 && w.locks.isEmpty() })
	w.unchanged(before)
}
