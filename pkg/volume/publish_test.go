// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
	"github.com/fsuser-csi/fsuser-csi/test/reliability"
)

// atErr is a context whose Err the test answers: Publish asks it between one step and the next.
type atErr struct {
	context.Context
	err func() error
}

func (c atErr) Err() error { return c.err() }

func TestPublish(t *testing.T) {
	w := newWorld(t)
	w.secret("keys", content{"id_rsa": "private", "id_rsa.pub": "public"})
	for _, test := range []struct {
		name  string
		attrs []string
		want  content
	}{
		{"a Secret", []string{"secretName", "keys", "uid", "1000"}, content{"id_rsa": "private", "id_rsa.pub": "public"}},
		{"with refresh off", []string{"secretName", "keys", "refresh", "off"}, content{"id_rsa": "private", "id_rsa.pub": "public"}},
		{"items", []string{"secretName", "keys", "items", "[{key: id_rsa, path: .ssh/id_rsa}]"}, content{".ssh/id_rsa": "private"}},
		{"content of the request", []string{"uid", "1000"}, content{"k": "from the request"}},
		{"an optional Secret that is not there", []string{"secretName", "nowhere", "optional", "true"}, content{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w.t = t
			r := w.request("v", test.attrs...)
			before := w.snapshot()
			w.publish(r)
			w.present(r, test.want)
			var st unix.Stat_t
			uid, _ := w.get(r.ID).owner()
			for path := range test.want {
				if err := unix.Stat(filepath.Join(r.Target, path), &st); err != nil || st.Uid != uid || st.Mode != unix.S_IFREG|0o400 {
					t.Errorf("%s is owned by %d with mode %o, %v", path, st.Uid, st.Mode, err)
				}
			}
			again := w.snapshot()
			for range 10 {
				w.publish(r)
			}
			w.unchanged(again)
			w.unpublish(r)
			w.unchanged(before)
		})
	}
	w.t = t
}

func TestRecordComesBeforeTheMount(t *testing.T) {
	w := newWorld(t)
	r := w.request("v")
	asked := 0
	err := w.Publish(atErr{t.Context(), func() error {
		asked++
		if rec := w.record(r.ID); rec == nil || rec.TargetPath != r.Target || rec.FSID == 0 && rec.Device == 0 {
			t.Errorf("before the mount is attached the record is %+v", rec)
		}
		if mounts := testkit.MountsBelow(t, r.Target); len(mounts) > 0 {
			t.Errorf("it is mounted already: %q", mounts)
		}
		if entries, err := os.ReadDir(r.Target); err != nil || len(entries) > 0 {
			t.Errorf("the directory for the mount: %v, %v", entries, err)
		}
		return nil
	}}, r)
	if err != nil || asked != 1 {
		t.Fatalf("%v; asked %d times", err, asked)
	}
	w.present(r, content{"k": "from the request"})
}

