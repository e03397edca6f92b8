// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

// patience bounds the wait for anything. What is waited for takes milliseconds, a restart of the driver some hundred.
const patience = 30 * time.Second

// world is a node: a driver that may be killed at any time, the kubelet that starts it again, volumes, and readers of them.
type world struct {
	t       testing.TB
	cluster *cluster
	driver  *testkit.Driver
	kubelet *kubelet.VolumeManager
	// armed is the directory of armed failpoints.
	armed string
	// versions are those of the objects.
	versions map[string]int
	volumes  []mounted
	pods     int
	// deaths are how often the driver was killed.
	deaths int
	// killAt is when to kill it. Zero: not at all.
	killAt time.Time
	// failing: a step is made to fail.
	failing bool
	// restarting is held while one process of the driver is replaced by the next.
	restarting sync.Mutex
}

// mounted is a volume that a pod wants.
type mounted struct {
	pod    kubelet.Pod
	owned  owned
	object string
}

func (m mounted) volume() kubelet.Volume { return m.owned.volume(m.object) }

func newWorld(t testing.TB, c *cluster) *world {
	t.Helper()
	return newWorldOf(t, c, c.binary)
}

func newWorldOf(t testing.TB, c *cluster, binary string) *world {
	t.Helper()
	w := &world{t: t, cluster: c, armed: t.TempDir(), versions: map[string]int{}}
	w.driver = testkit.StartDriver(t, binary, "--access="+c.access, "--kubeconfig="+c.kubeconfig, "--collect-interval=50ms")
	// The first process is not to be killed at its start: the points are given to the next.
	w.driver.Env = []string{"FSUSER_FAILPOINTS=" + w.armed, "GORACE=atexit_sleep_ms=0"}
	w.driver.Kill()
	w.driver.StartAgain()
	w.kubelet = kubelet.NewVolumeManager(w.driver.Root, filepath.Join(w.driver.Root, "plugins", "fsuser.csi.io", "csi.sock"))
	w.kubelet.Failed = func(call string, err error) {
		// Whatever happens to the driver, no pod may be told that its request is wrong, or its volume unknown.
		switch status.Code(err) {
		case codes.Unavailable, codes.Aborted, codes.Canceled, codes.DeadlineExceeded:
		default:
			if !strings.Contains(err.Error(), "failpoint") {
				t.Errorf("%s failed for good: %v", call, err)
			}
		}
	}
	return w
}

// arm has the next process that gets to a point do something there.
func (w *world) arm(point, action string) {
	w.t.Helper()
	tmp := filepath.Join(w.armed, ".tmp")
	if err := os.WriteFile(tmp, []byte(action), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(w.armed, point)); err != nil {
		w.t.Fatal(err)
	}
}

// disarm reports whether the point has fired, and takes it back if not.
func (w *world) disarm(point string) (fired bool) {
	w.t.Helper()
	err := os.Remove(filepath.Join(w.armed, point))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	return err != nil
}

// set gives an object its next version.
func (w *world) set(object string) {
	w.versions[object]++
	w.cluster.set(object, w.versions[object])
}

// want adds a pod with a volume. The API server knows it if the driver's rights depend on that.
func (w *world) want(o owned, object string) mounted {
	w.t.Helper()
	w.pods++
	m := mounted{kubelet.Pod{Namespace: w.cluster.namespace, Name: fmt.Sprint("pod-", w.pods), UID: fmt.Sprintf("%08d-1111-4222-8333-444444444444", w.pods)}, o, object}
	if w.cluster.access == "node" {
		var err error
		m.pod, err = nodeaccess.CreatePod(context.Background(), w.cluster.client, m.pod.Namespace, m.pod.Name, m.volume())
		w.must(err)
	}
	w.volumes = append(w.volumes, m)
	w.kubelet.Want(m.pod, m.volume())
	return m
}

// drop takes the oldest pod away. The driver's right may end before its volume does.
func (w *world) drop() {
	w.t.Helper()
	m := w.removePod()
	w.kubelet.Drop(m.pod, m.volume().Name)
}

// removePod removes the oldest pod from what should be there, and from the API server.
func (w *world) removePod() mounted {
	w.t.Helper()
	m := w.volumes[0]
	w.volumes = w.volumes[1:]
	if w.cluster.access == "node" {
		w.must(nodeaccess.DeletePod(context.Background(), w.cluster.client, m.pod.Namespace, m.pod.Name))
	}
	return m
}

func (w *world) target(m mounted) string { return w.kubelet.Target(m.pod, m.volume().Name) }

// during does f while it keeps the driver alive: one that dies is started again.
func (w *world) during(what string, f func(context.Context) error) {
	w.t.Helper()
	ctx, cancel := bounded(patience, what)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	for {
		var kill <-chan time.Time
		if !w.killAt.IsZero() {
			kill = time.After(time.Until(w.killAt))
		}
		select {
		case <-kill:
			w.killAt = time.Time{}
			w.restart(w.driver.Kill)
		case err := <-done:
			if err != nil {
				w.t.Fatalf("%s: %v", what, err)
			}
			return
		case <-w.driver.Ended():
			w.restart(w.driver.Bury)
		}
	}
}

// restart starts the driver again after end.
func (w *world) restart(end func()) {
	w.t.Helper()
	w.restarting.Lock()
	defer w.restarting.Unlock()
	end()
	w.deaths++
	w.start()
}

