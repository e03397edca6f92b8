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
)

// kills kills the driver once at each of its failpoints, then at random points and at random times, while all kinds of things happen. After
// each round everything must be as it should.
func kills(t *testing.T, c *cluster) {
	h := newHarness(t, c)
	for _, object := range objects() {
		h.set(object)
	}
	for i := range 4 {
		h.want(owners()[i], objects()[i%len(objects())])
	}
	h.settle("publish the first volumes")
	readers := startReaders(t, h.driver.Root)

	all := points(t)
	steps, random := all, rounds(5, 500)
	if c.access == "node" {
		random = rounds(5, 100)
		if !long() { // the other access has shown what each step leaves
			steps = nil
		}
	}
	for together := range slices.Chunk(steps, rounds(5, 1)) {
		for _, p := range h.killAtEach(together) {
			// Another kill kept it from being passed: once more, alone.
			if len(h.killAtEach([]point{p})) > 0 {
				t.Errorf("the driver was never at %s", p.name)
			}
		}
		readers.check()
	}

	// A step that fails instead of being the last one: publish, refresh and unpublish are tried again, and come to the same end.
	failing := 0
	h.failing = true
	for _, p := range steps {
		if p.fails {
			h.arm(p.name, "error")
			h.round()
			if !h.disarm(p.name) {
				t.Errorf("the driver was never at %s", p.name)
			}
			h.check("after an error at " + p.name)
			failing++
		}
	}

	h.failing = false

	for enough := h.deaths + random; h.deaths < enough; {
		p := all[rand.N(len(all))]
		h.arm(p.name, fmt.Sprint("kill ", rand.N(6)))
		h.killAt = time.Now().Add(rand.N(400 * time.Millisecond))
		h.round()
		h.disarm(p.name)
		h.check(fmt.Sprintf("after %d kills, the last at %s and at a random time", h.deaths, p.name))
		readers.check()
	}

	for len(h.volumes) > 0 {
		h.drop()
	}
	h.settle("unpublish everything")
	h.check("at the end")
	reads := readers.stop()
	if !t.Failed() {
		reliability.Shown(t, "F-08", fmt.Sprintf("%d kills, at each of %d points and at random times; %d errors", h.deaths, len(steps), failing))
		reliability.Shown(t, "F-35", fmt.Sprintf("%d reads of whole volumes during %d kills", reads, h.deaths))
	}
}

// killAtEach has a round in which the driver is killed at each of some points. It returns those at which it never was.
func (h *harness) killAtEach(points []point) (missed []point) {
	h.t.Helper()
	before := h.deaths
	for _, p := range points {
		h.arm(p.name, "kill")
	}
	h.round()
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

// objects are what changes all the time: two Secrets and a ConfigMap.
func objects() []string { return []string{"a", "b", "map"} }

func owners() []owned {
	return []owned{
		{1000, 1000, 0o400, byName}, {1001, 2001, 0o440, byVolume}, {0, 0, 0o600, byName}, {65534, 7, 0o644, byVolume},
		{2147483647, 2147483647, 0o500, byName}, {1002, 1002, 0o400, byRequest},
	}
}

// round lets happen whatever can: pods come and go, objects change, connections break, kubelet and driver restart, and what they left is
// tampered with.
func (h *harness) round() {
	h.t.Helper()
	// Objects change while volumes are there, and while they come.
	h.set(objects()[0])
	h.want(owners()[rand.N(len(owners()))], objects()[rand.N(len(objects()))])
	h.set(objects()[1])
	h.settle("publish a volume")
	h.set(objects()[0])
	h.set(objects()[2])
	h.converge("after objects changed")

	h.cluster.cut()
	for _, object := range objects() { // so that all watches are waited for
		h.set(object)
	}
	h.converge("after connections broke")

	h.kubelet.Republish()
	h.settle("publish again what is published")

	h.drop()
	h.settle("unpublish a volume")
	h.converge("after an unpublish")

	// A pod that kubelet has lost: its mount is gone, its directories too, and nobody calls.
	lost := h.removePod()
	h.kubelet.Forget(lost.pod, lost.name())
	h.must(unix.Unmount(h.target(lost), unix.MNT_DETACH))
	h.must(os.RemoveAll(filepath.Join(h.driver.Root, "pods", lost.pod.UID)))
	h.want(lost.owned, lost.object)
	h.settle("publish another one for one that was lost")
	if !h.failing { // a record that could not be removed stays until the restart
		h.check("before the driver is stopped")
	}

	h.stop()
	h.tamper()
	h.set(objects()[0])
	h.start()
	h.must(h.kubelet.Restart())
	h.settle("after restarts of driver and kubelet")
	h.must(os.RemoveAll(filepath.Join(h.driver.State, "bad")))
	h.converge("after restarts of driver and kubelet")
}

// stop has the driver end by SIGTERM, unless it dies on the way.
func (h *harness) stop() {
	h.t.Helper()
	if !h.driver.StopOrDie() {
		h.deaths++
	}
}

// tamper does to what a driver left what can happen to it: a mount is gone, as after a reboot; a record is gone; one is not what the driver
// wrote; one was never finished.
func (h *harness) tamper() {
	h.t.Helper()
	h.must(unix.Unmount(h.target(h.volumes[0]), unix.MNT_DETACH))
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
