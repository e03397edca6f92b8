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
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

// patience is the longest wait. The events take milliseconds, and a restart of the driver some hundred.
const patience = 30 * time.Second

// harness is a node: a driver that may be killed at any time, the kubelet that restarts it, volumes, and their readers.
type harness struct {
	t       testing.TB
	cluster *cluster
	driver  *testkit.Driver
	kubelet *kubelet.VolumeManager
	// armed is the directory of armed failpoints.
	armed string
	// versions are the current versions of the objects.
	versions map[string]int
	volumes  []mounted
	pods     int
	// deaths is the number of kills of the driver, and deathsWith the number of kills while a volume of a form existed.
	deaths     int
	deathsWith map[form]int
	// disturbed counts the disturbances.
	disturbed [disturbances]int
	// killAt is the time of the next kill. Zero means no kill.
	killAt time.Time
	// failing means that a step is made to fail.
	failing bool
	// unsettled has the UIDs of pods whose volumes do not show the current version of their objects in a disturbance.
	unsettled map[string]bool
	// restarting is held while a process of the driver is replaced by the next one.
	restarting sync.Mutex
}

// mounted is a volume of a pod.
type mounted struct {
	pod    kubelet.Pod
	owned  owned
	object string
}

// name returns the name of the volume.
func (m mounted) name() string { return m.owned.volume(m.object, 1).Name }

func newHarness(t testing.TB, c *cluster) *harness {
	t.Helper()
	return newHarnessOf(t, c, c.binary)
}

func newHarnessOf(t testing.TB, c *cluster, binary string, args ...string) *harness {
	t.Helper()
	h := &harness{t: t, cluster: c, armed: t.TempDir(), versions: map[string]int{}, unsettled: map[string]bool{},
		deathsWith: map[form]int{}}
	args = append([]string{"--access=" + c.access, "--kubeconfig=" + c.kubeconfig, "--collect-interval=50ms"}, args...)
	h.driver = testkit.StartDriver(t, binary, args...)
	// The first process must not be killed during its start, so the next processes get the points.
	h.driver.Env = []string{"FSUSER_FAILPOINTS=" + h.armed, "GORACE=atexit_sleep_ms=0"}
	h.driver.Kill()
	h.driver.StartAgain()
	h.kubelet = kubelet.NewVolumeManager(h.driver.Root,
		filepath.Join(h.driver.Root, "plugins", "fsuser.csi.io", "csi.sock"))
	h.kubelet.Failed = func(call string, err error) {
		// No pod may get the error that its request is invalid or its volume unknown, whatever happens to the driver.
		switch status.Code(err) {
		case codes.Unavailable, codes.Aborted, codes.Canceled, codes.DeadlineExceeded:
		default:
			if !strings.Contains(err.Error(), "failpoint") {
				t.Errorf("%s failed for good: %v", call, err)
			}
		}
	}
	return h
}

// arm sets the action of the next process that reaches a point.
func (h *harness) arm(point, action string) {
	h.t.Helper()
	tmp := filepath.Join(h.armed, ".tmp")
	if err := os.WriteFile(tmp, []byte(action), 0o600); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(h.armed, point)); err != nil {
		h.t.Fatal(err)
	}
}

// disarm reports whether the point has fired, and disarms it if it has not.
func (h *harness) disarm(point string) (fired bool) {
	h.t.Helper()
	err := os.Remove(filepath.Join(h.armed, point))
	if err != nil && !os.IsNotExist(err) {
		h.t.Fatal(err)
	}
	return err != nil
}

// set gives an object its next version. For volumes with nodePublishSecretRef, kubelet sends the new content with the
// next republish. converge and settle wait for that.
func (h *harness) set(object string) {
	h.versions[object]++
	h.cluster.set(object, h.versions[object])
	for _, m := range h.volumes {
		if m.object == object && m.owned.from == byRequest {
			h.kubelet.Push(m.pod, m.name(), data(h.versions[object]))
		}
	}
}

// want adds a pod with a volume. It creates the pod in the API server if the driver reads the pod, or if the driver's
// rights depend on it.
func (h *harness) want(o owned, object string) mounted {
	h.t.Helper()
	h.pods++
	m := mounted{kubelet.Pod{Namespace: h.cluster.namespace, Name: fmt.Sprint("pod-", h.pods),
		UID: fmt.Sprintf("%08d-1111-4222-8333-444444444444", h.pods)}, o, object}
	v := o.volume(object, h.versions[object])
	if h.exists(m) {
		pod := nodeaccess.Pod(m.pod.Name, v)
		if o.from == byVolume {
			pod = nodeaccess.Pod(m.pod.Name, v, describes(object))
		}
		var err error
		m.pod, err = nodeaccess.CreatePod(context.Background(), h.cluster.client, m.pod.Namespace, pod)
		h.must(err)
	}
	h.volumes = append(h.volumes, m)
	h.kubelet.Want(m.pod, v)
	return m
}