// faults are the ways in which a publish can fail. Each is prepared on a node that has a healthy volume.
func faults() []fault {
	bg := context.Background
	secret := func(attrs ...string) []string { return append([]string{"secretName", "keys"}, attrs...) }
	// source returns a fault by what the object answers.
	object := func(name string, reason, want error, says ...string) fault {
		return fault{name: name, attrs: secret(), want: want, says: append(says, `Secret "ns/keys"`),
			prepare: func(w *world, _ *Request) context.Context { w.fake.fail(secretRef("keys"), reason); return bg() }}
	}
	target := func(name string, want error, prepare func(t testing.TB, target string), says ...string) fault {
		return fault{name: name, attrs: secret(), want: want, says: says,
			prepare: func(w *world, r *Request) context.Context { prepare(w.t, r.Target); return bg() }}
	}
	// late returns a fault that happens when all is ready but the mount itself.
	late := func(name string, want error, strike func(w *world, r *Request) error, says ...string) fault {
		return fault{name: name, attrs: secret(), want: want, says: says,
			prepare: func(w *world, r *Request) context.Context {
				asked := 0
				return atErr{bg(), func() error {
					if asked++; asked < 2 { // the first time is after the wait for the source
						return nil
					}
					return strike(w, r)
				}}
			}}
	}
	return []fault{
		object("the Secret is not there", source.ErrNotFound, source.ErrNotFound),
		object("the Secret may not be read", source.ErrForbidden, source.ErrForbidden, "says the fake"),
		object("the API server does not answer", source.ErrUnavailable, source.ErrUnavailable, "says the fake"),
		{name: "an optional Secret may not be read, which is not missing", attrs: secret("optional", "true"), want: source.ErrForbidden,
			prepare: func(w *world, _ *Request) context.Context {
				w.fake.fail(secretRef("keys"), source.ErrForbidden)
				return bg()
			}},
		{name: "an optional Secret can't be read now, which is not missing", attrs: secret("optional", "true"), want: source.ErrUnavailable,
			prepare: func(w *world, _ *Request) context.Context {
				w.fake.fail(secretRef("keys"), source.ErrUnavailable)
				return bg()
			}},
		{name: "a key is missing", attrs: secret("items", "[{key: other, path: p}]"), want: ErrPrecondition, says: []string{`"other"`}},
		{name: "there is too much content", attrs: secret(), want: ErrPrecondition, says: []string{"--max-volume-bytes"},
			prepare: func(w *world, _ *Request) context.Context {
				w.secret("keys", content{"k": strings.Repeat("x", 4<<20+1)})
				return bg()
			}},
		{name: "a key is no file name", attrs: secret(), want: ErrPrecondition, says: []string{`"../k"`},
			prepare: func(w *world, _ *Request) context.Context { w.secret("keys", content{"../k": "x"}); return bg() }},
		{name: "no such owner can be, and the files are not written", attrs: secret(), says: []string{"did not take"},
			prepare: func(w *world, r *Request) context.Context {
				none := uint32(1<<32 - 1) // chown(2) takes it for "leave it"
				r.Spec.UID = &none
				return bg()
			}},
		{name: "the tmpfs can't be made", attrs: secret(), want: syscall.EINVAL, says: []string{"fsconfig", "context"},
			prepare: func(w *world, _ *Request) context.Context {
				w.SELinuxContext = "no context" // and no SELinux here
				w.t.Cleanup(func() { w.SELinuxContext = "" })
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
			prepare: func(w *world, _ *Request) context.Context { readOnly(w.t, w.state); return bg() }},
		{name: "the directory of the records is full", attrs: secret(), want: unix.ENOSPC, says: []string{"record"},
			prepare: func(w *world, _ *Request) context.Context { full(w.t, w.state); return bg() }},
		{name: "the directory of the records is gone", attrs: secret(), want: unix.ENOENT, says: []string{"record"},
			prepare: func(w *world, _ *Request) context.Context {
				must(w.t, os.Rename(w.state, w.state+"-away"))
				must(w.t, os.Symlink("nowhere", w.state))
				w.t.Cleanup(func() {
					must(w.t, os.Remove(w.state))
					must(w.t, os.Rename(w.state+"-away", w.state))
				})
				return bg()
			}},

		{name: "the call is cancelled while the source hangs", attrs: secret(), want: context.Canceled, says: []string{"wait for", `Secret "ns/keys"`},
			prepare: func(w *world, _ *Request) context.Context {
				waiting := w.fake.hang(secretRef("keys"))
				ctx, cancel := context.WithCancel(bg())
				go func() { <-waiting; cancel() }()
				return ctx
			}},
		{name: "the deadline passes while the source hangs", attrs: secret(), want: context.DeadlineExceeded, says: []string{"wait for"},
			prepare: func(w *world, _ *Request) context.Context {
				w.fake.hang(secretRef("keys"))
				ctx, cancel := context.WithTimeout(bg(), 10*time.Millisecond)
				w.t.Cleanup(cancel)
				return ctx
			}},
		late("the call is cancelled when all but the mount is done", context.Canceled, func(*world, *Request) error { return context.Canceled }, "publish volume csi-v"),
		late("the deadline passes when all but the mount is done", context.DeadlineExceeded, func(*world, *Request) error { return context.DeadlineExceeded }),
		late("the directory goes just before the mount", unix.ENOENT, func(w *world, r *Request) error { return os.Remove(r.Target) }, "attach"),
	}
}

type fault struct {
	name    string
	attrs   []string
	prepare func(*world, *Request) context.Context
	want    error // nil: any
	says    []string
}

func TestPublishThatFailsLeavesNothing(t *testing.T) {
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			const canary = "the value that nobody may see"
			w := newFakeWorld(t)
			w.secret("healthy", content{"k": "healthy"})
			w.secret("keys", content{"k": canary})
			healthy := w.request("healthy", "secretName", "healthy", "uid", "1000")
			w.publish(healthy)
			r := w.request("v", f.attrs...)
			ctx := t.Context()
			if f.prepare != nil {
				ctx = f.prepare(w, &r)
			}
			before := w.snapshot()

			err := w.Publish(ctx, r)
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
			w.unchanged(before)
			if w.get(healthy.ID) == nil {
				t.Error("the healthy volume is forgotten")
			}
			w.shows(healthy, content{"k": "healthy"})
			if n := w.locks.users(r.ID); n != 0 {
				t.Error("its lock is still held")
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// foreignTmpfs mounts a tmpfs that is not this driver's, with a file in it, until t ends.
func foreignTmpfs(t testing.TB, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o750))
	must(t, unix.Mount("somebody", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	must(t, os.WriteFile(filepath.Join(dir, "precious"), []byte("precious"), 0o600))
}

// readOnly makes a directory read-only until t ends, or undo is called, for root too.
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

// full puts a directory on a file system without room for a byte, until t ends. What was in it is hidden.
func full(t testing.TB, dir string) {
	t.Helper()
	must(t, unix.Mount("full", dir, "tmpfs", 0, "size=4k"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	must(t, os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 4096), 0o600))
}

func TestPublishThatCannotBeUndoneSaysSo(t *testing.T) {
	for _, test := range []struct {
		name   string
		strike func(w *world, r Request) (repair func())
		says   []string
		// left is whether the directory of the mount is left.
		left bool
	}{
		{"somebody put a file into the directory of the mount", func(w *world, r Request) func() {
			file := filepath.Join(r.Target, "precious")
			must(w.t, os.WriteFile(file, nil, 0o600))
			return func() { must(w.t, os.Remove(file)) }
		}, []string{"rmdir"}, true},
		{"the directory of the records became read-only", func(w *world, r Request) func() { return readOnly(w.t, w.state) }, []string{"remove record"}, false},
		{"somebody replaced the directory of the mount by a file", func(w *world, r Request) func() {
			must(w.t, os.Remove(r.Target))
			must(w.t, os.WriteFile(r.Target, nil, 0o600))
			return func() {
				must(w.t, os.Remove(r.Target))
				must(w.t, os.Mkdir(r.Target, 0o750))
			}
		}, []string{"rmdir"}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			w.secret("keys", content{"k": "v"})
			r := w.request("v", "secretName", "keys")
			var repair func()
			asked := 0
			err := w.Publish(atErr{t.Context(), func() error {
				if asked++; asked < 2 {
					return nil
				}
				repair = test.strike(w, r)
				return context.DeadlineExceeded
			}}, r)
			isErr(t, err, ErrLeftover, test.says...)
			isErr(t, err, context.DeadlineExceeded)
			if w.get(r.ID) != nil || len(w.watches()) > 0 || len(testkit.MountsBelow(t, r.Target)) > 0 {
				t.Errorf("the steps that could be undone were not: %s", w.snapshot())
			}
			if _, err := os.Lstat(r.Target); (err == nil) != test.left {
				t.Errorf("the directory of the mount: %v", err)
			}
			repair()
			w.unpublish(r)
		})
	}
}

func TestPublishAgain(t *testing.T) {
	setUp := func(t *testing.T) (*world, Request) {
		w := newFakeWorld(t)
		w.secret("keys", content{"k": "v"})
		w.secret("other", content{"k": "other"})
		r := w.request("v", "secretName", "keys", "uid", "1000", "gid", "2000")
		w.publish(r)
		return w, r
	}
	refused := 0
	for _, test := range []struct {
		name   string
		change func(w *world, r *Request)
		want   error
	}{
		{"with another object", func(w *world, r *Request) { r.Spec.Sources[0].Object.Name = "other" }, ErrConflict},
		{"with another kind", func(w *world, r *Request) { r.Spec.Sources[0].Object.Kind = attributes.ConfigMap }, ErrConflict},
		{"with another owner", func(w *world, r *Request) { uid := uint32(1001); r.Spec.UID = &uid }, ErrConflict},
		{"without an owner", func(w *world, r *Request) { r.Spec.UID = nil }, ErrConflict},
		{"with another mode", func(w *world, r *Request) { r.Spec.Sources[0].Mode = 0o444 }, ErrConflict},
		{"with items", func(w *world, r *Request) { r.Spec.Sources[0].Items = []attributes.Item{{Key: "k", Path: "p"}} }, ErrConflict},
		{"with refresh off", func(w *world, r *Request) { r.Spec.Refresh = attributes.RefreshOff }, ErrConflict},
		{"for another pod", func(w *world, r *Request) { r.Pod.UID = "uid-other" }, ErrConflict},
		{"at another target", func(w *world, r *Request) { r.Target = w.request("elsewhere", "secretName", "keys").Target }, ErrPrecondition},
		{"with a copy of the same owner", func(w *world, r *Request) { uid := uint32(1000); r.Spec.UID = &uid }, nil},
		{"with the same", func(w *world, r *Request) {}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, r := setUp(t)
			again := copied(r)
			test.change(w, &again)
			before := w.snapshot()
			if err := w.Publish(t.Context(), again); !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Errorf("got %v, want %v", err, test.want)
			}
			w.unchanged(before)
			w.present(r, content{"k": "v"})
		})
		if test.want != nil {
			refused++
		}
	}

	// Kubelet publishes each running volume again after its restart, and keeps its pods back until it gets its yes (F-12, contract 4.4).
	for _, reason := range []error{source.ErrUnavailable, source.ErrForbidden, source.ErrNotFound} {
		t.Run("while the object is: "+reason.Error(), func(t *testing.T) {
			w, r := setUp(t)
			mount := mountID(t, r)
			w.fake.fail(secretRef("keys"), reason)
			w.publish(r)
			w.present(r, content{"k": "v"})
			if now := mountID(t, r); now != mount {
				t.Errorf("it was mounted anew: mount %d, before: %d", now, mount)
			}
			if n := w.gauge("fsuser_stale_volumes"); n != 1 {
				t.Errorf("%v stale volumes, want 1", n)
			}
		})
	}

	t.Run("does not wait for a source that hangs", func(t *testing.T) {
		w, r := setUp(t)
		w.fake.hang(secretRef("keys"))
		w.publish(r)
		w.present(r, content{"k": "v"})
	})

	t.Run("takes up content that changed, in place", func(t *testing.T) {
		w, r := setUp(t)
		mount := mountID(t, r)
		w.secret("keys", content{"k": "new", "l": "more"})
		w.publish(r)
		w.present(r, content{"k": "new", "l": "more"})
		if now := mountID(t, r); now != mount {
			t.Errorf("it was mounted anew: mount %d, before: %d", now, mount)
		}
	})

	t.Run("takes up new content of a request, and only then", func(t *testing.T) {
		w, _ := setUp(t)
		r := w.request("request", "uid", "1000")
		w.publish(r)
		generation := readlink(t, r)
		w.publish(r)
		if now := readlink(t, r); now != generation {
			t.Errorf("the same content was written again: %s, %s", generation, now)
		}
		r.Secrets = map[string]string{"k": "new"}
		w.publish(r)
		w.present(r, content{"k": "new"})
		r.Secrets = map[string]string{"../k": "bad"}
		w.publish(r)
		w.present(r, content{"k": "new"})
		if n := w.gauge("fsuser_stale_volumes"); n != 1 {
			t.Errorf("%v stale volumes, want 1", n)
		}
		w.unpublish(r)
		if n := w.gauge("fsuser_stale_volumes"); n != 0 {
			t.Errorf("%v stale volumes, want none", n)
		}
	})
	reliability.Shown(t, "F-18", fmt.Sprintf("%d differences to the volume that is there: refused, and it stays whole", refused))
}

