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
		prepare func(t *testing.T, h *harness, r *Request)
	}{
		{"a volume", func(t *testing.T, h *harness, r *Request) {}},
		{"one that was never published", func(t *testing.T, h *harness, r *Request) {
			h.unpublish(*r)
			*r = h.request("unknown", "secretName", "keys")
		}},
		{"twice", func(t *testing.T, h *harness, r *Request) { h.unpublish(*r) }},
		{"one whose mount is gone", func(t *testing.T, h *harness, r *Request) { must(t, unix.Unmount(r.TargetPath, 0)) }},
		{"one whose directory is gone", func(t *testing.T, h *harness, r *Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			must(t, os.Remove(r.TargetPath))
		}},
		{"one whose parent directory is gone", func(t *testing.T, h *harness, r *Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			must(t, os.RemoveAll(filepath.Dir(r.TargetPath)))
		}},
		{"one whose pod's directory is gone", func(t *testing.T, h *harness, r *Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			must(t, os.RemoveAll(filepath.Join(h.root, "pods", r.Pod.UID)))
		}},
		{"one that is stale", func(t *testing.T, h *harness, r *Request) {
			h.fake.fail(secretRef("keys"), source.ErrForbidden)
			h.publish(*r)
		}},
		{"while the API server hangs", func(t *testing.T, h *harness, r *Request) { h.fake.hang(secretRef("keys")) }},
		{"one that is mounted twice", func(t *testing.T, h *harness, r *Request) {
			must(t, unix.Mount(r.TargetPath, r.TargetPath, "", unix.MS_BIND, ""))
		}},
		{"one below three mounts of others", func(t *testing.T, h *harness, r *Request) {
			for range 3 {
				foreignTmpfs(t, r.TargetPath)
			}
		}},
		{"after a restart that knows it", func(t *testing.T, h *harness, r *Request) { h.restart() }},
		{"after a restart that does not know it", func(t *testing.T, h *harness, r *Request) {
			for _, file := range h.recordFiles() {
				must(t, os.Remove(file))
			}
			h.restart()
		}},
		{"with a record that a newer driver wrote", func(t *testing.T, h *harness, r *Request) {
			must(t, os.WriteFile(h.recordFiles()[0], []byte(`{"version": 99, "volumeID": "csi-v"}`), 0o600))
			h.restart()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "v"})
			h.secret("healthy", content{"k": "healthy"})
			healthy, r := h.request("healthy", "secretName", "healthy"), h.request("v", "secretName", "keys")
			h.publish(r)
			test.prepare(t, h, &r)
			h.publish(healthy)
			h.unpublish(r)
			if n := h.gauge("fsuser_volumes"); n != 1 {
				t.Errorf("%v volumes, want the healthy one", n)
			}
			if n := h.gauge("fsuser_stale_volumes"); n != 0 {
				t.Errorf("%v stale volumes, want none", n)
			}
			h.present(healthy, content{"k": "healthy"})
			// The volume can be published again.
			h.secret("keys", content{"k": "anew"})
			must(t, os.MkdirAll(filepath.Dir(r.TargetPath), 0o750))
			h.publish(r)
			h.present(r, content{"k": "anew"})
			h.unpublish(r)
		})
	}
}

func TestUnpublishOfABusyVolume(t *testing.T) {
	h := newHarness(t)
	h.secret("keys", content{"k": "v"})
	r := h.request("v", "secretName", "keys")
	h.publish(r)
	f, err := os.Open(filepath.Join(r.TargetPath, "k"))
	must(t, err)
	defer f.Close()
	h.unpublish(r)
	if b, err := io.ReadAll(f); err != nil || string(b) != "v" {
		t.Errorf("who had the file open reads %q, %v", b, err)
	}
}

// The next start drops the record of a mount that is gone.
func TestUnpublishWritesNothing(t *testing.T) {
	h := newHarness(t)
	h.secret("keys", content{"k": "v"})
	r := h.request("v", "secretName", "keys")
	h.publish(r)
	writable := readOnly(t, h.state)
	must(t, h.Unpublish(t.Context(), r.ID, r.TargetPath))
	must(t, h.Unpublish(t.Context(), r.ID, r.TargetPath))
	if h.get(r.ID) != nil || h.config.Source.Watched() != 0 || len(testkit.MountsBelow(t, r.TargetPath)) > 0 {
		t.Errorf("it is not unpublished: %s", h.snapshot())
	}
	writable()
	if len(h.recordFiles()) != 1 {
		t.Fatal("this test wants the record to be left")
	}
	h.restart()
	h.absent(r)
}

func TestUnpublishRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, h *harness, r *Request)
		want    error
		says    []string
	}{
		{"a known volume at another target", func(t *testing.T, h *harness, r *Request) {
			r.TargetPath = h.request("elsewhere").TargetPath
			foreignTmpfs(t, r.TargetPath)
		}, ErrPrecondition, []string{"nothing was unmounted"}},
		{"a known volume at another volume's target", func(t *testing.T, h *harness, r *Request) {
			other := h.request("other")
			h.publish(other)
			r.TargetPath = other.TargetPath
		}, ErrPrecondition, []string{"nothing was unmounted"}},
		{"a target that is a link", func(t *testing.T, h *harness, r *Request) {
			*r = h.request("link")
			elsewhere := h.request("elsewhere")
			h.publish(elsewhere)
			must(t, os.Symlink(elsewhere.TargetPath, r.TargetPath))
		}, ErrPrecondition, []string{"symbolic link"}},
		{"a target behind a link", func(t *testing.T, h *harness, r *Request) {
			*r = h.request("link")
			elsewhere := h.request("elsewhere")
			h.publish(elsewhere)
			must(t, os.Remove(filepath.Dir(r.TargetPath)))
			must(t, os.Symlink(filepath.Dir(elsewhere.TargetPath), filepath.Dir(r.TargetPath)))
		}, ErrPrecondition, []string{"symbolic link"}},
		{"a target that is a file", func(t *testing.T, h *harness, r *Request) {
			*r = h.request("file")
			must(t, os.WriteFile(r.TargetPath, []byte("precious"), 0o600))
		}, ErrPrecondition, []string{"not a directory"}},
		{"a directory that is not empty and no mount", func(t *testing.T, h *harness, r *Request) {
			*r = h.request("dir")
			must(t, os.Mkdir(r.TargetPath, 0o750))
			must(t, os.WriteFile(filepath.Join(r.TargetPath, "precious"), nil, 0o600))
		}, unix.ENOTEMPTY, []string{"rmdir"}},
		{"a known volume whose mount is gone and whose directory somebody uses", func(t *testing.T, h *harness, r *Request) {
			must(t, unix.Unmount(r.TargetPath, 0))
			must(t, os.WriteFile(filepath.Join(r.TargetPath, "precious"), nil, 0o600))
		}, unix.ENOTEMPTY, []string{"unpublish volume csi-v", "rmdir"}},
		{"a path that is not absolute", func(t *testing.T, h *harness, r *Request) {
			r.ID, r.TargetPath = "csi-x", "x/mount"
		}, nil, []string{"not an absolute clean path"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "v"})
			known := h.request("v", "secretName", "keys")
			h.publish(known)
			r := known
			test.prepare(t, h, &r)
			before := h.snapshot()
			err := h.Unpublish(t.Context(), r.ID, r.TargetPath)
			if err == nil {
				t.Fatal("no error")
			}
			if test.want == nil {
				test.want = err
			}
			isErr(t, err, test.want, test.says...)
			// The volume stays known, because kubelet repeats the call.
			h.unchanged(before)
			if h.get(known.ID) == nil {
				t.Error("the known volume is forgotten")
			}
		})
	}
}

func TestUnpublishDuringAPublishThatWaits(t *testing.T) {
	h := newFakeHarness(t)
	waiting := h.fake.hang(secretRef("hangs"))
	h.secret("keys", content{"k": "v"})
	hanging, other := h.request("hangs", "secretName", "hangs"), h.request("other", "secretName", "keys")
	h.publish(other)
	ctx, kubeletHangsUp := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() { failed <- h.Publish(ctx, hanging) }()
	<-waiting

	h.unpublish(other) // This call does not wait.

	impatient, giveUp := context.WithCancel(t.Context())
	go func() { unpublished := h.Unpublish(impatient, hanging.ID, hanging.TargetPath); failed <- unpublished }()
	testkit.Eventually(t, patience, "the call to wait", func() bool { return h.locks.users(hanging.ID) == 2 })
	giveUp()
	isErr(t, <-failed, ErrLocked)

	kubeletHangsUp()
	isErr(t, <-failed, context.Canceled)
	h.unpublish(hanging)
}

func TestPublishAndUnpublishRace(t *testing.T) {
	const iterations = 300
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "0"})
	r := h.request("v", "secretName", "keys")
	h.run()
	before := h.snapshot()
	for i := range iterations {
		var calls sync.WaitGroup
		var published, unpublished error
		ctx, cancel := context.WithCancel(t.Context())
		calls.Go(func() { published = h.Publish(ctx, r) })
		calls.Go(func() { unpublished = h.Unpublish(t.Context(), r.ID, r.TargetPath) })
		calls.Go(func() { h.secret("keys", content{"k": fmt.Sprint(i)}) })
		calls.Go(func() { h.Collect() })
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
		// The last call to end decides whether the volume exists.
		if h.get(r.ID) != nil {
			h.isThere(r)
			h.becomes(r, content{"k": fmt.Sprint(i)})
		} else {
			h.absent(r)
		}
		// A successful call has its effect if no other call is under way.
		if i%2 == 0 {
			h.publish(r)
			h.present(r, content{"k": fmt.Sprint(i)})
		}
		if i%4 != 3 {
			h.unpublish(r)
		}
		if t.Failed() {
			t.Fatalf("in iteration %d", i)
		}
	}
	h.unpublish(r)
	testkit.Eventually(t, patience, "the workers to be idle", h.idle)
	h.unchanged(before)
}
