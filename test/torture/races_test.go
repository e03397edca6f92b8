// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

var (
	anyPod   = kubelet.Pod{Namespace: namespace, Name: "any", UID: "99999999-1111-4222-8333-444444444444"}
	anyOwner = owned{1000, 1000, 0o400, inLinks(byName)}
)

// raw is a volume whose calls a test makes one by one, against kubelet's rules.
type raw struct {
	h      *harness
	pod    kubelet.Pod
	volume kubelet.Volume
	target string
}

func (h *harness) raw(pod kubelet.Pod, secret string) *raw {
	h.t.Helper()
	v := anyOwner.volume(secret, 1)
	r := &raw{h, pod, v, h.kubelet.Target(pod, v.Name)}
	h.must(os.MkdirAll(filepath.Dir(r.target), 0o750))
	return r
}

func (r *raw) publish(ctx context.Context) error {
	_, err := r.h.driver.NodePublishVolume(ctx, r.h.driver.Request(r.pod, r.volume))
	return err
}

func (r *raw) unpublish(ctx context.Context) error {
	_, err := r.h.driver.NodeUnpublishVolume(ctx,
		&csi.NodeUnpublishVolumeRequest{VolumeId: kubelet.VolumeID(r.pod, r.volume.Name), TargetPath: r.target})
	return err
}

// gone unpublishes the volume, removes kubelet's directories, and checks that nothing is left.
func (r *raw) gone(what string) {
	r.h.t.Helper()
	ctx, cancel := bounded(patience, "unpublish")
	defer cancel()
	if err := r.unpublish(ctx); err != nil {
		r.h.t.Errorf("%s: %v", what, err)
	}
	r.h.must(os.Remove(filepath.Dir(r.target)))
	r.h.must(r.h.driver.RemovePod(r.pod))
	r.h.check(what)
}

// whole checks that the volume is complete, or that nothing of it exists, after abandoned calls have ended.
func (r *raw) whole(what string) {
	r.h.t.Helper()
	testkit.Eventually(r.h.t, patience, what+": the whole volume or nothing of it", func() bool {
		_, err := readVolume(r.target)
		mounts, records := len(testkit.MountsBelow(r.h.t, r.target)), len(r.h.driver.Records())
		return mounts == 0 && records == 0 && errors.Is(err, errNothing) || mounts == 1 && records == 1 && err == nil
	})
}

// idle waits until no call for the volume is under way, because NodeGetVolumeStats waits for other calls.
func (r *raw) idle() {
	r.h.t.Helper()
	_, err := r.h.driver.NodeGetVolumeStats(context.Background(),
		&csi.NodeGetVolumeStatsRequest{VolumeId: kubelet.VolumeID(r.pod, r.volume.Name), VolumePath: r.target})
	if err != nil && status.Code(err) != codes.NotFound {
		r.h.t.Error(err)
	}
}

// publishAgainstUnpublish makes calls for one volume from two callers at once. One of them may give up.
func publishAgainstUnpublish(t *testing.T, c *cluster) {
	h := newHarness(t, c)
	h.set("a")
	r := h.raw(anyPod, "a")
	n, gaveUp := rounds(100, 1000), 0
	for range n {
		var both sync.WaitGroup
		both.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), rand.N(12*time.Millisecond))
			defer cancel()
			switch err := r.publish(ctx); status.Code(err) {
			case codes.OK:
			case codes.DeadlineExceeded, codes.Aborted:
				gaveUp++
			default:
				t.Errorf("publish: %v", err)
			}
		})
		both.Go(func() {
			if err := r.unpublish(context.Background()); err != nil {
				t.Errorf("unpublish: %v", err)
			}
		})
		both.Wait()
		// The call that was given up may still be under way. This call comes after it.
		if err := r.publish(context.Background()); err != nil {
			t.Errorf("publish: %v", err)
		}
		r.whole("after publish")
		if rand.N(2) == 0 {
			if err := r.unpublish(context.Background()); err != nil {
				t.Errorf("unpublish: %v", err)
			}
			r.whole("after unpublish")
		}
		if t.Failed() {
			break
		}
	}
	r.gone("after the race")
	if gaveUp == 0 || gaveUp == n {
		t.Errorf("of %d calls %d were given up: this test is about both kinds", n, gaveUp)
	}
	reliability.Shown(t, "F-13", fmt.Sprintf("%d races, %d calls given up", n, gaveUp))
}

