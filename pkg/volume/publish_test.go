// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// atErr is a context whose Err is a function of the test, because Publish calls Err between two steps.
type atErr struct {
	context.Context
	err func() error
}

func (c atErr) Err() error { return c.err() }

func TestPublish(t *testing.T) {
	h := newHarness(t)
	h.secret("keys", content{"id_rsa": "private", "id_rsa.pub": "public"})
	for _, test := range []struct {
		name  string
		attrs []string
		want  content
	}{
		{"a Secret", []string{"secretName", "keys", "uid", "1000"}, content{"id_rsa": "private", "id_rsa.pub": "public"}},
		{"with refresh off", []string{"secretName", "keys", "refresh", "off"},
			content{"id_rsa": "private", "id_rsa.pub": "public"}},
		{"content of the request", []string{"uid", "1000"}, content{"k": "from the request"}},
		{"an optional Secret that is not there", []string{"secretName", "nowhere", "optional", "true"}, content{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h.t = t
			r := h.request("v", test.attrs...)
			before := h.snapshot()
			h.publish(r)
			h.present(r, test.want)
			uid, _ := h.get(r.ID).owner()
			for path := range test.want {
				h.hasPermissions(r, map[string]permissions{path: {0o400, uid, 0}})
			}
			again := h.snapshot()
			for range 10 {
				h.publish(r)
			}
			h.unchanged(again)
			h.unpublish(r)
			h.unchanged(before)
		})
	}
	h.t = t
}

func TestRecordComesBeforeTheMount(t *testing.T) {
	h := newHarness(t)
	r := h.request("v")
	asked := 0
	err := h.Publish(atErr{t.Context(), func() error {
		asked++
		if rec := h.record(r.ID); rec == nil || rec.TargetPath != r.TargetPath || rec.FSID == 0 && rec.Device == 0 {
			t.Errorf("before the mount is attached the record is %+v", rec)
		}
		if mounts := testkit.MountsBelow(t, r.TargetPath); len(mounts) > 0 {
			t.Errorf("it is mounted already: %q", mounts)
		}
		if entries, err := os.ReadDir(r.TargetPath); err != nil || len(entries) > 0 {
			t.Errorf("the directory for the mount: %v, %v", entries, err)
		}
		return nil
	}}, r)
	if err != nil || asked != 1 {
		t.Fatalf("%v; asked %d times", err, asked)
	}
	h.present(r, content{"k": "from the request"})
}

