// SPDX-License-Identifier: Apache-2.0

package testkit_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.RunHelper(map[string]func([]string) error{"holder": holder})
	testkit.RunInMountNamespace(m)
}

// holder stalls the directory args[0] and waits until it is killed.
func holder(args []string) error {
	if _, err := testkit.StartStall(args[0]); err != nil {
		return err
	}
	fmt.Println("stalled")
	return unix.Pause()
}

// atOnce is the longest duration of a call that must not wait for the lock.
const atOnce = 10 * time.Second

// tmpfs mounts a tmpfs for a test and returns its mount point.
func tmpfs(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(testkit.SharedDir(t), "volume")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := unix.Unmount(dir, unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.ENOENT) { // a test may have removed the mount point
			t.Error(err)
		}
	})
	return dir
}

// concurrently runs f and returns a channel of the result.
func concurrently(f func() error) (result <-chan error) {
	results := make(chan error, 1)
	go func() { results <- f() }()
	return results
}

// blockedMkdir starts a mkdir in dir and returns when the kernel makes the thread wait.
func blockedMkdir(t *testing.T, dir string) (result <-chan error) {
	t.Helper()
	result = concurrently(func() error { return unix.Mkdir(filepath.Join(dir, "new"), 0o755) })
	testkit.Eventually(t, atOnce, "the thread of the mkdir to be in D state", func() bool {
		n, err := testkit.HangingThreads(os.Getpid())
		return err == nil && n == 1
	})
	return result
}

func await(t *testing.T, what string, result <-chan error) {
	t.Helper()
	select {
	case err := <-result:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(atOnce):
		t.Fatalf("waited %v in vain for %s", atOnce, what)
	}
}

func TestAWriterWaitsInAStalledDirectory(t *testing.T) {
	testkit.NothingLeft(t)
	dir := tmpfs(t)
	release := testkit.Stall(t, dir)
	made := blockedMkdir(t, dir)
	select {
	case err := <-made:
		t.Fatalf("the mkdir did not wait: %v", err)
	default:
	}
	release()
	await(t, "the mkdir after the stall", made)
	if _, err := os.Stat(filepath.Join(dir, "new")); err != nil {
		t.Error(err)
	}
}

func TestAStallEndsWithItsTest(t *testing.T) {
	testkit.NothingLeft(t)
	dir := tmpfs(t)
	var made <-chan error
	t.Run("stalled", func(t *testing.T) {
		testkit.Stall(t, dir)
		made = blockedMkdir(t, dir)
	})
	await(t, "the mkdir after the test", made)
}

func TestAStallEndsWhenItsProcessIsKilled(t *testing.T) {
	testkit.NothingLeft(t)
	dir := tmpfs(t)
	cmd := testkit.Helper(t, false, "holder", dir)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		t.Fatalf("the helper did not stall the directory: %v", err)
	}
	made := blockedMkdir(t, dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "the mkdir after the end of the process", made)
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the helper ended with %v", err)
	}
}

func TestSeveralStallsOfOneDirectoryHoldTogether(t *testing.T) {
	testkit.NothingLeft(t)
	dir := tmpfs(t)
	first := testkit.Stall(t, dir)
	second := testkit.Stall(t, dir)
	made := blockedMkdir(t, dir)
	first()
	select {
	case err := <-made:
		t.Fatalf("the mkdir did not wait for the second stall: %v", err)
	default:
	}
	second()
	await(t, "the mkdir after both stalls", made)
}

// A driver must be able to end a volume whose root is locked. The writer that waits for the lock blocks later readers,
// too.
func TestCallsThatDoNotNeedTheLockOfAMountsRoot(t *testing.T) {
	testkit.NothingLeft(t)
	dir := tmpfs(t)
	if err := os.Mkdir(filepath.Join(dir, "generation"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("generation", filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	release := testkit.Stall(t, dir)
	made := blockedMkdir(t, dir)
	for _, call := range []struct {
		name string
		run  func() error
	}{
		{"openat2 of the root", func() error {
			how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
			return closed(unix.Openat2(unix.AT_FDCWD, dir, how))
		}},
		{"listing of a directory below", func() error {
			_, err := os.ReadDir(filepath.Join(dir, "..data"))
			return err
		}},
		{"statfs", func() error { return unix.Statfs(dir, new(unix.Statfs_t)) }},
		{"fstat", func() error { return unix.Fstat(root, new(unix.Stat_t)) }},
		{"statx", func() error { return unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_ALL, new(unix.Statx_t)) }},
		{"open_tree with OPEN_TREE_CLONE", func() error {
			return closed(unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC))
		}},
		{"mount_setattr of a clone", func() error {
			clone, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			if err != nil {
				return err
			}
			defer unix.Close(clone)
			return unix.MountSetattr(clone, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}},
		{"a detached unmount", func() error { return unix.Unmount(dir, unix.MNT_DETACH) }},
		{"rmdir of the mount point", func() error { return unix.Rmdir(dir) }},
	} {
		t.Run(call.name, func(t *testing.T) {
			await(t, call.name, concurrently(call.run))
		})
	}
	select {
	case err := <-made:
		t.Fatalf("the lock was not held to the end: mkdir returned %v", err)
	default:
	}
	release()
	await(t, "the mkdir after the stall", made)
}

func closed(fd int, err error) error {
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