func TestATargetThatIsNotAsItMustBeIsAPublishThatFailed(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, r Request)
	}{
		{"its parent is missing", func(t *testing.T, r Request) { must(t, os.Remove(filepath.Dir(r.Target))) }},
		{"it is a link", func(t *testing.T, r Request) { must(t, os.Symlink("/tmp", r.Target)) }},
		{"it is a file", func(t *testing.T, r Request) { must(t, os.WriteFile(r.Target, nil, 0o600)) }},
		{"something else is mounted there", func(t *testing.T, r Request) {
			must(t, os.Mkdir(r.Target, 0o750))
			must(t, unix.Mount("somebody", r.Target, "tmpfs", 0, ""))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			r := w.request("v", "uid", "1000")
			test.spoil(t, r)
			isErr(t, w.Publish(t.Context(), r), ErrPrecondition)
			if n := w.counts()["publish error"]; n != 1 {
				t.Errorf("%d publishes failed, want 1", n)
			}
			if got := w.failures(); !maps.Equal(got, map[string]int{"publish precondition": 1}) {
				t.Errorf("failures %v, want one of a publish, for a precondition", got)
			}
		})
	}
}

// Kubelet sends the same for a Secret without data and for none.
func TestContentOfTheRequestThatIsEmpty(t *testing.T) {
	t.Run("is none for a first publish (H-067)", func(t *testing.T) {
		w := newFakeWorld(t)
		r := w.request("v", "uid", "1000")
		r.Secrets = nil
		before := w.snapshot()
		isErr(t, w.Publish(t.Context(), r), ErrNoContent, "secretName", "configMapName", "nodePublishSecretRef", "Secret has no data")
		w.unchanged(before)
		w.absent(r)
	})
	for _, test := range []struct {
		name   string
		change func(w *world)
		attrs  []string
		want   content
	}{
		{"empties a volume that is there", func(*world) {}, nil, content{}},
		{"empties a volume that is there after a restart", func(w *world) { w.restart() }, nil, content{}},
		{"empties a volume whose record is lost", func(w *world) {
			for _, file := range w.recordFiles() {
				must(w.t, os.Remove(file))
			}
			w.restart()
		}, nil, content{}},
		{"keeps the files that items name", func(*world) {}, []string{"items", "[{key: k, path: k}]"}, content{"k": "from the request"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			r := w.request("v", append(test.attrs, "uid", "1000")...)
			w.publish(r)
			test.change(w)
			r.Secrets = nil
			w.publish(r)
			w.present(r, test.want)
			r.Secrets = map[string]string{"k": "again"}
			w.publish(r)
			w.present(r, content{"k": "again"})
			w.unpublish(r)
		})
	}
}