// givenUp lets a caller give up while its publish is at a step. Then kubelet either retries or unpublishes.
func givenUp(t *testing.T, c *cluster) {
	h := newHarness(t, c)
	h.set("a")
	steps := []struct {
		point string
		stays bool
	}{
		{"publish-watching", false}, {"tmpfs-directory-made", false}, {"projector-file-made", false},
		{"record-tmp-made", false}, {"publish-recorded", false}, {"tmpfs-attached", true}, {"publish-done", true},
	}
	for _, step := range steps {
		for _, next := range []string{"publish", "unpublish", "nothing"} {
			what := fmt.Sprintf("given up at %s, then %s", step.point, next)
			r := h.raw(anyPod, "a")
			ctx, cancel := context.WithCancel(context.Background())
			h.arm(step.point, "pause")
			first := make(chan error, 1)
			go func() { first <- r.publish(ctx) }()
			resume := h.paused(step.point)
			cancel()
			if err := <-first; status.Code(err) != codes.Canceled {
				t.Errorf("%s: the caller that gave up is told %v", what, err)
			}
			// The driver learns of the end of the call before this call, which comes later on the same connection.
			if _, err := h.driver.NodeGetInfo(context.Background(), &csi.NodeGetInfoRequest{}); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			second := make(chan error, 1)
			switch next {
			case "publish":
				go func() { second <- r.publish(context.Background()) }()
			case "unpublish":
				go func() { second <- r.unpublish(context.Background()) }()
			default:
				second <- nil
			}
			resume()
			if err := <-second; err != nil {
				t.Errorf("%s: %v", what, err)
			}
			r.idle()
			want := 0
			if next == "publish" || next == "nothing" && step.stays {
				want = 1
			}
			if mounts, records := len(testkit.MountsBelow(t, r.target)), len(h.driver.Records()); mounts != want ||
				records != want {
				t.Errorf("%s: %d mounts and %d records, not %d", what, mounts, records, want)
			}
			_, err := os.Lstat(r.target)
			if exists := err == nil; exists != (want == 1) {
				t.Errorf("%s: the directory: %v", what, err)
			}
			r.whole(what)
			r.gone(what)
		}
	}
	reliability.Shown(t, "F-13", fmt.Sprintf("given up at %d steps, followed by publish, unpublish or nothing",
		len(steps)))
}

// paused waits until the driver is at a point that is armed with pause, and returns the function that ends the pause.
func (h *harness) paused(point string) (resume func()) {
	h.t.Helper()
	path := filepath.Join(h.armed, point+".paused")
	testkit.Eventually(h.t, patience, "the driver to come to "+point, func() bool {
		_, err := os.Lstat(path)
		return err == nil
	})
	return func() { h.must(os.Remove(path)) }
}

