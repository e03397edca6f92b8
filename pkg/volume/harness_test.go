// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

func TestMain(m *testing.M) {
	testkit.RunInMountNamespace(m)
}

// logged is what the tests have logged so far. A world empties it.
var logged, _ = testkit.CaptureLog(0)

const (
	namespace = "ns"
	// patience bounds a wait for an event. Each takes milliseconds.
	patience = 20 * time.Second
)

// world is a node with one driver on it: kubelet's directories, the records, a source of objects, and a Manager.
type world struct {
	*Manager
	t testing.TB
	// root stands for kubelet's root directory, state holds the records.
	root, state string
	// fake is the source if the test chooses its answers; else it is manifests, real files below a real source.Directory.
	fake      *fakeSource
	manifests string
	directory *source.Directory

	registry  *prometheus.Registry
	configure []func(*Config)
	stop      func()
}

// newWorld returns a world whose objects are manifests in a directory.
func newWorld(t testing.TB, configure ...func(*Config)) *world {
	t.Helper()
	w := makeWorld(t, configure)
	w.manifests = t.TempDir()
	w.start()
	return w
}

// newFakeWorld returns a world with a fakeSource.
func newFakeWorld(t testing.TB, configure ...func(*Config)) *world {
	t.Helper()
	w := makeWorld(t, configure)
	w.fake = &fakeSource{objects: map[source.Ref]*fakeObject{}}
	w.start()
	return w
}

func makeWorld(t testing.TB, configure []func(*Config)) *world {
	t.Helper()
	testkit.NothingLeft(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, root: filepath.Join(dir, "kubelet"), state: filepath.Join(dir, "state"), configure: configure}
	if err := os.Mkdir(w.root, 0o755); err != nil {
		t.Fatal(err)
	}
	logged.Take()
	t.Cleanup(func() {
		w.end()
		if t.Failed() {
			t.Logf("the log:\n%s", logged.Text())
		}
		for _, line := range testkit.MountsBelow(t, dir) {
			if err := unix.Unmount(strings.Fields(line)[4], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				t.Errorf("%v: %s", err, line)
			}
		}
	})
	return w
}

// start starts a driver: it knows nothing but what is on the machine.
func (w *world) start() {
	w.t.Helper()
	features, err := tmpfs.Probe()
	if err != nil {
		w.t.Fatal(err)
	}
	records, err := record.Open(w.state)
	if err != nil {
		w.t.Fatal(err)
	}
	var src Source = w.fake
	if w.fake == nil {
		if w.directory, err = source.NewDirectory(w.manifests); err != nil {
			w.t.Fatal(err)
		}
		src = w.directory
	}
	w.registry = prometheus.NewRegistry()
	c := Config{
		Source: src, Records: records, Features: features, Limits: ample, Workers: 4,
		CollectEvery: time.Hour, CheckTarget: w.checkTarget, Metrics: w.registry,
	}
	for _, change := range w.configure {
		change(&c)
	}
	if w.Manager, err = New(c); err != nil {
		w.t.Fatal(err)
	}
}

// run lets the driver refresh, until w.end.
func (w *world) run() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); w.Run(ctx) }()
	w.stop = func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			w.t.Errorf("Run did not return within %v", patience)
		}
	}
}

// end is the end of a driver: everything in its memory is gone, what is on the machine stays.
func (w *world) end() {
	if w.stop != nil {
		w.stop()
		w.stop = nil
	}
	if w.Manager != nil {
		w.queue.ShutDown()
		w.Manager = nil
	}
	if w.directory != nil {
		w.directory.Close()
		w.directory = nil
	}
	if w.fake != nil {
		w.fake.forget()
	}
}

// restart is what a new process finds. It does not run yet.
func (w *world) restart() {
	w.t.Helper()
	w.end()
	w.start()
	if err := w.Recover(w.t.Context()); err != nil {
		w.t.Fatalf("recover: %v", err)
	}
}