// mountID tells one mount from another, whatever its limits are by now.
func mountID(t testing.TB, r Request) uint64 {
	t.Helper()
	point, err := tmpfs.OpenTarget(r.Target)
	must(t, err)
	defer point.Close()
	state, err := point.Inspect()
	must(t, err)
	if !state.Mounted {
		t.Fatalf("%s is not mounted", r.ID)
	}
	return state.MountID
}

func readlink(t testing.TB, r Request) string {
	t.Helper()
	link, err := os.Readlink(filepath.Join(r.Target, "..data"))
	must(t, err)
	return link
}

func TestPublishAfterTheMountVanished(t *testing.T) {
	for _, test := range []struct {
		name   string
		vanish func(t *testing.T, r Request)
	}{
		{"somebody unmounted it", func(t *testing.T, r Request) { must(t, unix.Unmount(r.Target, unix.MNT_DETACH)) }},
		{"somebody unmounted it and removed the directory", func(t *testing.T, r Request) {
			must(t, unix.Unmount(r.Target, unix.MNT_DETACH))
			must(t, os.Remove(r.Target))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			w.secret("keys", content{"k": "v"})
			r := w.request("v", "secretName", "keys")
			w.publish(r)
			// As after a deletion that the mount did not live to see.
			w.fake.fail(secretRef("keys"), source.ErrNotFound)
			w.publish(r)
			test.vanish(t, r)
			if err := w.Publish(t.Context(), r); !errors.Is(err, source.ErrNotFound) {
				t.Fatalf("got %v, want %v", err, source.ErrNotFound)
			}
			// The directory may stay: kubelet will unpublish a volume that it once got its yes for.
			if w.get(r.ID) != nil || len(w.watches()) > 0 || len(w.recordFiles()) > 0 || len(testkit.MountsBelow(t, r.Target)) > 0 {
				t.Errorf("something is left: %s", w.snapshot())
			}
			w.secret("keys", content{"k": "new"})
			w.publish(r)
			w.present(r, content{"k": "new"})
			if n := w.gauge("fsuser_stale_volumes"); n != 0 {
				t.Errorf("%v stale volumes, want none", n)
			}
			w.unpublish(r)
		})
	}
}

