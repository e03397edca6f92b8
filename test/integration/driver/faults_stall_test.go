// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// heldText is a part of the reason why a stalled volume is stale.
const heldText = "a process holds the volume's directory"

// stalledVolumes makes eight processes hold the directories of eight volumes, twice the number of the driver's workers.
func stalledVolumes(t *testing.T, c *cluster) string {
	const stalled, others = 8, 20
	d := c.start(t, "--collect-interval=100ms")
	held, free := c.manyVolumes(t, d, "f44-held", stalled), c.manyVolumes(t, d, "f44-free", others)
	gone := pod("f44-gone")
	if _, err := d.Publish(deadline(t), gone, ssh("secretName", free.names[0])); err != nil {
		t.Fatal(err)
	}
	var release []func()
	for _, name := range held.names {
		release = append(release, testkit.Stall(t, d.Target(held.pods[name], "ssh")))
	}
	begun := time.Now()
	held.update(t, "after")
	awaitStale(t, d, stalled)
	told := time.Since(begun)

	// All other volumes are refreshed.
	begun = time.Now()
	free.update(t, "after")
	free.show(t, converged, "after")
	followed := time.Since(begun)
	late := pod("f44-late")
	lateDir, stop := publish(t, d, late, ssh("secretName", held.names[0]))
	holds(t, filepath.Join(lateDir, "k"), "after")
	stop()
	unpublish(t, d, late, "ssh")
	removeDirectory(t, d, gone)
	testkit.Eventually(t, converged, "a volume without a pod directory to be forgotten", func() bool {
		return d.Metric("fsuser_volumes") == stalled+others
	})
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := d.Get(path); status != 200 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}

	// The held volumes are reported.
	age := d.Metric("fsuser_oldest_refresh_seconds")
	testkit.Eventually(t, converged, "the oldest refresh to become older", func() bool {
		return d.Metric("fsuser_oldest_refresh_seconds") > max(age, 1)
	})
	if n := strings.Count(d.Status(), heldText); n != stalled {
		t.Errorf("the status has %d stalled volumes:\n%s", n, d.Status())
	}
	for _, name := range held.names {
		if e := c.event(t, held.pods[name], "VolumeRefreshFailed"); !strings.Contains(e.Message, heldText) {
			t.Errorf("the Event does not say why: %s", e.Message)
		}
	}

	// Calls for a held volume end.
	held.each(t, func(name string) error {
		_, err := d.Publish(deadline(t), held.pods[name], ssh("secretName", name))
		return err
	})
	first := held.pods[held.names[0]]
	unpublish(t, d, first, "ssh")
	nothingOf(t, d, first)
	if n := d.Metric("fsuser_stale_volumes"); n != stalled-1 {
		t.Errorf("%v volumes are stale after the unpublish of one", n)
	}

	// The files are refreshed after the processes release the directories.
	for _, end := range release {
		end()
	}
	begun = time.Now()
	held.names = held.names[1:]
	held.show(t, converged, "after")
	awaitStale(t, d, 0)
	current := time.Since(begun)
	for _, name := range held.names {
		c.event(t, held.pods[name], "VolumeRefreshRecovered")
	}
	held.unpublish(t)
	free.unpublish(t)
	nothingAtAll(t, d)
	return fmt.Sprintf("%d of %d volumes held: stale after %s, the others followed in %s; current %s after their end",
		stalled, stalled+others, seconds(told), seconds(followed), seconds(current))
}

// stopBesideStall ends the driver with SIGTERM while a refresh does not return from the kernel.
func stopBesideStall(t *testing.T, c *cluster) string {
	d := c.start(t)
	c.secret(t, "f44-stop", map[string]string{"k": "before"})
	p := pod("f44-stop")
	target, err := d.Publish(deadline(t), p, ssh("secretName", "f44-stop"))
	if err != nil {
		t.Fatal(err)
	}
	release := testkit.Stall(t, target)
	c.update(t, "f44-stop", map[string]string{"k": "between"})
	awaitStale(t, d, 1)

	d.Stalled = true // The process can't end before its thread does.
	begun := time.Now()
	if err := unix.Kill(d.PID(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, stopBound, "the driver to end", d.Dead)
	took := time.Since(begun)
	d.Bury()
	c.update(t, "f44-stop", map[string]string{"k": "after"})
	release()
	d.AwaitKilled()
	d.Stalled = false
	if !strings.Contains(d.Log(), "Stopped; the volumes stay mounted") {
		t.Error("the driver did not stop, it was killed")
	}
	d.StartAgain()
	holds(t, filepath.Join(target, "k"), "after")
	unpublish(t, d, p, "ssh")
	nothingAtAll(t, d)
	return fmt.Sprintf("SIGTERM beside a held volume: stopped in %s", seconds(took))
}
