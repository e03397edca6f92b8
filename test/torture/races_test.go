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
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/reliability"
)

var (
	anyPod   = kubelet.Pod{Namespace: namespace, Name: "any", UID: "99999999-1111-4222-8333-444444444444"}
	anyOwner = owned{1000, 1000, 0o400, false}
)

// raw is a volume whose calls a test makes one by one, against kubelet's rules.
type raw struct {
	w      *world
	pod    kubelet.Pod
	volume kubelet.Volume
	target string
}

func (w *world) raw(pod kubelet.Pod, secret string) *raw {
	w.t.Helper()
	v := anyOwner.volume(secret)
	r := &raw{w, pod, v, w.kubelet.Target(pod, v.Name)}
	w.must(os.MkdirAll(filepath.Dir(r.target), 0o750))
	return r
}

func (r *raw) publish(ctx context.Context) error {
	_, err := r.w.driver.NodePublishVolume(ctx, r.w.driver.Request(r.pod, r.volume))
	return err
}

func (r *raw) unpublish(ctx context.Context) error {
	_, err := r.w.driver.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: kubelet.VolumeID(r.pod, r.volume.Name), TargetPath: r.target})
	return err
}

// gone unpublishes the volume, removes kubelet's directories, and checks that nothing is left.
func (r *raw) gone(what string) {
	r.w.t.Helper()
	ctx, cancel := bounded(patience, "unpublish")
	defer cancel()
	if err := r.unpublish(ctx); err != nil {
		r.w.t.Errorf("%s: %v", what, err)
	}
	r.w.must(os.Remove(filepath.Dir(r.target)))
	r.w.must(r.w.driver.RemovePod(r.pod))
	r.w.check(what)
}

// whole checks that the volume is there with all that belongs to it, or that nothing is, as soon as calls that were given up have ended.
func (r *raw) whole(what string) {
	r.w.t.Helper()
	testkit.Eventually(r.w.t, patience, what+": the whole volume or nothing of it", func() bool {
		_, err := readVolume(r.target)
		mounts, records := len(testkit.MountsBelow(r.w.t, r.target)), len(r.w.driver.Records())
		return mounts == 0 && records == 0 && errors.Is(err, errNothing) || mounts == 1 && records == 1 && err == nil
	})
}

// idle waits until no call for the volume is under way: NodeGetVolumeStats takes its turn.
func (r *raw) idle() {
	r.w.t.Helper()
	_, err := r.w.driver.NodeGetVolumeStats(context.Background(),
		&csi.NodeGetVolumeStatsRequest{VolumeId: kubelet.VolumeID(r.pod, r.volume.Name), VolumePath: r.target})
	if err != nil && status.Code(err) != codes.NotFound {
		r.w.t.Error(err)
	}
}