func TestPublishAdoptsAMountWhoseRecordIsLost(t *testing.T) {
	setUp := func(t *testing.T, attrs ...string) (*world, Request, uint64) {
		w := newFakeWorld(t)
		w.secret("keys", content{"k": "v"})
		r := w.request("v", attrs...)
		w.publish(r)
		for _, file := range w.recordFiles() {
			must(t, os.Remove(file))
		}
		mount := mountID(t, r)
		w.restart()
		if w.get(r.ID) != nil {
			t.Fatal("the volume is known without a record")
		}
		return w, r, mount
	}
	sameMount := func(t *testing.T, w *world, r Request, mount uint64, want content) {
		t.Helper()
		w.present(r, want)
		if now := mountID(t, r); now != mount {
			t.Errorf("it was mounted anew: mount %d, before: %d", now, mount)
		}
	}

	t.Run("with its content", func(t *testing.T) {
		w, r, mount := setUp(t, "secretName", "keys")
		generation := readlink(t, r)
		w.publish(r)
		sameMount(t, w, r, mount, content{"k": "v"})
		if now := readlink(t, r); now != generation {
			t.Error("what was right was written again")
		}
		w.unpublish(r)
	})
	t.Run("and refreshes it", func(t *testing.T) {
		w, r, mount := setUp(t, "secretName", "keys")
		w.secret("keys", content{"k": "new"})
		w.publish(r)
		sameMount(t, w, r, mount, content{"k": "new"})
		w.run()
		w.secret("keys", content{"k": "newer"})
		w.becomes(r, content{"k": "newer"})
		w.unpublish(r)
	})
	t.Run("while the API server does not answer", func(t *testing.T) {
		w, r, mount := setUp(t, "secretName", "keys")
		w.fake.hang(secretRef("keys"))
		w.publish(r)
		sameMount(t, w, r, mount, content{"k": "v"})
		if n := w.gauge("fsuser_stale_volumes"); n != 1 {
			t.Errorf("%v stale volumes, want 1", n)
		}
		w.run()
		w.secret("keys", content{"k": "new"})
		w.becomes(r, content{"k": "new"})
		testkit.Eventually(t, patience, "the volume to be current", func() bool { return w.gauge("fsuser_stale_volumes") == 0 })
		w.unpublish(r)
	})
	t.Run("with refresh off, and writes nothing", func(t *testing.T) {
		w, r, mount := setUp(t, "secretName", "keys", "refresh", "off")
		w.secret("keys", content{"k": "new"})
		w.publish(r)
		sameMount(t, w, r, mount, content{"k": "v"})
		w.unpublish(r)
	})
	t.Run("with content of the request", func(t *testing.T) {
		w, r, mount := setUp(t)
		r.Secrets = map[string]string{"k": "new"}
		w.publish(r)
		sameMount(t, w, r, mount, content{"k": "new"})
		w.unpublish(r)
	})
	t.Run("although no record can be written", func(t *testing.T) {
		w, r, mount := setUp(t, "secretName", "keys")
		writable := readOnly(t, w.state)
		w.publish(r)
		w.shows(r, content{"k": "v"})
		writable()
		w.restart()
		w.publish(r)
		sameMount(t, w, r, mount, content{"k": "v"})
		w.unpublish(r)
	})
}