// faults returns the ways in which a publish can fail. Each is prepared on a node with a healthy volume.
func faults() []fault {
	bg := context.Background
	secret := func(attrs ...string) []string { return append([]string{"secretName", "keys"}, attrs...) }
	// object returns a fault in which the source can't read the object.
	object := func(name string, reason, want error, says ...string) fault {
		return fault{name: name, attrs: secret(), want: want, says: append(says, `Secret "ns/keys"`),
			prepare: func(h *harness, _ *Request) context.Context { h.fake.fail(secretRef("keys"), reason); return bg() }}
	}
	target := func(name string, want error, prepare func(t testing.TB, target string), says ...string) fault {
		return fault{name: name, attrs: secret(), want: want, says: says,
			prepare: func(h *harness, r *Request) context.Context { prepare(h.t, r.TargetPath); return bg() }}
	}
	// late returns a fault that happens just before the mount.
	late := func(name string, want error, strike func(h *harness, r *Request) error, says ...string) fault {
		return fault{name: name, attrs: secret(), want: want, says: says,
			prepare: func(h *harness, r *Request) context.Context {
				asked := 0
				return atErr{bg(), func() error {
					if asked++; asked < 2 { // The first call comes after the wait for the source.
						return nil
					}
					return strike(h, r)
				}}
			}}
	}
	return []fault{
		object("the Secret is not there", source.ErrNotFound, source.ErrNotFound),
		object("the Secret may not be read", source.ErrForbidden, source.ErrForbidden, "says the fake"),
		object("the API server does not answer", source.ErrUnavailable, source.ErrUnavailable, "says the fake"),
		{name: "an optional Secret may not be read, which is not missing", attrs: secret("optional", "true"),
			want: source.ErrForbidden,
			prepare: func(h *harness, _ *Request) context.Context {
				h.fake.fail(secretRef("keys"), source.ErrForbidden)
				return bg()
			}},
		{name: "an optional Secret can't be read now, which is not missing", attrs: secret("optional", "true"),
			want: source.ErrUnavailable,
			prepare: func(h *harness, _ *Request) context.Context {
				h.fake.fail(secretRef("keys"), source.ErrUnavailable)
				return bg()
			}},
		{name: "a key is missing", attrs: []string{"volume", "described", "uid", "0"}, want: ErrPrecondition,
			says: []string{`Secret "ns/keys"`, `"other"`, `the pod's volume "described"`, "optional: true"},
			prepare: func(h *harness, r *Request) context.Context {
				h.describe(*r, secretVolume("keys", "k", "k", "other", "p"))
				return bg()
			}},
		{name: "there is too much content", attrs: secret(), want: ErrPrecondition, says: []string{"--max-volume-bytes"},
			prepare: func(h *harness, _ *Request) context.Context {
				h.secret("keys", content{"k": strings.Repeat("x", 4<<20+1)})
				return bg()
			}},
		{name: "a key is no file name", attrs: secret(), want: ErrPrecondition, says: []string{`"../k"`},
			prepare: func(h *harness, _ *Request) context.Context { h.secret("keys", content{"../k": "x"}); return bg() }},
		{name: "no such owner can be, and the files are not written", attrs: secret(), says: []string{"had no effect"},
			prepare: func(h *harness, r *Request) context.Context {
				none := uint32(1<<32 - 1) // For chown(2) this number means no change.
				r.Spec.UID = &none
				return bg()
			}},
		{name: "the tmpfs can't be made", attrs: secret(), want: syscall.EINVAL, says: []string{"fsconfig", "context"},
			prepare: func(h *harness, _ *Request) context.Context {
				h.config.SELinuxContext = "no context" // This machine has no SELinux.
				h.t.Cleanup(func() { h.config.SELinuxContext = "" })
				return bg()
			}},

		target("kubelet's directory is missing", ErrPrecondition, func(t testing.TB, target string) {
			must(t, os.Remove(filepath.Dir(target)))
		}, "does not exist", "--kubelet-root"),
		target("kubelet's directory is a link", ErrPrecondition, func(t testing.TB, target string) {
			dir := filepath.Dir(target)
			must(t, os.Rename(dir, dir+"-elsewhere"))
			must(t, os.Symlink(dir+"-elsewhere", dir))
		}, "symbolic link"),
		target("a directory above is a link", ErrPrecondition, func(t testing.TB, target string) {
			dir := filepath.Dir(filepath.Dir(target))
			must(t, os.Rename(dir, dir+"-elsewhere"))
			must(t, os.Symlink(dir+"-elsewhere", dir))
		}, "symbolic link"),
		target("kubelet's directory is a file", ErrPrecondition, func(t testing.TB, target string) {
			must(t, os.Remove(filepath.Dir(target)))
			must(t, os.WriteFile(filepath.Dir(target), nil, 0o600))
		}, "not a directory"),
		target("the target is a file", ErrPrecondition, func(t testing.TB, target string) {
			must(t, os.WriteFile(target, []byte("whose?"), 0o600))
		}, "not a directory"),
		target("the target is a link to a directory", ErrPrecondition, func(t testing.TB, target string) {
			elsewhere := t.TempDir()
			must(t, os.Symlink(elsewhere, target))
		}, "symbolic link"),
		target("the target is a link to nothing", ErrPrecondition, func(t testing.TB, target string) {
			must(t, os.Symlink("/nowhere", target))
		}, "symbolic link"),
		target("the target is a directory with something in it", ErrPrecondition, func(t testing.TB, target string) {
			must(t, os.Mkdir(target, 0o750))
			must(t, os.WriteFile(filepath.Join(target, "precious"), nil, 0o600))
		}, "not empty"),
		target("another directory is mounted at the target", ErrPrecondition, func(t testing.TB, target string) {
			elsewhere := t.TempDir()
			must(t, os.WriteFile(filepath.Join(elsewhere, "precious"), nil, 0o600))
			must(t, os.Mkdir(target, 0o750))
			must(t, unix.Mount(elsewhere, target, "", unix.MS_BIND, ""))
			t.Cleanup(func() { must(t, unix.Unmount(target, 0)) })
		}, "not this driver's", "unmount it"),
		target("somebody else's tmpfs is mounted at the target", ErrPrecondition, func(t testing.TB, target string) {
			foreignTmpfs(t, target)
		}, "not this driver's", "unmount it"),

		{name: "the directory of the records is read-only", attrs: secret(), want: unix.EROFS, says: []string{"record"},
			prepare: func(h *harness, _ *Request) context.Context { readOnly(h.t, h.state); return bg() }},
		{name: "the directory of the records is full", attrs: secret(), want: unix.ENOSPC, says: []string{"record"},
			prepare: func(h *harness, _ *Request) context.Context { full(h.t, h.state); return bg() }},
		{name: "the directory of the records is gone", attrs: secret(), want: unix.ENOENT, says: []string{"record"},
			prepare: func(h *harness, _ *Request) context.Context {
				must(h.t, os.Rename(h.state, h.state+"-away"))
				must(h.t, os.Symlink("nowhere", h.state))
				h.t.Cleanup(func() {
					must(h.t, os.Remove(h.state))
					must(h.t, os.Rename(h.state+"-away", h.state))
				})
				return bg()
			}},

		{name: "the call is cancelled while the source hangs", attrs: secret(), want: context.Canceled,
			says: []string{"wait for", `Secret "ns/keys"`},
			prepare: func(h *harness, _ *Request) context.Context {
				waiting := h.fake.hang(secretRef("keys"))
				ctx, cancel := context.WithCancel(bg())
				go func() { <-waiting; cancel() }()
				return ctx
			}},
		{name: "the deadline passes while the source hangs", attrs: secret(), want: context.DeadlineExceeded,
			says: []string{"wait for"},
			prepare: func(h *harness, _ *Request) context.Context {
				h.fake.hang(secretRef("keys"))
				ctx, cancel := context.WithTimeout(bg(), time.Second)
				h.t.Cleanup(cancel)
				return ctx
			}},
		late("the call is cancelled when all but the mount is done", context.Canceled,
			func(*harness, *Request) error { return context.Canceled }, "publish volume csi-v"),
		late("the deadline passes when all but the mount is done", context.DeadlineExceeded,
			func(*harness, *Request) error { return context.DeadlineExceeded }),
		late("the directory goes just before the mount", unix.ENOENT,
			func(h *harness, r *Request) error { return os.Remove(r.TargetPath) }, "attach"),
	}
}