// outOfOrder makes calls that kubelet makes only by mistake, or late.
func outOfOrder(t *testing.T, c *cluster) {
	h := newHarness(t, c)
	h.set("a")
	ctx := context.Background()
	r := h.raw(anyPod, "a")
	call := func(what string, want codes.Code, err error) {
		t.Helper()
		if status.Code(err) != want {
			t.Errorf("%s: %v, not %v", what, err, want)
		}
	}
	call("unpublish before publish", codes.OK, r.unpublish(ctx))
	call("publish", codes.OK, r.publish(ctx))
	call("publish again", codes.OK, r.publish(ctx))
	r.whole("after two publishes")
	call("unpublish", codes.OK, r.unpublish(ctx))
	call("unpublish again", codes.OK, r.unpublish(ctx))
	call("publish after unpublish", codes.OK, r.publish(ctx))
	r.whole("after a publish that came after its unpublish")
	r.gone("after its unpublish")
	// The pod and its directories do not exist any more.
	call("publish for a pod that is gone", codes.FailedPrecondition, r.publish(ctx))
	call("unpublish for a pod that is gone", codes.OK, r.unpublish(ctx))
	h.check("after calls for a pod that is gone")
	reliability.Shown(t, "F-36", "8 calls out of order")
}

// allAtOnce publishes the volumes of hundreds of pods at once.
func allAtOnce(t *testing.T, c *cluster) {
	n := rounds(100, 500)
	descriptors := uint64(8 * n) // The driver's own limit, --max-open-files, is 65536.
	for _, objects := range []int{n, 1} {
		h := newHarnessOf(t, c, c.plain)
		h.kubelet.Failed = func(call string, err error) { t.Errorf("%s: %v", call, err) }
		// A call that takes more descriptors fails.
		h.must(unix.Prlimit(h.driver.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: descriptors, Max: descriptors}, nil))
		for i := range objects {
			h.set(fmt.Sprint("many-", i))
		}
		described := 0
		for i := range n {
			if h.want(owners()[i%len(owners())], fmt.Sprint("many-", i%objects)).owned.from == byVolume {
				described++
			}
		}
		before, asked := time.Now(), c.proxy.Asked()
		h.settle("publish all")
		took := time.Since(before)
		h.check("after all were published")
		asked = c.proxy.Asked() - asked
		// There are two requests for each object, one for each pod whose volume describes another one, and two more for an
		// object that the API server's cache does not have yet.
		if most := 2*objects + described + 2; asked > most {
			t.Errorf("%d requests for %d volumes of %d objects, want %d at most", asked, n, objects, most)
		}
		for i := range objects {
			h.set(fmt.Sprint("many-", i))
		}
		h.converge("after all objects changed")
		for range n {
			h.drop()
		}
		h.settle("unpublish all")
		h.check("after all were unpublished")
		reliability.Shown(t, "F-15",
			fmt.Sprintf("%d volumes of %d objects in %v, no call failed, %d requests, at most %d descriptors",
				n, objects, took.Round(10*time.Millisecond), asked, descriptors))
	}
}

// panics makes calls and refreshes panic.
func panics(t *testing.T, c *cluster) {
	h := newHarnessOf(t, c, c.binary, "--log-format=json")
	h.set("a")
	h.set("b") // No other volume watches this object.
	h.want(anyOwner, "a")
	h.settle("publish another volume")
	pid, n := h.driver.PID(), 0
	for _, point := range []string{"publish-watching", "tmpfs-directory-made", "projector-file-made", "publish-recorded",
		"tmpfs-attached", "publish-done"} {
		for _, again := range []bool{true, false} {
			r := h.raw(anyPod, "b")
			h.arm(point, "panic")
			// The code must not mean that nothing is left, because kubelet would not call NodeUnpublishVolume then.
			if err := r.publish(context.Background()); status.Code(err) != codes.Unavailable ||
				!strings.Contains(err.Error(), "has a bug") {
				t.Errorf("publish that panicked at %s: %v", point, err)
			}
			if again {
				if err := r.publish(context.Background()); err != nil {
					t.Errorf("publish after a panic at %s: %v", point, err)
				}
				h.set("a")
				h.set("b")
				h.converge("the other volume after a panic at " + point)
				testkit.Eventually(t, patience, "a refresh of the volume that panicked at "+point, func() bool {
					version, err := readVolume(r.target)
					return err == nil && version == h.versions["b"]
				})
			}
			r.gone("after a panic at " + point)
			n++
		}
	}
	h.want(anOwner(form{byName, attributes.LayoutInPlace}), "a")
	h.settle("publish a volume of plain files")
	for _, point := range []string{"refresh-cloned", "projector-generation-written", "projector-data-tmp-made",
		"projector-data-renamed", "projector-staged", "projector-pending", "projector-file-taken",
		"projector-half-overwritten", "refresh-done"} {
		h.arm(point, "panic")
		h.set("a")
		h.converge("after a panic at " + point)
		testkit.Eventually(t, patience, "a panic at "+point, func() bool {
			_, err := os.Lstat(filepath.Join(h.armed, point))
			return err != nil
		})
		h.check("after a panic at " + point)
		n++
	}
	if h.driver.PID() != pid || h.deaths > 0 {
		t.Error("the driver died")
	}
	h.drop()
	h.drop()
	h.settle("unpublish the volumes")
	h.driver.Stop()
	stacks := 0
	for _, line := range testkit.JSONLines(t, h.driver.Log()) {
		if line["stack"] != nil {
			stacks++
		}
	}
	if stacks != n {
		t.Errorf("%d lines of the log have a stack, after %d panics", stacks, n)
	}
	reliability.Shown(t, "F-30", fmt.Sprintf("%d panics in calls and refreshes", n))
}