// Two drivers at one time, or somebody who unmounts and publishes by other means: the volume is known, and what is mounted is ours
// but another.
func TestPublishAdoptsAnotherTmpfsOfOurs(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("keys", content{"k": "v"})
	w.secret("other", content{"k": "other"})
	r := w.request("v", "secretName", "keys")
	w.publish(r)
	w.fake.fail(secretRef("keys"), source.ErrForbidden)
	w.publish(r)
	v := w.get(r.ID)
	w.Manager.mu.Lock()
	delete(w.volumes, r.ID) // what another process would do is done by this one
	w.Manager.mu.Unlock()
	must(t, unix.Unmount(r.Target, unix.MNT_DETACH))
	other := w.request("v", "secretName", "other")
	w.publish(other)
	w.put(v)

	w.publish(other)
	w.present(other, content{"k": "other"})
	if got := w.watches(); len(got) != 1 {
		t.Errorf("watches are left: %q", got)
	}
	if n := w.gauge("fsuser_stale_volumes"); n != 0 {
		t.Errorf("%v stale volumes, want none", n)
	}
	w.unpublish(other)
}

func TestPublishOfManyVolumesAtOnceWatchesEachObjectOnce(t *testing.T) {
	const n = 50
	w := newWorld(t)
	w.secret("keys", content{"k": "v"})
	w.run()
	requests := make([]Request, n)
	failed := make(chan error, n)
	for i := range requests {
		requests[i] = w.request(fmt.Sprint("v", i), "secretName", "keys")
		go func() { failed <- w.Publish(t.Context(), requests[i]) }()
	}
	for range requests {
		must(t, <-failed)
	}
	if got := w.Source.Watched(); got != 1 {
		t.Errorf("%d objects are watched, want 1", got)
	}
	if got := w.gauge("fsuser_volumes"); got != n {
		t.Errorf("%v volumes, want %d", got, n)
	}
	w.secret("keys", content{"k": "new"})
	for _, r := range requests {
		w.becomes(r, content{"k": "new"})
		w.unpublish(r)
	}
	if got := w.Source.Watched(); got != 0 {
		t.Errorf("%d objects are still watched", got)
	}
}