type fault struct {
	name    string
	attrs   []string
	prepare func(*harness, *Request) context.Context
	want    error // nil means any error
	says    []string
}

func TestPublishThatFailsLeavesNothing(t *testing.T) {
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			const canary = "the value that nobody may see"
			h := newFakeHarness(t)
			h.secret("healthy", content{"k": "healthy"})
			h.secret("keys", content{"k": canary})
			healthy := h.request("healthy", "secretName", "healthy", "uid", "1000")
			h.publish(healthy)
			r := h.request("v", f.attrs...)
			ctx := t.Context()
			if f.prepare != nil {
				ctx = f.prepare(h, &r)
			}
			before := h.snapshot()

			err := h.Publish(ctx, r)
			switch {
			case err == nil:
				t.Fatal("no error")
			case f.want != nil:
				isErr(t, err, f.want, f.says...)
			default:
				isErr(t, err, err, f.says...)
			}
			if errors.Is(err, ErrLeftover) {
				t.Errorf("all could be undone, but: %v", err)
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error has the content in it: %v", err)
			}
			if strings.Contains(logged.Text(), canary) {
				t.Error("the log has the content in it")
			}
			h.unchanged(before)
			if h.get(healthy.ID) == nil {
				t.Error("the healthy volume is forgotten")
			}
			h.shows(healthy, content{"k": "healthy"})
			if n := h.locks.users(r.ID); n != 0 {
				t.Error("its lock is still held")
			}
		})
	}
}