// wantNext adds a pod with a volume of the same form as the oldest one, which can be removed then: a volume of each
// form stays.
func (h *harness) wantNext(object string) mounted {
	h.t.Helper()
	return h.want(anOwner(h.volumes[0].owned.form), object)
}

// drop removes the oldest pod.
func (h *harness) drop() {
	h.t.Helper()
	h.dropPod(h.volumes[0])
}

// dropPod removes a pod. The driver's right may end before the pod's volume does.
func (h *harness) dropPod(m mounted) {
	h.t.Helper()
	h.removePod(m)
	h.kubelet.Drop(m.pod, m.name())
}

// removePod removes a pod from the expected pods, and from the API server.
func (h *harness) removePod(m mounted) {
	h.t.Helper()
	h.volumes = slices.DeleteFunc(h.volumes, func(other mounted) bool { return other == m })
	if h.exists(m) {
		h.must(nodeaccess.DeletePod(context.Background(), h.cluster.client, m.pod.Namespace, m.pod.Name))
	}
}

// exists reports whether the API server has the pod of a volume. With nodePublishSecretRef, the pod is not required.
func (h *harness) exists(m mounted) bool {
	return m.owned.from == byVolume || m.owned.from == byName && h.cluster.access == "node"
}

func (h *harness) target(m mounted) string { return h.kubelet.Target(m.pod, m.name()) }

// during calls f and restarts the driver when it dies. Then it calls f again, because a call to a process that was
// killed during a stall is answered only after the stall. Kubelet would give up such a call after two minutes.
func (h *harness) during(what string, f func(context.Context) error) {
	h.t.Helper()
	ctx, cancel := bounded(patience, what)
	defer cancel()
	for {
		attempt, giveUp := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- f(attempt) }()
		err, died := h.until(done)
		giveUp()
		if died {
			<-done
			continue
		}
		if err != nil {
			h.t.Fatalf("%s: %v", what, err)
		}
		return
	}
}

// until waits for done, or until the driver dies during a stall. It restarts a driver that dies.
func (h *harness) until(done <-chan error) (err error, died bool) {
	h.t.Helper()
	for {
		select {
		case err := <-done:
			return err, false
		case <-time.After(time.Millisecond):
		}
		switch {
		case !h.killAt.IsZero() && time.Now().After(h.killAt):
			h.killAt = time.Time{}
			h.restart(h.driver.Kill)
		case h.driver.Dead():
			h.restart(h.driver.Bury)
		default:
			continue
		}
		if h.driver.Stalled {
			return nil, true
		}
	}
}

// restart calls end and starts the driver again.
func (h *harness) restart(end func()) {
	h.t.Helper()
	h.restarting.Lock()
	defer h.restarting.Unlock()
	end()
	h.died()
	h.start()
}

// died counts a death.
func (h *harness) died() {
	h.deaths++
	there := map[form]bool{}
	for _, m := range h.volumes {
		there[m.owned.form] = true
	}
	for form := range there {
		h.deathsWith[form]++
	}
}

// start tries to start the driver until it succeeds.
func (h *harness) start() {
	h.t.Helper()
	for attempt := 0; ; attempt++ {
		err := h.driver.TryStart()
		if err == nil {
			return
		}
		// The driver is killed once at each failpoint. After more attempts, it does not start at all.
		if attempt == 10 {
			h.t.Fatal(err)
		}
		h.died()
	}
}

// settle makes kubelet do its pending work.
func (h *harness) settle(what string) {
	h.t.Helper()
	h.during(what, h.kubelet.Settle)
}

// converge waits until all volumes except the unsettled ones show the current version of their objects.
func (h *harness) converge(what string) {
	h.t.Helper()
	h.during(what, func(ctx context.Context) error {
		if err := h.kubelet.Settle(ctx); err != nil {
			return err
		}
		for _, m := range h.volumes {
			if h.unsettled[m.pod.UID] {
				continue
			}
			if err := h.awaitPresent(ctx, m); err != nil {
				return err
			}
		}
		return nil
	})
}

// awaitPresent waits until a volume shows the current version of its object. The driver answers a publish before it has
// written the files, so the content of nodePublishSecretRef may be lost with the process. Kubelet, which republishes
// all volumes every minute or two, sends it again.
func (h *harness) awaitPresent(ctx context.Context, m mounted) error {
	present := h.versions[m.object]
	for {
		version, err := readVolume(h.target(m))
		if err == nil && version == present {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w; volume %s of %s shows version %d of %s, not %d (%v)",
				context.Cause(ctx), m.name(), m.pod.Name, version, m.object, present, err)
		}
		if m.owned.from == byRequest {
			h.kubelet.Push(m.pod, m.name(), data(present))
			if err := h.kubelet.Settle(ctx); err != nil {
				return err
			}
		}
	}
}

