// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
)

// TestOutOfMemory makes the kernel kill the driver when its memory runs out during publishes (F-16): the content of
// volumes is memory of the driver's cgroup.
func TestOutOfMemory(t *testing.T) {
	const (
		limit = 64 << 20
		most  = 200
	)
	nothingLeft(t)
	c := startCluster(t)
	c.secret(t, "large", map[string]string{"k": strings.Repeat("x", 1000<<10)})
	join, kills := memoryCgroup(t, limit) // It can be removed after the driver has left it.
	d := c.start(t)
	join(d.PID())
	var published []string // includes the failed one, because kubelet retries
	for err := error(nil); err == nil; {
		if len(published) == most {
			t.Fatalf("%d MiB of content fit into %d MiB", most, limit>>20)
		}
		published = append(published, fmt.Sprintf("large-%d", len(published)))
		_, err = d.Publish(deadline(t), pod(published[len(published)-1]), ssh("secretName", "large"))
	}
	if n := kills(); n != 1 {
		t.Fatalf("the kernel killed %d processes for want of memory, want the driver", n)
	}
	d.Kill() // The driver is dead already. This call informs testkit.
	// The new process has no limit, like the DaemonSet.
	d.StartAgain()
	for i, name := range published {
		target := d.Target(pod(name), "ssh")
		b, err := os.ReadFile(filepath.Join(target, "k"))
		last := i == len(published)-1
		if !last && (err != nil || len(b) != 1000<<10) {
			t.Errorf("%s holds %d bytes, %v", name, len(b), err)
		}
		if last && err == nil && len(b) != 1000<<10 {
			t.Errorf("%s, whose publish was killed, holds a part: %d bytes", name, len(b))
		}
		if _, err := d.Publish(deadline(t), pod(name), ssh("secretName", "large")); err != nil {
			t.Errorf("%s, again: %v", name, err)
		}
	}
	for _, name := range published {
		unpublish(t, d, pod(name), "ssh")
	}
	nothingAtAll(t, d)
	reliability.Shown(t, "F-16", fmt.Sprintf("killed for want of memory at volume %d; all that were published are whole",
		len(published)))
}

// memoryCgroup creates a cgroup with this limit. join moves a process into the cgroup, and kills returns the number of
// processes that the kernel has killed there. When t ends, the cgroup is removed if it is empty.
func memoryCgroup(t *testing.T, limit int) (join func(pid int), kills func() int) {
	t.Helper()
	root, limitFile, killsFile := "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control" // version 1
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		root, limitFile, killsFile = "/sys/fs/cgroup", "memory.max", "memory.events"
	}
	dir, err := os.MkdirTemp(root, "fsuser-test-")
	if err != nil {
		t.Fatalf("this test needs to make a memory cgroup: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Rmdir(dir); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	write := func(file, value string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o644); err != nil {
			t.Fatalf("this test needs a memory cgroup: %v", err)
		}
	}
	write(limitFile, strconv.Itoa(limit))
	return func(pid int) { write("cgroup.procs", strconv.Itoa(pid)) }, func() int {
		b, err := os.ReadFile(filepath.Join(dir, killsFile))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
				n, err := strconv.Atoi(strings.TrimSpace(count))
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		t.Fatalf("%s has no oom_kill:\n%s", killsFile, b)
		return 0
	}
}
