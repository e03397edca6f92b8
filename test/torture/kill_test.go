// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// kills kills the driver once at each of its failpoints, then at random points and at random times, during operations
// of all kinds and in all disturbances. After each round, the machine must be in the expected state.
func kills(t *testing.T, c *cluster) {
	h := newHarness(t, c)
	for _, object := range objects() {
		h.set(object)
	}
	held := heldForms()
	for i, form := range held {
		h.want(anOwner(form), objects()[i%len(objects())])
	}
	h.settle("publish the first volumes")
	readers := startReaders(t, h.driver.Root, 2*time.Millisecond)

	all := points(t)
	steps, random := all, rounds(5, 400)
	if c.access == "node" {
		random = rounds(5, 80)
		if !long() { // The other access has shown what each step leaves.
			steps = nil
		}
	}
	h.killAtSteps(steps, readers)
	failing := h.failAtSteps(steps)
	h.killAtRandom(all, random, readers)
	for _, form := range held {
		if n := h.deathsWith[form]; n != h.deaths {
			t.Errorf("at %d of %d kills, there was no volume of form %+v", h.deaths-n, h.deaths, form)
		}
	}

	for len(h.volumes) > 0 {
		h.drop()
	}
	h.settle("unpublish everything")
	h.check("at the end")
	reads := readers.stop()
	reliability.Shown(t, "F-08", fmt.Sprintf("%d kills, at each of %d points and at random times; %d errors",
		h.deaths, len(steps), failing))
	reliability.Shown(t, "F-35", fmt.Sprintf("%d reads of whole volumes during %d kills", reads, h.deaths))
	h.showDisturbed(t)
}

// killAtSteps kills the driver at each step: in a round with a disturbance, and during a stall of a volume.
func (h *harness) killAtSteps(steps []point, readers *readers) {
	h.t.Helper()
	kinds := []disturbance{none, lag, flood}
	for together := range slices.Chunk(steps, rounds(5, 1)) {
		for _, p := range h.killAtEach(together, kinds[0]) {
			// Another kill came first, so the driver did not reach this point. Repeat it alone.
			if len(h.killAtEach([]point{p}, none)) > 0 {
				h.t.Errorf("the driver was never at %s", p.name)
			}
		}
		kinds = append(kinds[1:], kinds[0])
		if long() {
			h.killBesideStall(together[0])
		}
		readers.check()
	}
}

// failAtSteps makes each step fail instead of killing the driver: publish, refresh and unpublish are repeated, and
// reach the same result. It returns the number of steps that can fail.
func (h *harness) failAtSteps(steps []point) (failing int) {
	h.t.Helper()
	h.failing = true
	for _, p := range steps {
		if p.fails {
			h.arm(p.name, "error")
			h.round(none)
			if !h.disarm(p.name) {
				h.t.Errorf("the driver was never at %s", p.name)
			}
			h.check("after an error at " + p.name)
			failing++
		}
	}
	h.failing = false
	return failing
}

// killAtRandom kills the driver at least n times at random points and times, in all disturbances.
func (h *harness) killAtRandom(points []point, n int, readers *readers) {
	h.t.Helper()
	enough := h.deaths + n
	for kind := none; h.deaths < enough || kind != none; kind = (kind + 1) % disturbances {
		p := points[rand.N(len(points))]
		if kind == stall {
			h.killBesideStall(p)
		} else {
			h.arm(p.name, fmt.Sprint("kill ", rand.N(6)))
			h.killAt = time.Now().Add(rand.N(400 * time.Millisecond))
			h.round(kind)
			h.disarm(p.name)
		}
		h.check(fmt.Sprintf("after %d kills, the last at %s and at a random time", h.deaths, p.name))
		readers.check()
	}
}

// killAtEach runs a round in which the driver is killed at each of some points. It returns the points without a kill.
func (h *harness) killAtEach(points []point, kind disturbance) (missed []point) {
	h.t.Helper()
	before := h.deaths
	for _, p := range points {
		h.arm(p.name, "kill")
	}
	h.round(kind)
	for _, p := range points {
		if !h.disarm(p.name) {
			missed = append(missed, p)
		}
	}
	if killed, fired := h.deaths-before, len(points)-len(missed); killed < fired {
		h.t.Errorf("%d kills at %d of the points %v", killed, fired, points)
	}
	h.check(fmt.Sprintf("after kills at %v", points))
	return missed
}

// objects returns the objects that change all the time: two Secrets and a ConfigMap.
func objects() []string { return []string{"a", "b", "map"} }