func (w *world) target(podUID, volume string) string {
	return filepath.Join(w.root, "pods", podUID, "volumes/kubernetes.io~csi", volume, "mount")
}

// checkTarget has the rule of driver.Binding.CheckTarget, that id, pod and target belong together, in this test's form of ids.
func (w *world) checkTarget(id, target, podUID string) error {
	if volume, ok := strings.CutPrefix(id, "csi-"); !ok || target != w.target(podUID, volume) {
		return fmt.Errorf("target %s is not that of %s in pod %s", target, id, podUID)
	}
	return nil
}

// request returns a request for a volume of a pod of its own, with pairs of attributes, after making what kubelet makes before it
// calls. Without an object among the attributes the content comes with the request.
func (w *world) request(name string, attrs ...string) Request {
	w.t.Helper()
	r := Request{ID: "csi-" + name, Target: w.target("uid-"+name, name), Pod: Pod{Namespace: namespace, Name: "pod-" + name, UID: "uid-" + name}}
	m := map[string]string{}
	for i := 0; i < len(attrs); i += 2 {
		m[attrs[i]] = attrs[i+1]
	}
	if m["secretName"] == "" && m["configMapName"] == "" && m["sources"] == "" {
		r.Secrets = map[string]string{"k": "from the request"}
	}
	r.Spec = parse(w.t, m, r.Secrets != nil)
	if err := os.MkdirAll(filepath.Dir(r.Target), 0o750); err != nil {
		w.t.Fatal(err)
	}
	return r
}

func parse(t testing.TB, attrs map[string]string, withSecrets bool) attributes.Spec {
	t.Helper()
	spec, errs := attributes.Parse(attrs, withSecrets)
	if err := errs.ToAggregate(); err != nil {
		t.Fatal(err)
	}
	return spec
}

// content is what an object holds.
type content map[string]string

func (c content) bytes() map[string][]byte {
	data := map[string][]byte{}
	for key, value := range c {
		data[key] = []byte(value)
	}
	return data
}

func secretRef(name string) source.Ref {
	return source.Ref{Kind: source.Secret, Namespace: namespace, Name: name}
}