// foreignTmpfs mounts a tmpfs with a file that is not this driver's, until t ends.
func foreignTmpfs(t testing.TB, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o750))
	must(t, unix.Mount("somebody", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	must(t, os.WriteFile(filepath.Join(dir, "precious"), []byte("precious"), 0o600))
}

// readOnly makes a directory read-only, even for root, until t ends or undo is called.
func readOnly(t testing.TB, dir string) (undo func()) {
	t.Helper()
	must(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	must(t, unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	done := false
	undo = func() {
		if !done {
			done = true
			must(t, unix.Unmount(dir, unix.MNT_DETACH))
		}
	}
	t.Cleanup(undo)
	return undo
}

// full mounts a file system without a free byte on a directory, until t ends. The mount hides the content of the
// directory.
func full(t testing.TB, dir string) {
	t.Helper()
	must(t, unix.Mount("full", dir, "tmpfs", 0, "size=4k"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	must(t, os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 4096), 0o600))
}

func TestPublishThatCannotBeUndoneSaysSo(t *testing.T) {
	for _, test := range []struct {
		name   string
		strike func(h *harness, r Request) (repair func())
		says   []string
		// left means that the directory of the mount is left.
		left bool
	}{
		{"somebody put a file into the directory of the mount", func(h *harness, r Request) func() {
			file := filepath.Join(r.TargetPath, "precious")
			must(h.t, os.WriteFile(file, nil, 0o600))
			return func() { must(h.t, os.Remove(file)) }
		}, []string{"rmdir"}, true},
		{"the directory of the records became read-only",
			func(h *harness, r Request) func() { return readOnly(h.t, h.state) }, []string{"remove record"}, false},
		{"somebody replaced the directory of the mount by a file", func(h *harness, r Request) func() {
			must(h.t, os.Remove(r.TargetPath))
			must(h.t, os.WriteFile(r.TargetPath, nil, 0o600))
			return func() {
				must(h.t, os.Remove(r.TargetPath))
				must(h.t, os.Mkdir(r.TargetPath, 0o750))
			}
		}, []string{"rmdir"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "v"})
			r := h.request("v", "secretName", "keys")
			var repair func()
			asked := 0
			err := h.Publish(atErr{t.Context(), func() error {
				if asked++; asked < 2 {
					return nil
				}
				repair = test.strike(h, r)
				return context.DeadlineExceeded
			}}, r)
			isErr(t, err, ErrLeftover, test.says...)
			isErr(t, err, context.DeadlineExceeded)
			if h.get(r.ID) != nil || len(h.subscriptions()) > 0 || len(testkit.MountsBelow(t, r.TargetPath)) > 0 {
				t.Errorf("the steps that could be undone were not: %s", h.snapshot())
			}
			if _, err := os.Lstat(r.TargetPath); (err == nil) != test.left {
				t.Errorf("the directory of the mount: %v", err)
			}
			repair()
			h.unpublish(r)
		})
	}
}

func TestPublishAgain(t *testing.T) {
	setUp := func(t *testing.T) (*harness, Request) {
		h := newFakeHarness(t)
		h.secret("keys", content{"k": "v"})
		h.secret("other", content{"k": "other"})
		r := h.request("v", "secretName", "keys", "uid", "1000", "gid", "2000")
		h.publish(r)
		return h, r
	}
	refused := 0
	for _, test := range []struct {
		name   string
		change func(h *harness, r *Request)
		want   error
	}{
		{"with another object", func(h *harness, r *Request) { r.Spec.Sources[0].Object.Name = "other" }, ErrConflict},
		{"with another kind", func(h *harness, r *Request) { r.Spec.Sources[0].Object.Kind = attributes.ConfigMap },
			ErrConflict},
		{"with another owner", func(h *harness, r *Request) { r.Spec.UID = ptr.To[uint32](1001) }, ErrConflict},
		{"without an owner", func(h *harness, r *Request) { r.Spec.UID = nil }, ErrConflict},
		{"with another mode", func(h *harness, r *Request) { r.Spec.Sources[0].Mode = 0o444 }, ErrConflict},
		{"with another owner of a file", func(h *harness, r *Request) {
			r.Spec.Paths = map[string]attributes.Permissions{"k": {UID: ptr.To[uint32](1)}}
		}, ErrConflict},
		{"with optional", func(h *harness, r *Request) { r.Spec.Sources[0].Optional = true }, ErrConflict},
		{"with volume", func(h *harness, r *Request) { r.Spec.Volume, r.Spec.Sources = "keys", nil }, ErrConflict},
		{"with another mode of directories", func(h *harness, r *Request) { r.Spec.DirMode = 0o700 }, ErrConflict},
		{"with refresh off", func(h *harness, r *Request) { r.Spec.Refresh = attributes.RefreshOff }, ErrConflict},
		{"with another template", func(h *harness, r *Request) {
			r.Spec.Templates = map[string]attributes.Template{"a": "b"}
		}, ErrConflict},
		{"with another layout", func(h *harness, r *Request) { r.Spec.Layout = attributes.LayoutFiles }, ErrConflict},
		{"for another pod", func(h *harness, r *Request) { r.Pod.UID = "uid-other" }, ErrConflict},
		{"at another target", func(h *harness, r *Request) {
			r.TargetPath = h.request("elsewhere", "secretName", "keys").TargetPath
		}, ErrPrecondition},
		{"with a copy of the same owner", func(h *harness, r *Request) { r.Spec.UID = ptr.To[uint32](1000) }, nil},
		{"with the same", func(h *harness, r *Request) {}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			h, r := setUp(t)
			again := copied(r)
			test.change(h, &again)
			before := h.snapshot()
			if err := h.Publish(t.Context(), again); !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Errorf("got %v, want %v", err, test.want)
			}
			h.unchanged(before)
			h.present(r, content{"k": "v"})
		})
		if test.want != nil {
			refused++
		}
	}

	// After its restart, kubelet publishes each volume of a running pod again, and starts no container of the pod until
	// the publish succeeds (F-12, contract 4.4).
	for _, reason := range []error{source.ErrUnavailable, source.ErrForbidden, source.ErrNotFound} {
		t.Run("while the object is: "+reason.Error(), func(t *testing.T) {
			h, r := setUp(t)
			mount := mountID(t, r)
			h.fake.fail(secretRef("keys"), reason)
			h.publish(r)
			h.present(r, content{"k": "v"})
			if now := mountID(t, r); now != mount {
				t.Errorf("it was mounted anew: mount %d, before: %d", now, mount)
			}
			if n := h.gauge("fsuser_stale_volumes"); n != 1 {
				t.Errorf("%v stale volumes, want 1", n)
			}
		})
	}

	t.Run("does not wait for a source that hangs", func(t *testing.T) {
		h, r := setUp(t)
		h.fake.hang(secretRef("keys"))
		h.publish(r)
		h.present(r, content{"k": "v"})
	})

	t.Run("takes up content that changed, in place", func(t *testing.T) {
		h, r := setUp(t)
		mount := mountID(t, r)
		h.secret("keys", content{"k": "new", "l": "more"})
		h.publish(r)
		h.present(r, content{"k": "new", "l": "more"})
		if now := mountID(t, r); now != mount {
			t.Errorf("it was mounted anew: mount %d, before: %d", now, mount)
		}
	})

	t.Run("takes up new content of a request, and only then", func(t *testing.T) {
		h, _ := setUp(t)
		r := h.request("request", "uid", "1000")
		h.publish(r)
		generation := readlink(t, r)
		h.publish(r)
		if now := readlink(t, r); now != generation {
			t.Errorf("the same content was written again: %s, %s", generation, now)
		}
		r.Secrets = map[string]string{"k": "new"}
		h.publish(r)
		h.present(r, content{"k": "new"})
		r.Secrets = map[string]string{"../k": "bad"}
		h.publish(r)
		h.present(r, content{"k": "new"})
		if n := h.gauge("fsuser_stale_volumes"); n != 1 {
			t.Errorf("%v stale volumes, want 1", n)
		}
		h.unpublish(r)
		if n := h.gauge("fsuser_stale_volumes"); n != 0 {
			t.Errorf("%v stale volumes, want none", n)
		}
	})
	reliability.Shown(t, "F-18", fmt.Sprintf("%d differences to the volume that is there: refused, and it stays whole",
		refused))
}

