// SPDX-License-Identifier: Apache-2.0

//go:build linux && vm

// Package cgroup tests, in a virtual machine with the unified cgroup hierarchy, which cgroup the memory of volumes
// belongs to.
package cgroup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/vm/guest"
)

func TestMain(m *testing.M) { testkit.RunInMountNamespace(m) }

// The content of a volume is memory of the driver's cgroup until the unpublish, even if another process reads it.
func TestAVolumeIsMemoryOfTheDriversCgroup(t *testing.T) {
	testkit.NothingLeft(t)
	const size = 512 << 10
	manifests := t.TempDir()
	secret := fmt.Sprintf("apiVersion: v1\nkind: Secret\n"+
		"metadata: {name: keys, namespace: default}\nstringData: {key: %s}\n",
		bytes.Repeat([]byte("x"), size))
	if err := os.WriteFile(filepath.Join(manifests, "secret.yaml"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	d := testkit.StartDriver(t, testkit.BuildDriver(t), "--manifests="+manifests)
	group := newGroup(t, d)
	before := sharedMemory(t, group)
	if before >= size {
		t.Fatalf("the cgroup has %d bytes of shmem without a volume", before)
	}

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	pod := kubelet.Pod{Namespace: "default", Name: "p", UID: "6f0a3c1e-0000-4000-8000-000000000001"}
	volume := kubelet.Volume{Name: "v", Attributes: map[string]string{"secretName": "keys", "uid": "0"}}
	target, err := d.Publish(ctx, pod, volume)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(target, "key")); err != nil || len(b) != size {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	// The kernel sums up the counters of the CPUs every two seconds.
	var held, after int
	testkit.Eventually(t, 30*time.Second, "the volume's bytes as shmem of the driver's cgroup", func() bool {
		held = sharedMemory(t, group)
		return held >= before+size
	})
	if err := d.Unpublish(ctx, pod, "v"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "the cgroup to lose the volume's memory", func() bool {
		after = sharedMemory(t, group)
		return after < size
	})
	if err := d.RemovePod(pod); err != nil {
		t.Error(err)
	}
	seen := fmt.Sprintf("shmem in memory.stat of the driver's cgroup: %d bytes before a volume of %d bytes was "+
		"published, %d while it was mounted, %d after it was unpublished", before, size, held, after)
	if err := guest.Write(os.Stdout, guest.Report{Seen: seen}); err != nil {
		t.Error(err)
	}
}

// newGroup moves the driver to a new cgroup, which is removed when the driver has ended.
func newGroup(t *testing.T, d *testkit.Driver) (dir string) {
	t.Helper()
	const root = "/sys/fs/cgroup"
	dir = filepath.Join(root, "fsuser-csi")
	move := func(group string) error {
		return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(d.PID())), 0)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		move(root)
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := move(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func sharedMemory(t *testing.T, group string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(group, "memory.stat"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "shmem "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("memory.stat has no shmem:\n%s", b)
	return 0
}