// secret gives a Secret its content. When it returns, the source knows.
func (w *world) secret(name string, c content) {
	w.t.Helper()
	if w.fake != nil {
		w.fake.set(secretRef(name), c)
		return
	}
	b, err := json.Marshal(&corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: c.bytes(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	path := filepath.Join(w.manifests, name+".json")
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		w.t.Fatal(err)
	}
	w.directoryKnows(name, func(data map[string][]byte, err error) bool {
		return err == nil && maps.EqualFunc(data, c, func(a []byte, b string) bool { return string(a) == b })
	})
}

func (w *world) removeSecret(name string) {
	w.t.Helper()
	if w.fake != nil {
		w.fake.fail(secretRef(name), source.ErrNotFound)
		return
	}
	if err := os.Remove(filepath.Join(w.manifests, name+".json")); err != nil {
		w.t.Fatal(err)
	}
	w.directoryKnows(name, func(_ map[string][]byte, err error) bool { return errors.Is(err, source.ErrNotFound) })
}

func (w *world) directoryKnows(name string, ok func(map[string][]byte, error) bool) {
	w.t.Helper()
	if w.directory == nil {
		return
	}
	w.directory.Watch(secretRef(name), "the test", func() {})
	defer w.directory.Unwatch(secretRef(name), "the test")
	testkit.Eventually(w.t, patience, "the directory of manifests to be read", func() bool {
		c, err := w.directory.Get(secretRef(name))
		return ok(c.Data, err)
	})
}

// publish publishes a volume that must come to be.
func (w *world) publish(r Request) {
	w.t.Helper()
	if err := w.Publish(w.t.Context(), r); err != nil {
		w.t.Fatalf("publish %s: %v", r.ID, err)
	}
}

func (w *world) unpublish(r Request) {
	w.t.Helper()
	if err := w.Unpublish(w.t.Context(), r.ID, r.Target); err != nil {
		w.t.Fatalf("unpublish %s: %v", r.ID, err)
	}
	w.absent(r)
}

// present fails the test unless the volume is there and shows the content.
func (w *world) present(r Request, want content) {
	w.t.Helper()
	w.isThere(r)
	w.shows(r, want)
}

// isThere fails the test unless the volume is mounted once, sealed, remembered, and watches its object if it should.
func (w *world) isThere(r Request) {
	w.t.Helper()
	mounts := testkit.MountsBelow(w.t, r.Target)
	if len(mounts) != 1 {
		w.t.Fatalf("%s has %d mounts, not one: %q", r.ID, len(mounts), mounts)
	}
	fields := strings.Fields(mounts[0])
	for _, option := range []string{"ro", "nosuid", "nodev", "noexec"} {
		if !slices.Contains(strings.Split(fields[5], ","), option) {
			w.t.Errorf("%s is not mounted %s: %s", r.ID, option, mounts[0])
		}
	}
	if !strings.Contains(mounts[0], " - tmpfs "+tmpfs.Source+" ") {
		w.t.Errorf("%s is not a tmpfs of this driver: %s", r.ID, mounts[0])
	}
	v := w.get(r.ID)
	if v == nil {
		w.t.Fatalf("%s is mounted and the Manager does not know it", r.ID)
	}
	if rec := w.record(r.ID); rec == nil {
		w.t.Errorf("%s is mounted without a record", r.ID)
	} else if rec.Device != v.identity.Device || rec.FSID != v.identity.FSID {
		w.t.Errorf("the record of %s is of another tmpfs: %+v, not %+v", r.ID, rec, v.identity)
	}
	if w.fake != nil {
		for _, object := range v.objects {
			if w.fake.holds(object, r.ID) != v.watches() {
				w.t.Errorf("%s watches %s: %v, want %v", r.ID, object, !v.watches(), v.watches())
			}
		}
	}
}

// copied returns a request whose sources can be changed without changing those of r.
func copied(r Request) Request {
	r.Spec.Sources = slices.Clone(r.Spec.Sources)
	return r
}

// shows fails the test unless the volume's visible files are these.
func (w *world) shows(r Request, want content) {
	w.t.Helper()
	if got := visible(w.t, r.Target); !maps.Equal(got, want) {
		w.t.Errorf("%s shows %.300q, want %.300q", r.ID, got, want)
	}
}

// becomes waits until the volume's visible files are these.
func (w *world) becomes(r Request, want content) {
	w.t.Helper()
	testkit.Eventually(w.t, patience, fmt.Sprintf("%s to show %.300q", r.ID, want), func() bool {
		return maps.Equal(visible(w.t, r.Target), want)
	})
}

// visible are the files that a container sees, by their path. A file that goes while one looks is not there.
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
			} else if !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	walk(".")
	return c
}

// absent fails the test if anything is left of the volume.
func (w *world) absent(r Request) {
	w.t.Helper()
	if mounts := testkit.MountsBelow(w.t, r.Target); len(mounts) > 0 {
		w.t.Errorf("%s is still mounted: %q", r.ID, mounts)
	}
	if _, err := os.Lstat(r.Target); !errors.Is(err, fs.ErrNotExist) {
		w.t.Errorf("the directory of %s is still there: %v", r.ID, err)
	}
	if w.get(r.ID) != nil {
		w.t.Errorf("the Manager still knows %s", r.ID)
	}
	if rec := w.record(r.ID); rec != nil {
		w.t.Errorf("%s still has a record: %+v", r.ID, rec)
	}
	if holds := w.watches(); slices.ContainsFunc(holds, func(h string) bool { return strings.HasSuffix(h, " for "+r.ID) }) {
		w.t.Errorf("%s still watches: %q", r.ID, holds)
	}
	// A worker that heard of a change may still be looking for the volume.
	testkit.Eventually(w.t, patience, "the lock of "+r.ID+" to be forgotten", func() bool { return w.locks.users(r.ID) == 0 })
}