func TestATargetThatIsNotAsItMustBeIsAPublishThatFailed(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, r Request)
	}{
		{"its parent is missing", func(t *testing.T, r Request) { must(t, os.Remove(filepath.Dir(r.TargetPath))) }},
		{"it is a link", func(t *testing.T, r Request) { must(t, os.Symlink("/tmp", r.TargetPath)) }},
		{"it is a file", func(t *testing.T, r Request) { must(t, os.WriteFile(r.TargetPath, nil, 0o600)) }},
		{"something else is mounted there", func(t *testing.T, r Request) {
			must(t, os.Mkdir(r.TargetPath, 0o750))
			must(t, unix.Mount("somebody", r.TargetPath, "tmpfs", 0, ""))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			r := h.request("v", "uid", "1000")
			test.spoil(t, r)
			isErr(t, h.Publish(t.Context(), r), ErrPrecondition)
			if n := h.counts()["publish error"]; n != 1 {
				t.Errorf("%d publishes failed, want 1", n)
			}
			if got := h.failures(); !maps.Equal(got, map[string]int{"publish precondition": 1}) {
				t.Errorf("failures %v, want one of a publish, for a precondition", got)
			}
		})
	}
}

// Kubelet sends the same request for a Secret without data and for a volume without nodePublishSecretRef.
func TestContentOfTheRequestThatIsEmpty(t *testing.T) {
	t.Run("is none for a first publish (H-067)", func(t *testing.T) {
		h := newFakeHarness(t)
		r := h.request("v", "uid", "1000")
		r.Secrets = nil
		before := h.snapshot()
		isErr(t, h.Publish(t.Context(), r), ErrInvalid, "secretName", "configMapName", "nodePublishSecretRef",
			"Secret has no data")
		h.unchanged(before)
		h.absent(r)
	})
	for _, test := range []struct {
		name   string
		change func(h *harness)
	}{
		{"empties a volume that is there", func(*harness) {}},
		{"empties a volume that is there after a restart", func(h *harness) { h.restart() }},
		{"empties a volume whose record is lost", func(h *harness) { h.loseRecords() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			r := h.request("v", "uid", "1000")
			h.publish(r)
			test.change(h)
			r.Secrets = nil
			h.publish(r)
			h.present(r, content{})
			r.Secrets = map[string]string{"k": "again"}
			h.publish(r)
			h.present(r, content{"k": "again"})
			h.unpublish(r)
		})
	}
}