// heldForms returns the forms of the volumes that exist all the time: each origin and each layout, and in "make
// torture" each pair of them.
func heldForms() []form {
	if long() {
		return allForms()
	}
	return []form{{byName, attributes.LayoutLinks}, {byVolume, attributes.LayoutFiles},
		{byName, attributes.LayoutInPlace}, {byRequest, attributes.LayoutLinks}}
}

// owners returns owners of volumes with the default layout.
func owners() []owned {
	name, volume, request := inLinks(byName), inLinks(byVolume), inLinks(byRequest)
	return []owned{
		{1000, 1000, 0o400, name}, {1001, 2001, 0o440, volume}, {0, 0, 0o600, name}, {65534, 7, 0o644, volume},
		{2147483647, 2147483647, 0o500, name}, {1002, 1002, 0o400, request},
	}
}

// anOwner returns one of the owners of volumes of a form.
func anOwner(f form) owned {
	of := slices.DeleteFunc(owners(), func(o owned) bool { return o.from != f.from })
	o := of[rand.N(len(of))]
	o.form = f
	return o
}

// round runs all kinds of operations: pods are added and removed, objects change, connections break, kubelet and driver
// restart, and their files are tampered with.
func (h *harness) round(kind disturbance) {
	h.t.Helper()
	stop := func() {}
	if kind == flood {
		stop = h.startFlood()
	}
	h.change()
	stop()
	h.lose()
	if kind == lag {
		h.restartBehindOldCache()
	} else {
		h.restartBoth(func() {
			h.loseMount()
			h.loseRecords()
		})
		h.converge("after restarts of driver and kubelet")
	}
}

// change adds and removes pods and changes objects.
func (h *harness) change() {
	h.t.Helper()
	// Objects change both while volumes exist and while they are published.
	h.set(objects()[0])
	h.wantNext(objects()[rand.N(len(objects()))])
	h.set(objects()[1])
	h.settle("publish a volume")
	h.set(objects()[0])
	h.set(objects()[2])
	h.converge("after objects changed")

	h.cluster.cut()
	for _, object := range objects() { // to wait for all watches
		h.set(object)
	}
	h.converge("after connections broke")

	h.kubelet.Republish()
	h.settle("publish again what is published")

	h.drop()
	h.settle("unpublish a volume")
	h.converge("after an unpublish")
}

// lose makes kubelet lose a pod: its mount and its directories are gone, and kubelet does not call the driver.
func (h *harness) lose() {
	h.t.Helper()
	lost := h.volumes[0]
	h.removePod(lost)
	h.kubelet.Forget(lost.pod, lost.name())
	h.must(unix.Unmount(h.target(lost), unix.MNT_DETACH))
	h.must(os.RemoveAll(filepath.Join(h.driver.Root, "pods", lost.pod.UID)))
	h.want(lost.owned, lost.object)
	h.settle("publish another one for one that was lost")
	if !h.failing { // A record that could not be removed stays until the restart.
		h.check("before the driver is stopped")
	}
}

// restartBoth restarts the driver and kubelet. Between the two processes of the driver, it calls meanwhile.
func (h *harness) restartBoth(meanwhile func()) {
	h.t.Helper()
	h.stop()
	meanwhile()
	h.set(objects()[0])
	h.start()
	h.must(h.kubelet.Restart())
	h.settle("after restarts of driver and kubelet")
	h.must(os.RemoveAll(filepath.Join(h.driver.State, "bad")))
}

// stop ends the driver with SIGTERM, unless it dies before.
func (h *harness) stop() {
	h.t.Helper()
	if !h.driver.StopOrDie() {
		h.died()
	}
}

// loseMount removes the mount of a volume, as a reboot does.
func (h *harness) loseMount() {
	h.t.Helper()
	h.must(unix.Unmount(h.target(h.volumes[0]), unix.MNT_DETACH))
}

// loseRecords damages the records of a driver that has ended: it removes one, replaces the content of one, and leaves
// one unfinished.
func (h *harness) loseRecords() {
	h.t.Helper()
	records := slices.DeleteFunc(h.driver.Records(), func(name string) bool { return !strings.HasSuffix(name, ".json") })
	of := func(m mounted) string {
		for _, name := range records {
			path := filepath.Join(h.driver.State, name)
			if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), m.pod.UID) {
				return path
			}
		}
		h.t.Fatalf("volume of %s has no record", m.pod.Name)
		return ""
	}
	h.must(os.Remove(of(h.volumes[1])))
	path := of(h.volumes[2])
	b, err := os.ReadFile(path)
	h.must(err)
	h.must(os.WriteFile(path, []byte(strings.ReplaceAll(string(b), h.driver.Root, "/etc")), 0o600))
	h.must(os.WriteFile(path+".tmp", b[:len(b)/2], 0o600))
}

func (h *harness) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}