// record reads the record of a volume without changing anything, as Store.Load would.
func (w *world) record(id string) *record.Volume {
	w.t.Helper()
	for _, path := range w.recordFiles() {
		var v record.Volume
		if b, err := os.ReadFile(path); err != nil {
			w.t.Error(err)
		} else if json.Unmarshal(b, &v) == nil && v.VolumeID == id {
			return &v
		}
	}
	return nil
}

func (w *world) recordFiles() []string {
	w.t.Helper()
	paths, err := filepath.Glob(filepath.Join(w.state, "*.json*"))
	if err != nil {
		w.t.Fatal(err)
	}
	return paths
}

// watches says who watches what. Of real manifests only the number is known.
func (w *world) watches() []string {
	if w.fake != nil {
		return w.fake.watches()
	}
	return slices.Repeat([]string{"an object"}, w.Source.Watched())
}

// snapshot is all that a call could have touched: directories and what is in them, mounts, records, watches, what is known. Two of
// them are equal if nothing was.
func (w *world) snapshot() string {
	w.t.Helper()
	var b strings.Builder
	for _, dir := range []string{w.root, w.state} {
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
			rel, _ := filepath.Rel(w.root, path)
			fmt.Fprintf(&b, "%s: device %d inode %d mode %o owner %d:%d %s\n", rel, st.Dev, st.Ino, st.Mode, st.Uid, st.Gid, text)
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	fmt.Fprintf(&b, "watches: %q\nmounts:\n%s", w.watches(), testkit.MountTable(w.t))
	var known []string
	for _, v := range w.all() {
		known = append(known, v.id)
	}
	slices.Sort(known)
	fmt.Fprintf(&b, "known: %q stale: %v\n", known, w.gauge("fsuser_stale_volumes"))
	return b.String()
}

// unchanged fails the test if the world is not as it was.
func (w *world) unchanged(before string) {
	w.t.Helper()
	after := w.snapshot()
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
	w.t.Errorf("something was touched:\n%s", strings.Join(diff, "\n"))
}

// gauge returns the value of a metric without labels: a gauge, or a counter.
func (w *world) gauge(name string) float64 {
	w.t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	w.t.Fatalf("there is no metric %s", name)
	return 0
}

// counts returns how often each operation had each outcome, as "publish ok": 1. What never happened is not in it.
func (w *world) counts() map[string]int {
	return w.counted("fsuser_volume_operation_duration_seconds", "outcome")
}

// failures returns how often each operation failed for each reason, as "publish precondition": 1.
func (w *world) failures() map[string]int {
	return w.counted("fsuser_volume_failures_total", "reason")
}

// counted returns how often a metric counted each operation, with another label.
func (w *world) counted(name, label string) map[string]int {
	w.t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
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

// isErr fails the test unless err is want and says all of says.
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

// fakeSource is a fake: a Source whose answers the test chooses, and when they come. It holds and tells as package source does.
type fakeSource struct {
	mu       sync.Mutex
	objects  map[source.Ref]*fakeObject
	versions int
	// afterGet, if there is one, is called when Get has its answer, without a lock.
	afterGet func()
	// gets counts the calls of Get.
	gets int
	// pod is what Pod answers, and podErr its error; pods counts the calls.
	pod    source.Pod
	podErr error
	pods   int
}

// Pod implements Source.
func (f *fakeSource) Pod(context.Context, string, string, string) (source.Pod, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pods++
	return f.pod, f.podErr
}

type fakeObject struct {
	holders  map[string]func()
	answered chan struct{} // closed when there is an answer
	content  source.Content
	err      error
	// away is why there is no word of it, since awaySince.
	away      error
	awaySince time.Time
	// waiting is closed when somebody waits.
	waiting     chan struct{}
	waitingOnce sync.Once
}

// object returns the object; one that the test has not set is not there. f.mu is held.
func (f *fakeSource) object(ref source.Ref) *fakeObject {
	ref.Newest = false
	o := f.objects[ref]
	if o == nil {
		o = &fakeObject{holders: map[string]func(){}, answered: make(chan struct{}), waiting: make(chan struct{})}
		o.err = &source.Error{Ref: ref, Reason: source.ErrNotFound}
		close(o.answered)
		f.objects[ref] = o
	}
	return o
}

// hang makes the object one of which nothing is known yet, until set or fail. It returns a channel that is closed when somebody waits.
func (f *fakeSource) hang(ref source.Ref) (waiting <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.object(ref)
	o.answered = make(chan struct{})
	o.err = &source.Error{Ref: ref, Reason: source.ErrUnavailable, Detail: "the API server has not answered yet"}
	o.waiting, o.waitingOnce = make(chan struct{}), sync.Once{}
	return o.waiting
}

func (f *fakeSource) set(ref source.Ref, c content) {
	f.answer(ref, func(o *fakeObject) {
		f.versions++
		o.err, o.content = nil, source.Content{Data: c.bytes(), UID: "uid", ResourceVersion: strconv.Itoa(f.versions), Seen: time.Now()}
	})
}

func (f *fakeSource) fail(ref source.Ref, reason error) {
	f.answer(ref, func(o *fakeObject) { o.err = &source.Error{Ref: ref, Reason: reason, Detail: "says the fake"} })
}

func (f *fakeSource) answer(ref source.Ref, change func(*fakeObject)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.object(ref)
	change(o)
	select {
	case <-o.answered:
	default:
		close(o.answered)
	}
	for _, changed := range o.holders {
		changed()
	}
}

// forget drops all holders, as the end of the process does.
func (f *fakeSource) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.objects {
		clear(o.holders)
	}
}

func (f *fakeSource) Watch(ref source.Ref, holder string, changed func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.object(ref)
	o.holders[holder] = changed
	select {
	case <-o.answered:
		changed()
	default:
	}
}

func (f *fakeSource) Unwatch(ref source.Ref, holder string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.object(ref).holders, holder)
}