// slowRecords makes the disk of the records slow for one volume.
func slowRecords(t *testing.T, c *cluster) {
	h := newHarness(t, c)
	h.set("a")
	h.want(anyOwner, "a")
	h.settle("publish another volume")
	const point = "record-tmp-made"
	r := h.raw(anyPod, "a")
	h.arm(point, "pause")
	done := make(chan error, 1)
	go func() { done <- r.publish(context.Background()) }()
	resume := h.paused(point)
	before := time.Now()
	h.want(owners()[1], "a")
	h.settle("publish a volume meanwhile")
	h.set("a")
	h.converge("refresh meanwhile")
	h.drop()
	h.settle("unpublish meanwhile")
	meanwhile := time.Since(before)
	select {
	case err := <-done:
		t.Errorf("the slow publish did not wait for its record: %v", err)
	default:
		resume()
		if err := <-done; err != nil {
			t.Errorf("the slow publish: %v", err)
		}
	}
	r.gone("after a slow publish")

	r = h.raw(anyPod, "a")
	h.arm(point, "pause")
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	go func() { done <- r.publish(ctx) }()
	resume = h.paused(point)
	if err := <-done; status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a publish that took too long: %v", err)
	}
	// An answer on the same connection shows that the driver knows of the end of the call.
	if _, err := h.driver.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{}); err != nil {
		t.Error(err)
	}
	resume()
	testkit.Eventually(t, patience, "the roll-back of a publish that took too long", func() bool {
		_, err := os.Lstat(r.target)
		return len(h.driver.Records()) == 1 && errors.Is(err, os.ErrNotExist)
	})
	r.gone("after a publish that took too long")
	h.drop()
	h.settle("unpublish the last volume")
	reliability.Shown(t, "F-17", fmt.Sprintf("publish, refresh and unpublish of others in %v while one record could not "+
		"be written", meanwhile.Round(time.Millisecond)))
}

// removedBeforeTheWatch deletes an object after the driver has read it, before the driver watches the object again.
func removedBeforeTheWatch(t *testing.T, c *cluster) {
	const point = "source-before-watch"
	h := newHarness(t, c)
	h.set("a")
	h.want(anyOwner, "a")
	h.settle("publish a volume")
	n := rounds(3, 6) // Each cut makes the driver's pause longer.
	for range n {
		h.arm(point, "pause")
		c.cut()
		resume := h.paused(point)
		c.delete("a")
		resume()
		testkit.Eventually(t, patience, "the driver to notice that the Secret is gone", func() bool {
			return strings.Contains(h.driver.Status(), "not found")
		})
		if version, err := readVolume(h.target(h.volumes[0])); err != nil || version != h.versions["a"] {
			t.Errorf("the files of a Secret that is gone: version %d, %v", version, err)
		}
		h.set("a")
		h.converge("after the Secret was made anew")
	}
	h.drop()
	h.settle("unpublish it")
	reliability.Shown(t, "F-34", fmt.Sprintf("%d removals noticed", n))
}