// start starts the driver as often as it takes.
func (w *world) start() {
	w.t.Helper()
	for attempt := 0; ; attempt++ {
		err := w.driver.TryStart()
		if err == nil {
			return
		}
		// It is killed at each failpoint once. More is a driver that does not start.
		if attempt == 10 {
			w.t.Fatal(err)
		}
		w.deaths++
	}
}

// settle has kubelet do what it has to.
func (w *world) settle(what string) {
	w.t.Helper()
	w.during(what, w.kubelet.Settle)
}

// converge waits until all volumes show the present version of their objects.
func (w *world) converge(what string) {
	w.t.Helper()
	w.during(what, func(ctx context.Context) error {
		for _, m := range w.volumes {
			for {
				version, err := readVolume(w.target(m))
				if err == nil && version == w.versions[m.object] {
					break
				}
				select {
				case <-time.After(time.Millisecond):
				case <-ctx.Done():
					return fmt.Errorf("%w; volume %s of %s shows version %d of %s, not %d (%v)", context.Cause(ctx), m.volume().Name, m.pod.Name, version, m.object,
						w.versions[m.object], err)
				}
			}
		}
		return nil
	})
}

// check fails the test unless the machine has what the volumes need, and nothing else. Some of it may be about to go.
func (w *world) check(what string) {
	w.t.Helper()
	w.during(what, func(context.Context) error {
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			wrong := w.leftovers()
			if len(wrong) == 0 {
				return nil
			}
			if time.Now().After(deadline) {
				return errors.New(strings.Join(wrong, "\n"))
			}
		}
	})
}

func (w *world) leftovers() (wrong []string) {
	w.restarting.Lock()
	defer w.restarting.Unlock()
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	mounts := testkit.MountsBelow(w.t, filepath.Join(w.driver.Root, "pods"))
	if len(mounts) != len(w.volumes) {
		add("there are %d mounts, not %d: %q", len(mounts), len(w.volumes), mounts)
	}
	for _, line := range mounts {
		if !strings.Contains(line, "ro,nosuid,nodev,noexec") {
			add("a mount is not read-only, nosuid, nodev and noexec: %s", line)
		}
	}
	if records := w.driver.Records(); len(records) != len(w.volumes) {
		add("there are %d records, not %d: %q", len(records), len(w.volumes), records)
	}
	objects := map[string]bool{}
	var uids []string
	for _, m := range w.volumes {
		objects[m.object] = true
		uids = append(uids, m.pod.UID)
		wrong = append(wrong, w.layout(m)...)
	}
	for metric, want := range map[string]int{"fsuser_watched_objects": len(objects), "fsuser_volumes": len(w.volumes)} {
		if n, err := w.driver.TryMetric(metric); err != nil || int(n) != want {
			add("%s is %v, not %d (%v)", metric, n, want, err)
		}
	}
	slices.Sort(uids)
	for dir, want := range map[string][]string{
		"pods": uids, "plugins/fsuser.csi.io": {"csi.sock"}, "plugins_registry": {"fsuser.csi.io-reg.sock"},
	} {
		if got, err := list(filepath.Join(w.driver.Root, dir)); err != nil || !slices.Equal(got, want) {
			add("%s has %q, not %q (%v)", dir, got, want, err)
		}
	}
	held, err := heldBy(w.driver.PID())
	if err != nil {
		add("look at the driver's descriptors: %v", err)
	}
	for _, fd := range held {
		add("the driver holds %s", fd)
	}
	return wrong
}

// layout tells what is wrong with the names in a volume.
func (w *world) layout(m mounted) (wrong []string) {
	target := w.target(m)
	generation, err := os.Readlink(filepath.Join(target, "..data"))
	if err != nil {
		return []string{err.Error()}
	}
	want := append([]string{"..data", generation}, m.owned.files(w.versions[m.object])...)
	slices.Sort(want)
	if got, err := list(target); err != nil || !slices.Equal(got, want) {
		wrong = append(wrong, fmt.Sprintf("volume %s of %s has %q, not %q (%v)", m.volume().Name, m.pod.Name, got, want, err))
	}
	want = []string{"mount", "vol_data.json"}
	if got, err := list(filepath.Dir(target)); err != nil || !slices.Equal(got, want) {
		wrong = append(wrong, fmt.Sprintf("the directory of volume %s of %s has %q, not %q (%v)", m.volume().Name, m.pod.Name, got, want, err))
	}
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil || st.Uid != m.owned.uid || st.Gid != m.owned.gid || st.Mode != unix.S_IFDIR|0o755 {
		wrong = append(wrong, fmt.Sprintf("the root of volume %s is %d:%d %#o, %v", m.volume().Name, st.Uid, st.Gid, st.Mode, err))
	}
	return wrong
}

func list(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// heldBy are the descriptors of an idle driver that it should not have: files and directories other than its log and its lock, and mounts
// that were made and forgotten. A detached mount's path is "/".
func heldBy(pid int) (held []string, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	descriptors, err := list(dir)
	for _, fd := range descriptors {
		to, err := os.Readlink(filepath.Join(dir, fd))
		switch {
		case err != nil: // closed meanwhile
		case strings.HasPrefix(to, "/dev/"), strings.HasPrefix(to, "/sys/fs/cgroup/"), // the latter are Go's
			strings.HasSuffix(to, "/lock"), strings.HasSuffix(to, "/driver.log"):
		case strings.HasPrefix(to, "/"), strings.Contains(to, "fscontext"):
			held = append(held, fd+" -> "+to)
		}
	}
	return held, err
}