// publishAgainstUnpublish has two callers call for one volume at once, one of whom may give up.
func publishAgainstUnpublish(t *testing.T, c *cluster) {
	w := newWorld(t, c)
	w.set("a")
	r := w.raw(anyPod, "a")
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
		// One that gave up may still be at work. This call comes after it.
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

// givenUp has a caller give up while its publish is at a step, and then kubelet either try again or unpublish.
func givenUp(t *testing.T, c *cluster) {
	w := newWorld(t, c)
	w.set("a")
	steps := []struct {
		point string
		stays bool
	}{
		{"publish-watching", false}, {"tmpfs-directory-made", false}, {"projector-file-made", false}, {"publish-built", false},
		{"record-tmp-made", false}, {"publish-recorded", false}, {"tmpfs-attached", true}, {"publish-done", true},
	}
	for _, step := range steps {
		for _, next := range []string{"publish", "unpublish", "nothing"} {
			what := fmt.Sprintf("given up at %s, then %s", step.point, next)
			r := w.raw(anyPod, "a")
			ctx, cancel := context.WithCancel(context.Background())
			w.arm(step.point, "pause")
			first := make(chan error, 1)
			go func() { first <- r.publish(ctx) }()
			resume := w.paused(step.point)
			cancel()
			if err := <-first; status.Code(err) != codes.Canceled {
				t.Errorf("%s: the caller that gave up is told %v", what, err)
			}
			// The driver learns of it before it gets this call, which comes after it on the same connection.
			if _, err := w.driver.NodeGetInfo(context.Background(), &csi.NodeGetInfoRequest{}); err != nil {
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
			if mounts, records := len(testkit.MountsBelow(t, r.target)), len(w.driver.Records()); mounts != want || records != want {
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
	reliability.Shown(t, "F-13", fmt.Sprintf("given up at %d steps, followed by publish, unpublish or nothing", len(steps)))
}

// paused waits until the driver is at a point that is armed with pause, and returns what lets it go on.
func (w *world) paused(point string) (resume func()) {
	w.t.Helper()
	path := filepath.Join(w.armed, point+".paused")
	testkit.Eventually(w.t, patience, "the driver to come to "+point, func() bool {
		_, err := os.Lstat(path)
		return err == nil
	})
	return func() { w.must(os.Remove(path)) }
}

// outOfOrder makes calls that kubelet makes only by mistake, or late.
func outOfOrder(t *testing.T, c *cluster) {
	w := newWorld(t, c)
	w.set("a")
	ctx := context.Background()
	r := w.raw(anyPod, "a")
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
	// The pod is gone, and its directories.
	call("publish for a pod that is gone", codes.FailedPrecondition, r.publish(ctx))
	call("unpublish for a pod that is gone", codes.OK, r.unpublish(ctx))
	w.check("after calls for a pod that is gone")
	reliability.Shown(t, "F-36", "8 calls out of order")
}

// allAtOnce has hundreds of pods arrive at once.
func allAtOnce(t *testing.T, c *cluster) {
	n := rounds(100, 500)
	descriptors := uint64(8 * n) // the driver's own limit, --max-open-files, is 65536
	for _, objects := range []int{n, 1} {
		asked := c.proxy.Asked()
		w := newWorldOf(t, c, c.plain)
		w.kubelet.Failed = func(call string, err error) { t.Errorf("%s: %v", call, err) }
		// A call that needs one more fails.
		w.must(unix.Prlimit(w.driver.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: descriptors, Max: descriptors}, nil))
		for i := range objects {
			w.set(fmt.Sprint("many-", i))
		}
		for i := range n {
			w.want(owners()[i%len(owners())], fmt.Sprint("many-", i%objects))
		}
		before := time.Now()
		w.settle("publish all")
		took := time.Since(before)
		w.check("after all were published")
		asked = c.proxy.Asked() - asked
		if asked > 2*objects+2 { // two more for one that the API server's cache does not know yet
			t.Errorf("%d requests for %d volumes of %d objects", asked, n, objects)
		}
		for i := range objects {
			w.set(fmt.Sprint("many-", i))
		}
		w.converge("after all objects changed")
		for range n {
			w.drop()
		}
		w.settle("unpublish all")
		w.check("after all were unpublished")
		reliability.Shown(t, "F-15", fmt.Sprintf("%d volumes of %d objects in %v, no call failed, %d requests, at most %d descriptors",
			n, objects, took.Round(10*time.Millisecond), asked, descriptors))
	}
}

// panics has calls and refreshes panic.
func panics(t *testing.T, c *cluster) {
	w := newWorld(t, c)
	w.set("a")
	w.set("b") // watched for nobody else
	other := w.want(anyOwner, "a")
	w.settle("publish another volume")
	pid, n := w.driver.PID(), 0
	for _, point := range []string{"driver-publish-called", "publish-watching", "projector-file-written", "publish-built", "record-saved", "tmpfs-attach", "publish-done"} {
		for _, again := range []bool{true, false} {
			r := w.raw(anyPod, "b")
			w.arm(point, "panic")
			// Not a code that tells kubelet that nothing is left: it would not call NodeUnpublishVolume.
			if err := r.publish(context.Background()); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "has a bug") {
				t.Errorf("publish that panicked at %s: %v", point, err)
			}
			if again {
				if err := r.publish(context.Background()); err != nil {
					t.Errorf("publish after a panic at %s: %v", point, err)
				}
				w.set("a")
				w.set("b")
				w.converge("the other volume after a panic at " + point)
				testkit.Eventually(t, patience, "a refresh of the volume that panicked at "+point, func() bool {
					version, err := readVolume(r.target)
					return err == nil && version == w.versions["b"]
				})
			}
			r.gone("after a panic at " + point)
			n++
		}
	}
	for _, point := range []string{"refresh-begin", "refresh-write", "projector-data-tmp-made", "projector-data-renamed", "refresh-done"} {
		w.arm(point, "panic")
		w.set("a")
		w.converge("after a panic at " + point)
		testkit.Eventually(t, patience, "a panic at "+point, func() bool {
			_, err := os.Lstat(filepath.Join(w.armed, point))
			return err != nil
		})
		w.check("after a panic at " + point)
		n++
	}
	if w.driver.PID() != pid || w.deaths > 0 {
		t.Error("the driver died")
	}
	w.drop()
	w.settle("unpublish " + other.pod.Name)
	reliability.Shown(t, "F-30", fmt.Sprintf("%d panics in calls and refreshes", n))
}

// slowRecords has the disk below the records be slow for one volume.
func slowRecords(t *testing.T, c *cluster) {
	w := newWorld(t, c)
	w.set("a")
	w.want(anyOwner, "a")
	w.settle("publish another volume")
	const point = "record-tmp-made"
	r := w.raw(anyPod, "a")
	w.arm(point, "pause")
	done := make(chan error, 1)
	go func() { done <- r.publish(context.Background()) }()
	resume := w.paused(point)
	before := time.Now()
	w.want(owners()[1], "a")
	w.settle("publish a volume meanwhile")
	w.set("a")
	w.converge("refresh meanwhile")
	w.drop()
	w.settle("unpublish meanwhile")
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

	r = w.raw(anyPod, "a")
	w.arm(point, "pause")
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	go func() { done <- r.publish(ctx) }()
	resume = w.paused(point)
	if err := <-done; status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a publish that took too long: %v", err)
	}
	resume()
	testkit.Eventually(t, patience, "the roll-back of a publish that took too long", func() bool {
		_, err := os.Lstat(r.target)
		return len(w.driver.Records()) == 1 && errors.Is(err, os.ErrNotExist)
	})
	r.gone("after a publish that took too long")
	w.drop()
	w.settle("unpublish the last volume")
	reliability.Shown(t, "F-17", fmt.Sprintf("publish, refresh and unpublish of others in %v while one record could not be written", meanwhile.Round(time.Millisecond)))
}

// removedBeforeTheWatch deletes an object while the driver has read it and does not watch it yet.
func removedBeforeTheWatch(t *testing.T, c *cluster) {
	const point = "source-between-read-and-watch"
	w := newWorld(t, c)
	w.set("a")
	w.want(anyOwner, "a")
	w.settle("publish a volume")
	n := rounds(3, 6) // each cut makes the driver's pause longer
	for range n {
		w.arm(point, "pause")
		c.breakConnections()
		resume := w.paused(point)
		c.delete("a")
		resume()
		testkit.Eventually(t, patience, "the driver to notice that the Secret is gone", func() bool {
			return strings.Contains(w.driver.Status(), "not found")
		})
		if version, err := readVolume(w.target(w.volumes[0])); err != nil || version != w.versions["a"] {
			t.Errorf("the files of a Secret that is gone: version %d, %v", version, err)
		}
		w.set("a")
		w.converge("after the Secret was made anew")
	}
	w.drop()
	w.settle("unpublish it")
	reliability.Shown(t, "F-34", fmt.Sprintf("%d removals noticed", n))
}

// twoInstances starts a second driver beside the first.
func twoInstances(t *testing.T, c *cluster) {
	w := newWorld(t, c)
	w.set("a")
	w.want(anyOwner, "a")
	w.settle("publish a volume")
	second := func(state string) *exec.Cmd {
		return exec.CommandContext(t.Context(), c.binary, "node", "--node-name=node-1", "--kubelet-root="+w.driver.Root, "--state-dir="+state,
			"--access=service-account", "--kubeconfig="+c.kubeconfig)
	}
	out, err := second(w.driver.State).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another driver is running with "+w.driver.State) {
		t.Errorf("the second driver says %v:\n%s", err, out)
	}
	w.set("a")
	w.converge("the first driver goes on")
	w.check("after a second driver")

	// With records of its own it takes the sockets over; the end of the first one leaves them.
	next := second(filepath.Join(t.TempDir(), "state"))
	socket := filepath.Join(w.driver.Root, "plugins", "fsuser.csi.io", "csi.sock")
	before, err := os.Stat(socket)
	w.must(err)
	w.must(next.Start())
	testkit.Eventually(t, patience, "the next driver's socket", func() bool {
		now, err := os.Stat(socket)
		return err == nil && !os.SameFile(before, now)
	})
	w.driver.Stop()
	w.drop()
	ctx, cancel := bounded(patience, "the next driver unpublishes")
	defer cancel()
	w.must(w.kubelet.Settle(ctx))
	w.must(next.Process.Signal(os.Interrupt))
	if err := next.Wait(); err != nil {
		t.Errorf("the next driver ended with %v", err)
	}
	w.driver.StartAgain() // it drops the record of the volume that the other one unpublished
	w.check("after both")
	reliability.Shown(t, "F-24", "the second ends; a socket that was taken over outlives the first")
}

// otherVersions starts the driver with records that another version wrote.
func otherVersions(t *testing.T, c *cluster) {
	w := newWorld(t, c)
	w.set("a")
	ours := regexp.MustCompile(`^{"version":[0-9]+,`)
	for _, version := range []int{1, 2, 99} {
		w.want(anyOwner, "a")
		w.want(owners()[1], "a")
		w.settle("publish volumes")
		w.driver.Stop()
		written := map[string]string{}
		for _, name := range w.driver.Records() {
			path := filepath.Join(w.driver.State, name)
			b, err := os.ReadFile(path)
			w.must(err)
			written[path] = ours.ReplaceAllString(string(b), fmt.Sprintf(`{"version":%d,"field":{},`, version))
			if written[path] == string(b) {
				t.Fatalf("a record that does not begin with its version: %s", b)
			}
			w.must(os.WriteFile(path, []byte(written[path]), 0o600))
		}
		w.driver.StartAgain()
		for path, text := range written {
			if b, err := os.ReadFile(path); err != nil || string(b) != text {
				t.Errorf("a record of version %d was touched: %v", version, err)
			}
		}
		// One is unpublished before kubelet publishes it again, the other one after.
		w.drop()
		w.must(w.kubelet.Restart())
		ctx, cancel := bounded(patience, "unpublish and publish again")
		defer cancel()
		w.must(w.kubelet.Settle(ctx))
		w.set("a")
		w.converge("after a record of another version")
		w.check("after a record of another version")
		w.drop()
		w.settle("unpublish the other")
		w.check("at the end")
	}
	reliability.Shown(t, "F-21", "records of versions 1, 2 and 99")
}