// check fails the test unless the machine has exactly what the volumes require. It waits for parts that are about to be
// removed.
func (h *harness) check(what string) {
	h.t.Helper()
	h.during(what, func(context.Context) error {
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			wrong := h.leftovers()
			if len(wrong) == 0 {
				return nil
			}
			if time.Now().After(deadline) {
				return errors.New(strings.Join(wrong, "\n"))
			}
		}
	})
}

func (h *harness) leftovers() (wrong []string) {
	h.restarting.Lock()
	defer h.restarting.Unlock()
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	mounts := testkit.MountsBelow(h.t, filepath.Join(h.driver.Root, "pods"))
	if len(mounts) != len(h.volumes) {
		add("there are %d mounts, not %d: %q", len(mounts), len(h.volumes), mounts)
	}
	for _, line := range mounts {
		if !strings.Contains(line, "ro,nosuid,nodev,noexec") {
			add("a mount is not read-only, nosuid, nodev and noexec: %s", line)
		}
	}
	if records := h.driver.Records(); len(records) != len(h.volumes) {
		add("there are %d records, not %d: %q", len(records), len(h.volumes), records)
	}
	objects := map[string]bool{}
	var uids []string
	for _, m := range h.volumes {
		if m.owned.from != byRequest {
			objects[m.object] = true
		}
		uids = append(uids, m.pod.UID)
		wrong = append(wrong, h.names(m)...)
	}
	for metric, want := range map[string]int{"fsuser_watched_objects": len(objects), "fsuser_volumes": len(h.volumes)} {
		if n, err := h.driver.TryMetric(metric); err != nil || int(n) != want {
			add("%s is %v, not %d (%v)", metric, n, want, err)
		}
	}
	slices.Sort(uids)
	for dir, want := range map[string][]string{
		"pods": uids, "plugins/fsuser.csi.io": {"csi.sock"}, "plugins_registry": {"fsuser.csi.io-reg.sock"},
	} {
		if got, err := list(filepath.Join(h.driver.Root, dir)); err != nil || !slices.Equal(got, want) {
			add("%s has %q, not %q (%v)", dir, got, want, err)
		}
	}
	held, err := heldBy(h.driver.PID())
	if err != nil {
		add("look at the driver's descriptors: %v", err)
	}
	for _, fd := range held {
		add("the driver holds %s", fd)
	}
	return wrong
}

// names returns the problems with the names in a volume.
func (h *harness) names(m mounted) (wrong []string) {
	target, want := h.target(m), m.owned.files(h.versions[m.object])
	if m.owned.layout == attributes.LayoutLinks {
		generation, err := os.Readlink(filepath.Join(target, "..data"))
		if err != nil {
			return []string{err.Error()}
		}
		want = append(want, "..data", generation)
	}
	slices.Sort(want)
	if got, err := list(target); err != nil || !slices.Equal(got, want) {
		wrong = append(wrong, fmt.Sprintf("volume %s of %s has %q, not %q (%v)", m.name(), m.pod.Name, got, want, err))
	}
	want = []string{"mount", "vol_data.json"}
	if got, err := list(filepath.Dir(target)); err != nil || !slices.Equal(got, want) {
		wrong = append(wrong, fmt.Sprintf("the directory of volume %s of %s has %q, not %q (%v)", m.name(), m.pod.Name, got,
			want, err))
	}
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil || st.Uid != m.owned.uid || st.Gid != m.owned.gid ||
		st.Mode != unix.S_IFDIR|0o755 {
		wrong = append(wrong, fmt.Sprintf("the root of volume %s is %d:%d %#o, %v", m.name(), st.Uid, st.Gid, st.Mode, err))
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

// heldBy returns the descriptors that an idle driver must not have: files and directories other than its log and its
// lock, and forgotten mounts. The path of a detached mount is "/".
func heldBy(pid int) (held []string, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	descriptors, err := list(dir)
	for _, fd := range descriptors {
		to, err := os.Readlink(filepath.Join(dir, fd))
		switch {
		case err != nil: // closed in the meantime
		case strings.HasPrefix(to, "/dev/"), strings.HasPrefix(to, "/sys/fs/cgroup/"), // the latter belong to Go's runtime
			strings.HasSuffix(to, "/lock"), strings.HasSuffix(to, "/driver.log"):
		case strings.HasPrefix(to, "/"), strings.Contains(to, "fscontext"):
			held = append(held, fd+" -> "+to)
		}
	}
	return held, err
}