// F-34: the object changes after its content was read and before the volume is known.
func TestChangeDuringPublishIsNotLost(t *testing.T) {
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("with Run under way: %v", running), func(t *testing.T) {
			w := newFakeWorld(t)
			w.secret("keys", content{"k": "read"})
			r := w.request("v", "secretName", "keys")
			w.fake.setAfterGet(func() {
				w.fake.setAfterGet(nil)
				w.secret("keys", content{"k": "changed"})
			})
			if running {
				w.run()
			}
			w.publish(r)
			if !running {
				w.present(r, content{"k": "read"})
				w.run()
			}
			w.becomes(r, content{"k": "changed"})
			w.unpublish(r)
		})
	}
}

func TestPublishWaitsForTheFirstAnswer(t *testing.T) {
	w := newFakeWorld(t)
	waiting := w.fake.hang(secretRef("keys"))
	r := w.request("v", "secretName", "keys")
	published := make(chan error)
	go func() { published <- w.Publish(t.Context(), r) }()
	<-waiting
	if len(testkit.MountsBelow(t, r.Target)) > 0 || len(w.recordFiles()) > 0 {
		t.Error("something is there before there is content")
	}
	w.secret("keys", content{"k": "at last"})
	must(t, <-published)
	w.present(r, content{"k": "at last"})
}