// mountID returns the id of the mount at the target. It does not change with the mount's limits.
func mountID(t testing.TB, r Request) uint64 {
	t.Helper()
	target, err := tmpfs.OpenTarget(r.TargetPath)
	must(t, err)
	defer target.Close()
	state, err := target.Inspect()
	must(t, err)
	if !state.Mounted {
		t.Fatalf("%s is not mounted", r.ID)
	}
	return state.MountID
}

func readlink(t testing.TB, r Request) string {
	t.Helper()
	link, err := os.Readlink(filepath.Join(r.TargetPath, "..data"))
	must(t, err)
	return link
}

func TestPublishAfterTheMountVanished(t *testing.T) {
	for _, test := range []struct {
		name   string
		vanish func(t *testing.T, r Request)
	}{
		{"somebody unmounted it", func(t *testing.T, r Request) { must(t, unix.Unmount(r.TargetPath, unix.MNT_DETACH)) }},
		{"somebody unmounted it and removed the directory", func(t *testing.T, r Request) {
			must(t, unix.Unmount(r.TargetPath, unix.MNT_DETACH))
			must(t, os.Remove(r.TargetPath))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "v"})
			r := h.request("v", "secretName", "keys")
			h.publish(r)
			// The volume becomes stale, and then its mount goes away.
			h.fake.fail(secretRef("keys"), source.ErrNotFound)
			h.publish(r)
			test.vanish(t, r)
			if err := h.Publish(t.Context(), r); !errors.Is(err, source.ErrNotFound) {
				t.Fatalf("got %v, want %v", err, source.ErrNotFound)
			}
			// The directory and the state of the volume may stay, because kubelet unpublishes a volume after its first
			// successful publish.
			if len(h.subscriptions()) > 0 || len(h.recordFiles()) > 0 || len(testkit.MountsBelow(t, r.TargetPath)) > 0 {
				t.Errorf("something is left: %s", h.snapshot())
			}
			h.secret("keys", content{"k": "new"})
			h.publish(r)
			h.present(r, content{"k": "new"})
			if n := h.gauge("fsuser_stale_volumes"); n != 0 {
				t.Errorf("%v stale volumes, want none", n)
			}
			h.unpublish(r)
		})
	}
}

func TestPublishAdoptsAMountWhoseRecordIsLost(t *testing.T) {
	setUp := func(t *testing.T, attrs ...string) (*harness, Request, uint64) {
		h := newFakeHarness(t)
		h.secret("keys", content{"k": "v"})
		r := h.request("v", attrs...)
		h.publish(r)
		mount := mountID(t, r)
		h.loseRecords()
		if h.get(r.ID) != nil {
			t.Fatal("the volume is known without a record")
		}
		return h, r, mount
	}
	sameMount := func(t *testing.T, h *harness, r Request, mount uint64, want content) {
		t.Helper()
		h.present(r, want)
		if now := mountID(t, r); now != mount {
			t.Errorf("it was mounted anew: mount %d, before: %d", now, mount)
		}
	}

	t.Run("with its content", func(t *testing.T) {
		h, r, mount := setUp(t, "secretName", "keys")
		generation := readlink(t, r)
		h.publish(r)
		sameMount(t, h, r, mount, content{"k": "v"})
		if now := readlink(t, r); now != generation {
			t.Error("what was right was written again")
		}
		h.unpublish(r)
	})
	t.Run("and refreshes it", func(t *testing.T) {
		h, r, mount := setUp(t, "secretName", "keys")
		h.secret("keys", content{"k": "new"})
		h.publish(r)
		sameMount(t, h, r, mount, content{"k": "new"})
		h.run()
		h.secret("keys", content{"k": "newer"})
		h.becomes(r, content{"k": "newer"})
		h.unpublish(r)
	})
	t.Run("while the API server does not answer", func(t *testing.T) {
		h, r, mount := setUp(t, "secretName", "keys")
		h.fake.hang(secretRef("keys"))
		h.publish(r)
		sameMount(t, h, r, mount, content{"k": "v"})
		if n := h.gauge("fsuser_stale_volumes"); n != 1 {
			t.Errorf("%v stale volumes, want 1", n)
		}
		h.run()
		h.secret("keys", content{"k": "new"})
		h.becomes(r, content{"k": "new"})
		testkit.Eventually(t, patience, "the volume to be current",
			func() bool { return h.gauge("fsuser_stale_volumes") == 0 })
		h.unpublish(r)
	})
	t.Run("with refresh off, and writes nothing", func(t *testing.T) {
		h, r, mount := setUp(t, "secretName", "keys", "refresh", "off")
		h.secret("keys", content{"k": "new"})
		h.publish(r)
		sameMount(t, h, r, mount, content{"k": "v"})
		h.unpublish(r)
	})
	t.Run("with content of the request", func(t *testing.T) {
		h, r, mount := setUp(t)
		r.Secrets = map[string]string{"k": "new"}
		h.publish(r)
		sameMount(t, h, r, mount, content{"k": "new"})
		h.unpublish(r)
	})
	t.Run("although no record can be written", func(t *testing.T) {
		h, r, mount := setUp(t, "secretName", "keys")
		writable := readOnly(t, h.state)
		h.publish(r)
		h.shows(r, content{"k": "v"})
		writable()
		h.restart()
		h.publish(r)
		sameMount(t, h, r, mount, content{"k": "v"})
		h.unpublish(r)
	})
}

