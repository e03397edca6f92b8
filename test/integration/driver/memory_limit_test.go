// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fsuser-csi/fsuser-csi/deploy"
	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// TestMemoryLimit fills a node up to --max-node-bytes, in a cgroup with the smallest memory limit that the chart
// accepts. All objects change at the same time, and the driver restarts. The kernel must not kill the driver.
func TestMemoryLimit(t *testing.T) {
	const maxVolumes, maxNodeBytes = 64, 48 << 20
	nothingLeft(t)
	c := startCluster(t)
	c.binary = testkit.BuildDriverWithoutRace(t) // The race detector takes several times the memory.
	join, kills := memoryCgroup(t, leastMemoryLimit(t, maxVolumes, maxNodeBytes))
	d := c.start(t, fmt.Sprint("--max-volumes=", maxVolumes), fmt.Sprint("--max-node-bytes=", maxNodeBytes),
		"--pod-share=100", "--namespace-share=100")
	join(d.PID())
	full := fillNode(t, c, d)
	for _, version := range []string{"b", "c"} {
		whileStopped(t, d, func() {
			for object := range full {
				c.update(t, object, largeSecret(version))
			}
		})
		for _, v := range full {
			holds(t, filepath.Join(v.target, "small"), version)
		}
		d.Kill()
		d.StartAgain()
		join(d.PID())
	}
	for object := range full {
		c.update(t, object, largeSecret("d"))
	}
	for _, v := range full {
		holds(t, filepath.Join(v.target, "small"), "d")
		unpublish(t, d, v.pod, "ssh")
	}
	if n := kills(); n != 0 {
		t.Errorf("the kernel killed %d processes", n)
	}
	d.Stop()
}

// leastMemoryLimit returns the smallest resources.limits.memory that the chart accepts, which is in its refusal of 1.
func leastMemoryLimit(t *testing.T, maxVolumes, maxNodeBytes int) int {
	t.Helper()
	_, err := deploy.Template(t.Context(), "../../../deploy", "--set", fmt.Sprintf(
		"resources.limits.memory=1,limits.maxVolumes=%d,limits.maxNodeBytes=%d", maxVolumes, maxNodeBytes))
	least := regexp.MustCompile("must be at least ([0-9]+)").FindStringSubmatch(fmt.Sprint(err))
	if least == nil {
		t.Fatalf("the chart accepts a memory limit of 1: %v", err)
	}
	n, err := strconv.Atoi(least[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// filled is a volume of the filled node.
type filled struct {
	pod    kubelet.Pod
	target string
}

// fillNode publishes volumes with a Secret of their own, until the driver refuses one. Each fourth volume shows its
// whole Secret, which takes memory of the volume. The others show a small key, so that most of their content takes
// memory of the process. It returns the volumes by the names of the Secrets.
func fillNode(t *testing.T, c *cluster, d *testkit.Driver) map[string]filled {
	t.Helper()
	full := map[string]filled{}
	for {
		object := fmt.Sprintf("large-%d", len(full))
		c.secret(t, object, largeSecret("a"))
		p, v := pod(object), ssh("secretName", object)
		if len(full)%4 != 0 {
			p, v = c.describe(t, secretVolume(object, false, items("small", "small")...))
		}
		target, err := d.Publish(deadline(t), p, v)
		if status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "--max-node-bytes") {
			return full
		}
		if err != nil {
			t.Fatal(err)
		}
		full[object] = filled{p, target}
	}
}

// largeSecret returns data of nearly the largest allowed size.
func largeSecret(version string) map[string]string {
	return map[string]string{"large": strings.Repeat(version, 1000<<10), "small": version}
}

// whileStopped stops the driver's process during do, so that the driver sees all changes at the same time.
func whileStopped(t *testing.T, d *testkit.Driver, do func()) {
	t.Helper()
	if err := unix.Kill(d.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Kill(d.PID(), unix.SIGCONT); err != nil {
			t.Error(err)
		}
	}()
	do()
}