func TestPublishTakesAnEmptyDirectoryThatIsThere(t *testing.T) {
	w := newWorld(t)
	r := w.request("v")
	must(t, os.Mkdir(r.Target, 0o750))
	w.publish(r)
	w.present(r, content{"k": "from the request"})
	w.unpublish(r)
}

func TestSpecSurvivesTheRecord(t *testing.T) {
	w := newWorld(t)
	group := uint32(0)
	r := w.request("v", "configMapName", "c", "optional", "true", "uid", "0", "gid", "2147483647", "mode", "0000", "dirMode", "0711", "refresh", "off",
		"items", `[{key: a, path: x/a, mode: "0000", uid: 0, gid: 0}, {key: b, path: b}]`)
	r.MountGroup = &group
	v := newVolume(r)
	v.identity.Device, v.identity.FSID = 1<<63, 1<<64-1
	must(t, w.Records.Save(v.toRecord()))
	loaded, bad, err := w.Records.Load()
	if err != nil || len(bad) > 0 || len(loaded) != 1 {
		t.Fatal(loaded, bad, err)
	}
	got := fromRecord(loaded[0])
	if got.id != v.id || got.target != v.target || got.pod != v.pod || !got.spec.Equal(v.spec) || *got.mountGroup != 0 || got.identity != v.identity {
		t.Errorf("got  %+v\nwant %+v", got, v)
	}
	plain := newVolume(w.request("w", "secretName", "s"))
	if got := fromRecord(plain.toRecord()); got.spec.Sources[0].Items != nil || got.spec.UID != nil || got.spec.GID != nil || got.mountGroup != nil || !got.spec.Equal(plain.spec) {
		t.Errorf("got %+v, want %+v", got, plain)
	}
}

// The mount table has a mount of ours at the target, but it is not the one that is seen there.
func TestPublishDoesNotAdoptWhatIsMountedOverAVolume(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(w *world, r Request)
	}{
		{"that is known", func(*world, Request) {}},
		{"whose record is lost", func(w *world, _ Request) {
			for _, file := range w.recordFiles() {
				must(w.t, os.Remove(file))
			}
			w.restart()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			w.secret("keys", content{"k": "v"})
			r := w.request("v", "secretName", "keys")
			w.publish(r)
			foreignTmpfs(t, r.Target)
			test.prepare(w, r)
			w.secret("keys", content{"k": "new"})
			before := w.snapshot()
			isErr(t, w.Publish(t.Context(), r), ErrPrecondition, "not this driver's")
			w.unchanged(before)
			if b, err := os.ReadFile(filepath.Join(r.Target, "precious")); string(b) != "precious" {
				t.Errorf("what somebody else mounted was written to: %q, %v", b, err)
			}
			must(t, unix.Unmount(r.Target, 0))
			w.publish(r)
			w.present(r, content{"k": "new"})
			w.unpublish(r)
		})
	}
}

func TestAPublishThatPanicsLeavesNothing(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("keys", content{"id_rsa": "private"})
	r := w.request("v", "secretName", "keys", "uid", "1000")
	before := w.snapshot()
	w.fake.setAfterGet(func() { panic("a bug") })
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it did not panic")
			}
		}()
		_ = w.Publish(context.Background(), r)
	}()
	w.fake.setAfterGet(nil)
	w.unchanged(before)
}