// Another process of the driver has replaced the mount: the volume is known, but another tmpfs of the driver is
// mounted.
func TestPublishAdoptsAnotherTmpfsOfOurs(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"k": "v"})
	h.secret("other", content{"k": "other"})
	r := h.request("v", "secretName", "keys")
	h.publish(r)
	h.fake.fail(secretRef("keys"), source.ErrForbidden)
	h.publish(r)
	v := h.get(r.ID)
	h.Manager.mu.Lock()
	delete(h.volumes, r.ID) // This process takes the place of the other one.
	h.Manager.mu.Unlock()
	must(t, unix.Unmount(r.TargetPath, unix.MNT_DETACH))
	other := h.request("v", "secretName", "other")
	h.publish(other)
	h.put(v)

	h.publish(other)
	h.present(other, content{"k": "other"})
	if got := h.subscriptions(); len(got) != 1 {
		t.Errorf("watches are left: %q", got)
	}
	if n := h.gauge("fsuser_stale_volumes"); n != 0 {
		t.Errorf("%v stale volumes, want none", n)
	}
	h.unpublish(other)
}

func TestPublishOfManyVolumesAtOnceWatchesEachObjectOnce(t *testing.T) {
	const n = 50
	h := newHarness(t)
	h.secret("keys", content{"k": "v"})
	h.run()
	requests := make([]Request, n)
	failed := make(chan error, n)
	for i := range requests {
		requests[i] = h.request(fmt.Sprint("v", i), "secretName", "keys")
		go func() { failed <- h.Publish(t.Context(), requests[i]) }()
	}
	for range requests {
		must(t, <-failed)
	}
	if got := h.config.Source.Watched(); got != 1 {
		t.Errorf("%d objects are watched, want 1", got)
	}
	if got := h.gauge("fsuser_volumes"); got != n {
		t.Errorf("%v volumes, want %d", got, n)
	}
	h.secret("keys", content{"k": "new"})
	for _, r := range requests {
		h.becomes(r, content{"k": "new"})
		h.unpublish(r)
	}
	if got := h.config.Source.Watched(); got != 0 {
		t.Errorf("%d objects are still watched", got)
	}
}

// F-34: the object changes after the volume's content is read and before the volume is published.
func TestChangeDuringPublishIsNotLost(t *testing.T) {
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("with Run under way: %v", running), func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "read"})
			r := h.request("v", "secretName", "keys")
			h.fake.setAfterGet(func() {
				h.fake.setAfterGet(nil)
				h.secret("keys", content{"k": "changed"})
			})
			if running {
				h.run()
			}
			must(t, h.Publish(t.Context(), r))
			if !running {
				h.present(r, content{"k": "read"})
				h.run()
			}
			h.becomes(r, content{"k": "changed"})
			h.unpublish(r)
		})
	}
}