// twoInstances starts a second driver beside the first.
func twoInstances(t *testing.T, c *cluster) {
	h := newHarness(t, c)
	h.set("a")
	h.want(anyOwner, "a")
	h.settle("publish a volume")
	second := func(state string) *exec.Cmd {
		return exec.CommandContext(t.Context(), c.binary, "node", "--node-name=node-1", "--kubelet-root="+h.driver.Root,
			"--state-dir="+state,
			"--access=service-account", "--kubeconfig="+c.kubeconfig)
	}
	out, err := second(h.driver.State).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another driver is running with "+h.driver.State) {
		t.Errorf("the second driver says %v:\n%s", err, out)
	}
	h.set("a")
	h.converge("the first driver goes on")
	h.check("after a second driver")

	// With records of its own, the second driver takes over the sockets. The end of the first one leaves them.
	next := second(filepath.Join(t.TempDir(), "state"))
	socket := filepath.Join(h.driver.Root, "plugins", "fsuser.csi.io", "csi.sock")
	before, err := os.Stat(socket)
	h.must(err)
	h.must(next.Start())
	testkit.Eventually(t, patience, "the next driver's socket", func() bool {
		now, err := os.Stat(socket)
		return err == nil && !os.SameFile(before, now)
	})
	h.driver.Stop()
	h.drop()
	ctx, cancel := bounded(patience, "the next driver unpublishes")
	defer cancel()
	h.must(h.kubelet.Settle(ctx))
	h.must(next.Process.Signal(os.Interrupt))
	if err := next.Wait(); err != nil {
		t.Errorf("the next driver ended with %v", err)
	}
	h.driver.StartAgain() // It drops the record of the volume that the other driver unpublished.
	h.check("after both")
	reliability.Shown(t, "F-24", "the second ends; a socket that was taken over outlives the first")
}

// otherVersions starts the driver with records of another version.
func otherVersions(t *testing.T, c *cluster) {
	h := newHarness(t, c)
	h.set("a")
	ours := regexp.MustCompile(`^{"version":[0-9]+,`)
	for _, version := range []int{1, 2, 99} {
		h.want(anyOwner, "a")
		h.want(owners()[1], "a")
		h.settle("publish volumes")
		h.driver.Stop()
		written := map[string]string{}
		for _, name := range h.driver.Records() {
			path := filepath.Join(h.driver.State, name)
			b, err := os.ReadFile(path)
			h.must(err)
			written[path] = ours.ReplaceAllString(string(b), fmt.Sprintf(`{"version":%d,"field":{},`, version))
			if written[path] == string(b) {
				t.Fatalf("a record that does not begin with its version: %s", b)
			}
			h.must(os.WriteFile(path, []byte(written[path]), 0o600))
		}
		h.driver.StartAgain()
		for path, text := range written {
			if b, err := os.ReadFile(path); err != nil || string(b) != text {
				t.Errorf("a record of version %d was touched: %v", version, err)
			}
		}
		// One volume is unpublished before kubelet republishes it, and the other one afterwards.
		h.drop()
		h.must(h.kubelet.Restart())
		ctx, cancel := bounded(patience, "unpublish and publish again")
		defer cancel()
		h.must(h.kubelet.Settle(ctx))
		h.set("a")
		h.converge("after a record of another version")
		h.check("after a record of another version")
		h.drop()
		h.settle("unpublish the other")
		h.check("at the end")
	}
	reliability.Shown(t, "F-21", "records of versions 1, 2 and 99")
}