func (f *fakeSource) Wait(ctx context.Context, ref source.Ref) {
	f.mu.Lock()
	o := f.object(ref)
	answered := o.answered
	o.waitingOnce.Do(func() { close(o.waiting) })
	f.mu.Unlock()
	select {
	case <-answered:
	case <-ctx.Done():
	}
}

func (f *fakeSource) Get(ref source.Ref) (source.Content, error) {
	f.mu.Lock()
	f.gets++
	o, afterGet := f.object(ref), f.afterGet
	c, err := o.content, o.err
	if len(o.holders) == 0 {
		c, err = source.Content{}, &source.Error{Ref: ref, Reason: source.ErrUnavailable, Detail: "nobody watches it"}
	}
	f.mu.Unlock()
	if afterGet != nil {
		afterGet()
	}
	if err != nil {
		return source.Content{}, err
	}
	return c, nil
}

func (f *fakeSource) Away(ref source.Ref) (time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.object(ref)
	return o.awaySince, o.away
}

// setAway makes there be no word of an object since a time; a zero time ends that.
func (f *fakeSource) setAway(ref source.Ref, since time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.object(ref)
	o.away, o.awaySince = nil, since
	if !since.IsZero() {
		o.away = &source.Error{Ref: ref, Reason: source.ErrUnavailable, Detail: "connection refused"}
	}
}

func (f *fakeSource) Watched() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, o := range f.objects {
		if len(o.holders) > 0 {
			n++
		}
	}
	return n
}

func (f *fakeSource) holds(ref source.Ref, holder string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.object(ref).holders[holder]
	return ok
}

func (f *fakeSource) watches() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for ref, o := range f.objects {
		for holder := range o.holders {
			all = append(all, fmt.Sprintf("%s for %s", ref, holder))
		}
	}
	slices.Sort(all)
	return all
}

func (f *fakeSource) numberOfGets() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gets
}

func (f *fakeSource) setAfterGet(hook func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.afterGet = hook
}