func TestPublishWaitsForTheFirstAnswer(t *testing.T) {
	h := newFakeHarness(t)
	waiting := h.fake.hang(secretRef("keys"))
	r := h.request("v", "secretName", "keys")
	published := make(chan error)
	go func() { published <- h.Publish(t.Context(), r) }()
	<-waiting
	if len(testkit.MountsBelow(t, r.TargetPath)) > 0 || len(h.recordFiles()) > 0 {
		t.Error("something is there before there is content")
	}
	h.secret("keys", content{"k": "at last"})
	must(t, <-published)
	h.present(r, content{"k": "at last"})
}

func TestPublishTakesAnEmptyDirectoryThatIsThere(t *testing.T) {
	h := newHarness(t)
	r := h.request("v")
	must(t, os.Mkdir(r.TargetPath, 0o750))
	h.publish(r)
	h.present(r, content{"k": "from the request"})
	h.unpublish(r)
}

func TestAVolumeSurvivesItsRecord(t *testing.T) {
	h := newFakeHarness(t)
	item := corev1.KeyToPath{Key: "a", Path: "x/a", Mode: ptr.To[int32](0), User: ptr.To[int64](0)}
	described := projectedVolume(
		configMapProjection("c", item, corev1.KeyToPath{Key: "b", Path: "b"}), secretProjection("s"),
		corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{Items: memoryLimit().DownwardAPI.Items}})
	described.Projected.Sources[0].ConfigMap.Optional = ptr.To(true)
	described.Projected.DefaultUser = ptr.To[int64](7)
	all := h.described("v", described, "uid", "0", "gid", "2147483647", "mode", "0000", "dirMode", "0711", "refresh",
		"off", "layout", "in-place", "template/t", "$(x/a)", "template/d/u", "<text>",
		"uid/x/a", "1", "gid/b", "2", "mode/a:b\n", "0777")
	all.MountGroup = ptr.To[uint32](0)
	h.describe(all, described, mounted("other", "/v/m"), func(pod *corev1.Pod) {
		c := &pod.Spec.Containers[0]
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "v", MountPath: "/sub", SubPath: "sub"})
	})
	h.fake.setAllocatable(corev1.ResourceList{"memory": resource.MustParse("8Gi")}, nil)
	for name, r := range map[string]Request{
		"all that can be described": all,
		"nothing but a Secret":      h.request("w", "secretName", "s"),
		"content of the request":    h.request("x"),
	} {
		v := newVolume(r)
		_, err := h.resolve(t.Context(), v)
		must(t, err)
		v.identity = tmpfs.Identity{Device: 1 << 63, FSID: 1<<64 - 1}
		v.shown.size = 5
		must(t, h.config.Records.Save(v.toRecord()))
		loaded, bad, err := h.config.Records.Load()
		if err != nil || len(bad) > 0 || len(loaded) != 1 {
			t.Fatal(loaded, bad, err)
		}
		if got := fromRecord(loaded[0]); !reflect.DeepEqual(got, v) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, v)
		}
		// A driver from before layouts and templates reads version 4.
		if wanted := map[bool]int{true: 5, false: 4}[r.ID == all.ID]; loaded[0].Version != wanted {
			t.Errorf("%s: the record has version %d, want %d", name, loaded[0].Version, wanted)
		}
		must(t, h.config.Records.Remove(r.ID))
	}
}

// A mount of this driver is at the target, but another mount covers it.
func TestPublishDoesNotAdoptWhatIsMountedOverAVolume(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(h *harness, r Request)
	}{
		{"that is known", func(*harness, Request) {}},
		{"whose record is lost", func(h *harness, _ Request) { h.loseRecords() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "v"})
			r := h.request("v", "secretName", "keys")
			h.publish(r)
			foreignTmpfs(t, r.TargetPath)
			test.prepare(h, r)
			h.secret("keys", content{"k": "new"})
			before := h.snapshot()
			isErr(t, h.Publish(t.Context(), r), ErrPrecondition, "not this driver's")
			h.unchanged(before)
			if b, err := os.ReadFile(filepath.Join(r.TargetPath, "precious")); string(b) != "precious" {
				t.Errorf("what somebody else mounted was written to: %q, %v", b, err)
			}
			must(t, unix.Unmount(r.TargetPath, 0))
			h.publish(r)
			h.present(r, content{"k": "new"})
			h.unpublish(r)
		})
	}
}

func TestAPublishThatPanicsLeavesNothing(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"id_rsa": "private"})
	r := h.request("v", "secretName", "keys", "uid", "1000")
	before := h.snapshot()
	h.fake.setAfterGet(func() { panic("a bug") })
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it did not panic")
			}
		}()
		_ = h.Publish(context.Background(), r)
	}()
	h.fake.setAfterGet(nil)
	h.unchanged(before)
}
