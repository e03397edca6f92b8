// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
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
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
)

// stopBound is the longest time for the driver to stop: a pod of the DaemonSet has 30 s to end, and the driver gives
// its calls 10 s.
const stopBound = 20 * time.Second

// apart returns a kubelet with a connection of its own, which outlives the driver.
func apart(t *testing.T, root string) *kubelet.Kubelet {
	t.Helper()
	k, err := kubelet.Connect(root, filepath.Join(root, "plugins/fsuser.csi.io/csi.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func drain(t *testing.T, c *cluster) string {
	const calls = 50
	c.secret(t, "f09", map[string]string{"k": "text"})
	d, proxy := c.startBehind(t)
	k := apart(t, d.Root)
	proxy.Answer(faultproxy.Slow(5 * time.Second))
	var publishing sync.WaitGroup
	errs := make([]error, calls)
	name := func(i int) kubelet.Pod { return pod(fmt.Sprintf("f09-%d", i)) }
	idle := d.Metric("go_goroutines")
	for i := range calls {
		publishing.Go(func() { _, errs[i] = k.Publish(deadline(t), name(i), ssh("secretName", "f09")) })
	}
	// A call that waits for its object has read its pod, or started its watch, by then. Most calls have a new goroutine,
	// because the gRPC server keeps only two.
	testkit.Eventually(t, converged, "the publishes to be under way", func() bool {
		return d.Metric("fsuser_watched_objects") == 1 && d.Metric("go_goroutines") >= idle+calls-2
	})
	start := time.Now()
	d.Stop() // fails t if the exit code is not 0
	took := time.Since(start)
	publishing.Wait()
	if took > stopBound {
		t.Errorf("the driver took %v to stop", took)
	}
	done := 0
	for i, err := range errs {
		mounts := testkit.MountsBelow(t, k.Target(name(i), "ssh"))
		switch {
		case err == nil && len(mounts) == 1:
			done++
		// The call came too late to be accepted. The driver must serve an accepted call, and must not break it off with
		// Unavailable.
		case status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "while dialing") && len(mounts) == 0:
		default:
			t.Errorf("call %d: %v, mounts %q", i, err, mounts)
		}
	}
	if done < calls*9/10 {
		t.Errorf("of %d calls under way only %d were served", calls, done)
	}
	proxy.Answer(nil)
	d.StartAgain()
	if n := d.Metric("fsuser_volumes"); n != float64(done) {
		t.Errorf("the next driver has %v volumes, want %d", n, done)
	}
	for i, err := range errs {
		if err != nil {
			if _, err := d.Publish(deadline(t), name(i), ssh("secretName", "f09")); err != nil {
				t.Errorf("call %d, again: %v", i, err)
			}
		}
		unpublish(t, d, name(i), "ssh")
	}
	nothingAtAll(t, d)
	return fmt.Sprintf("%d calls, %d served, stopped in %s", calls, done, seconds(took))
}

func drainHanging(t *testing.T, c *cluster) string {
	c.secret(t, "f09-hangs", map[string]string{"k": "text"})
	d, proxy := c.startBehind(t)
	k := apart(t, d.Root)
	p := pod("f09-hangs")
	// On an open connection, a request hangs for longer than without: a handshake ends after ten seconds.
	if _, err := d.Publish(deadline(t), p, ssh("secretName", "f09-hangs")); err != nil {
		t.Fatal(err)
	}
	unpublish(t, d, p, "ssh")
	proxy.Stall()
	published := make(chan error)
	go func() {
		_, err := k.Publish(deadline(t), p, ssh("secretName", "f09-hangs"))
		published <- err
	}()
	testkit.Eventually(t, converged, "the publish to wait", func() bool { return d.Metric("fsuser_watched_objects") == 1 })
	start := time.Now()
	d.Stop()
	took := time.Since(start)
	if err := <-published; status.Code(err) != codes.Unavailable {
		t.Errorf("the call that hung: %v", err)
	}
	if took > stopBound {
		t.Errorf("the driver took %v to stop", took)
	}
	nothingOf(t, d, p)
	proxy.Heal()
	d.StartAgain()
	nothingAtAll(t, d)
	if _, err := d.Publish(deadline(t), p, ssh("secretName", "f09-hangs")); err != nil {
		t.Errorf("the same call after the restart: %v", err)
	}
	unpublish(t, d, p, "ssh")
	return "stopped in " + seconds(took)
}

func reboot(t *testing.T, c *cluster) string {
	c.secret(t, "f10", map[string]string{"k": "before"})
	for _, state := range []string{"gone, as on a tmpfs", "left, as on a disk"} {
		d := c.start(t)
		kept, dead := pod("f10-kept"), pod("f10-dead")
		v := ssh("secretName", "f10")
		for _, p := range []kubelet.Pod{kept, dead} {
			if _, err := d.Publish(deadline(t), p, v); err != nil {
				t.Fatal(err)
			}
		}
		d.Kill()
		for _, p := range []kubelet.Pod{kept, dead} {
			if err := unix.Unmount(d.Target(p, "ssh"), 0); err != nil {
				t.Fatal(err)
			}
		}
		if strings.HasPrefix(state, "gone") {
			if err := os.RemoveAll(d.State); err != nil {
				t.Fatal(err)
			}
		}
		d.StartAgain()
		if mounts := testkit.MountsBelow(t, d.Root); len(mounts) != 1 {
			t.Errorf("records %s: mounted without being asked: %q", state, mounts)
		}
		if n := d.Metric("fsuser_watched_objects") + d.Metric("fsuser_volumes"); n != 0 || len(d.Records()) > 0 {
			t.Errorf("records %s: %v volumes and watches, records %q", state, n, d.Records())
		}
		// The directory of the volume is left, without content.
		unpublish(t, d, dead, "ssh")
		if _, err := d.Publish(deadline(t), kept, v); err != nil {
			t.Errorf("records %s: republish: %v", state, err)
		}
		holds(t, filepath.Join(d.Target(kept, "ssh"), "k"), "before")
		unpublish(t, d, kept, "ssh")
		nothingAtAll(t, d)
		d.Stop()
	}
	return "with and without records"
}

// removeDirectory unmounts the volume of a pod and removes the pod's directory without the driver.
func removeDirectory(t *testing.T, d *testkit.Driver, p kubelet.Pod) {
	t.Helper()
	if err := unix.Unmount(d.Target(p, "ssh"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(d.Root, "pods", p.UID)); err != nil {
		t.Fatal(err)
	}
}

func directoryRemoved(t *testing.T, c *cluster) string {
	d := c.start(t, "--collect-interval=100ms")
	m := c.manyVolumes(t, d, "f11", 10)
	gone, kept := m.names[:5], m.names[5:]
	for _, name := range gone {
		removeDirectory(t, d, pod(name))
	}
	start := time.Now()
	testkit.Eventually(t, converged, "the volumes to be forgotten",
		func() bool { return d.Metric("fsuser_volumes") == float64(len(kept)) })
	took := time.Since(start)
	if n := d.Metric("fsuser_watched_objects"); n != float64(len(kept)) || len(d.Records()) != len(kept) {
		t.Errorf("%v objects are watched, records %q", n, d.Records())
	}
	// Kubelet may still call the driver.
	for _, name := range gone {
		if err := d.Unpublish(deadline(t), pod(name), "ssh"); err != nil {
			t.Errorf("unpublish of what is gone: %v", err)
		}
	}
	m.update(t, "after")
	m.names = kept
	m.show(t, converged, "after")
	m.unpublish(t)
	m.names = append(slices.Clone(gone), kept...) // to update their Secrets
	nothingAtAll(t, d)
	return fmt.Sprintf("5 of 10, forgotten %s after the look that found it", seconds(took))
}

func busy(t *testing.T, c *cluster) string {
	c.secret(t, "f14", map[string]string{"k": "text"})
	d := c.start(t)
	p := pod("f14")
	target, err := d.Publish(deadline(t), p, ssh("secretName", "f14"))
	if err != nil {
		t.Fatal(err)
	}
	// The kernel reports when it has removed a file system with its content. Waiting for that does not keep the file
	// system.
	freed := unmountedOf(t, target)
	worker := exec.CommandContext(t.Context(), "sleep", "600")
	worker.Dir = target
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	inside := fmt.Sprintf("/proc/%d/cwd/", worker.Process.Pid)
	open, err := os.Open(filepath.Join(target, "k"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(target, 0); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("the volume is not busy: %v", err)
	}
	start := time.Now()
	unpublish(t, d, p, "ssh")
	took := time.Since(start)
	nothingAtAll(t, d)
	if b, err := os.ReadFile(inside + "k"); err != nil || string(b) != "text" {
		t.Errorf("who was in the volume reads %q, %v", b, err)
	}
	// Another volume at the same place is independent of the first one.
	c.update(t, "f14", map[string]string{"k": "another"})
	if _, err := d.Publish(deadline(t), p, ssh("secretName", "f14")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(inside + "k"); err != nil || string(b) != "text" {
		t.Errorf("who was in the old volume reads %q, %v", b, err)
	}
	open.Close()
	if freed() {
		t.Error("the volume is freed while a process is in it")
	}
	left := time.Now()
	worker.Process.Kill()
	worker.Wait()
	testkit.Eventually(t, converged, "the kernel to free the volume that nobody is in any more", freed)
	freedIn := time.Since(left)
	unpublish(t, d, p, "ssh")
	return fmt.Sprintf("unpublished in %s, freed %s after the process had left", seconds(took), seconds(freedIn))
}

// unmountedOf returns a function that reports whether the kernel has removed the file system that path is in now
// (inotify(7), IN_UNMOUNT).
func unmountedOf(t *testing.T, path string) func() bool {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_DELETE_SELF); err != nil {
		t.Fatal(err)
	}
	return func() bool {
		event := make([]byte, unix.SizeofInotifyEvent)
		n, err := unix.Read(fd, event)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			t.Error(err)
		}
		return n == len(event) && binary.NativeEndian.Uint32(event[4:])&unix.IN_UNMOUNT != 0
	}
}

func foreignMounts(t *testing.T, c *cluster) string {
	c.secret(t, "f18", map[string]string{"k": "text"})
	d := c.start(t)
	p, v := pod("f18"), ssh("secretName", "f18")
	target := d.Target(p, "ssh")
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "file"), []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "ext4")
	mounts := map[string]func() error{
		"a bind mount": func() error { return unix.Mount(foreign, target, "", unix.MS_BIND, "") },
		"a tmpfs":      func() error { return unix.Mount("theirs", target, "tmpfs", 0, "") },
		"two, one on top of the other": func() error {
			return errors.Join(unix.Mount("theirs", target, "tmpfs", 0, ""), unix.Mount(foreign, target, "", unix.MS_BIND, ""))
		},
		"a tmpfs with the name of the driver's": func() error { return unix.Mount("fsuser", target, "tmpfs", 0, "") },
		"a file system whose server is dead": func() error {
			fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer fuse.Close() // Its server is this process, which never serves.
			return unix.Mount("dead", target, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd()))
		},
		"ext4 on a loop device": func() error {
			for _, command := range [][]string{
				{"truncate", "-s", "4M", image}, {"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, target},
			} {
				if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
					return fmt.Errorf("%s: %w: %s", command[0], err, out)
				}
			}
			return nil
		},
	}
	for name, mount := range mounts {
		if err := os.MkdirAll(target, 0o750); err != nil {
			t.Fatal(err)
		}
		if err := mount(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		before := testkit.MountsBelow(t, target)
		if _, err := d.Publish(deadline(t), p, v); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: publish: %v", name, err)
		}
		if now := testkit.MountsBelow(t, target); !slices.Equal(now, before) {
			t.Errorf("%s: mounts %q, before: %q", name, now, before)
		}
		if n := d.Metric("fsuser_watched_objects"); n != 0 || len(d.Records()) > 0 {
			t.Errorf("%s: %v watches, records %q", name, n, d.Records())
		}
		// Kubelet waits until nothing is mounted there, regardless of who mounted it.
		if err := d.Unpublish(deadline(t), p, "ssh"); err != nil {
			t.Errorf("%s: unpublish: %v", name, err)
		}
		if now := testkit.MountsBelow(t, target); len(now) > 0 {
			t.Fatalf("%s: mounts after unpublish: %q", name, now)
		}
		if b, err := os.ReadFile(filepath.Join(foreign, "file")); err != nil || string(b) != "theirs" {
			t.Errorf("%s: the file that was mounted holds %q, %v", name, b, err)
		}
		if _, err := d.Publish(deadline(t), p, v); err != nil {
			t.Errorf("%s: publish when it is gone: %v", name, err)
		}
		if err := d.Unpublish(deadline(t), p, "ssh"); err != nil {
			t.Errorf("%s: unpublish: %v", name, err)
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Dir(target)); err != nil {
		t.Fatal(err)
	}
	if err := d.RemovePod(p); err != nil {
		t.Fatal(err)
	}
	nothingAtAll(t, d)
	return fmt.Sprintf("%d kinds of mount", len(mounts))
}

// isReady waits until /readyz reports whether volumes can be published, with the reason.
func isReady(t *testing.T, d *testkit.Driver, ready bool) {
	t.Helper()
	testkit.Eventually(t, stopBound, fmt.Sprintf("ready: %t", ready), func() bool {
		code, body := d.Get("/readyz")
		return ready && code == 200 || !ready && code == 503 && strings.Contains(body,
			"no volume can be published until --state-dir")
	})
}

func recordsCanNotBeWritten(t *testing.T, c *cluster) string {
	state := filepath.Join(t.TempDir(), "records")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("records", state, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(state, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	side := t.TempDir()
	d := c.start(t, "--state-dir="+state, "--collect-interval=10ms")
	d.State = state
	m := c.manyVolumes(t, d, "f19", 4)
	for i, fault := range []struct {
		name       string
		make, undo func() error
		code       codes.Code
	}{
		{"full", func() error {
			f, err := os.Create(filepath.Join(state, "filler"))
			if err != nil {
				return err
			}
			defer f.Close()
			// The driver's own check may hold the last page. The directory is full when the check has failed.
			testkit.Eventually(t, stopBound, "the directory to be full", func() bool {
				var err error
				for err == nil {
					_, err = f.Write(make([]byte, 4096))
				}
				if !errors.Is(err, unix.ENOSPC) {
					t.Fatal(err)
				}
				code, _ := d.Get("/readyz")
				return code == 503
			})
			return nil
		}, func() error { return os.Remove(filepath.Join(state, "filler")) }, codes.ResourceExhausted},
		// A second mount on top of the first is read-only from the beginning. The first one can't become read-only, because
		// it is in use.
		{"read-only", func() error {
			if err := unix.Mount(state, side, "", unix.MS_BIND, ""); err != nil {
				return err
			}
			return errors.Join(
				unix.Mount("", side, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""),
				unix.Mount(side, state, "", unix.MS_BIND, ""),
				unix.Unmount(side, unix.MNT_DETACH),
			)
		}, func() error { return unix.Unmount(state, unix.MNT_DETACH) }, codes.Internal},
	} {
		if err := fault.make(); err != nil {
			t.Fatal(err)
		}
		p := pod("f19-new")
		if _, err := d.Publish(deadline(t), p, ssh("secretName", "f19-0")); status.Code(err) != fault.code ||
			!strings.Contains(err.Error(), "record") {
			t.Errorf("%s: publish: %v", fault.name, err)
		}
		nothingOf(t, d, p)
		isReady(t, d, false)
		if code, body := d.Get("/healthz"); code != 200 {
			t.Errorf("%s: /healthz: %d %s; a restart would not help", fault.name, code, body)
		}
		text := "while it is " + fault.name
		m.update(t, text)
		m.show(t, converged, text)
		// Two of the four volumes stay for the next fault.
		unpublish(t, d, pod(m.names[i]), "ssh")
		if err := fault.undo(); err != nil {
			t.Fatal(err)
		}
		isReady(t, d, true)
		if _, err := d.Publish(deadline(t), p, ssh("secretName", "f19-0")); err != nil {
			t.Errorf("%s: publish after it: %v", fault.name, err)
		}
		unpublish(t, d, p, "ssh")
		if _, err := d.Publish(deadline(t), pod(m.names[i]), ssh("secretName", m.names[i])); err != nil {
			t.Fatal(err)
		}
	}
	// The record that could not be removed then is dropped now.
	d.Kill()
	d.StartAgain()
	if n := d.Metric("fsuser_volumes"); n != 4 {
		t.Errorf("%v volumes after a restart, want 4", n)
	}
	m.unpublish(t)
	nothingAtAll(t, d)
	return "full and read-only"
}

func damagedRecords(t *testing.T, c *cluster) string {
	d := c.start(t)
	m := c.manyVolumes(t, d, "f20", 6)
	d.Kill()
	files, err := filepath.Glob(filepath.Join(d.State, "*.json"))
	if err != nil || len(files) != 6 {
		t.Fatalf("records %q, %v", files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	damage := [][]byte{nil, whole[:len(whole)/2], []byte("garbage"),
		[]byte(`{"version":99,"volume":"of a driver to come"}`), whole}
	for i, b := range damage { // The last file stays as it is. The one before has the record of the first.
		if err := os.WriteFile(files[i], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(d.State, strings.Repeat("0", 64)+".json")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(d.State, strings.Repeat("1", 64)+".json"), 0o600); err != nil {
		t.Fatal(err)
	}
	mounts := testkit.MountsBelow(t, d.Root)
	d.StartAgain()
	if n := d.Metric("fsuser_volumes"); n != 1 {
		t.Errorf("%v volumes were taken up, want the one whose record is whole", n)
	}
	if n := d.Metric("fsuser_bad_records_total"); n != float64(len(damage)+2) {
		t.Errorf("%v bad records are counted, want %d", n, len(damage)+2)
	}
	bad, err := os.ReadDir(filepath.Join(d.State, "bad"))
	if err != nil || len(bad) != 6 { // all except the record of another version
		t.Errorf("%d records were moved aside, %v", len(bad), err)
	}
	m.each(t, func(name string) error {
		_, err := d.Publish(deadline(t), pod(name), ssh("secretName", name))
		return err
	})
	if now := testkit.MountsBelow(t, d.Root); !slices.Equal(now, mounts) {
		t.Errorf("mounts %q, before: %q", now, mounts)
	}
	m.update(t, "after")
	m.show(t, converged, "after")
	m.unpublish(t)
	if err := os.RemoveAll(filepath.Join(d.State, "bad")); err != nil {
		t.Error(err)
	}
	nothingAtAll(t, d)
	return fmt.Sprintf("%d kinds of damage", len(damage)+2)
}

func symlinkedRoot(t *testing.T, c *cluster) string {
	c.secret(t, "f33", map[string]string{"k": "before"})
	links, err := os.MkdirTemp("", "link-") // a short path, because it will contain a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(links) })
	root := filepath.Join(links, "kubelet")
	real := testkit.SharedDir(t)
	if err := os.Symlink(real, root); err != nil {
		t.Fatal(err)
	}
	d := testkit.StartDriverAt(t, root, c.binary, "--access=service-account", "--kubeconfig="+c.kubeconfig)
	p, v := pod("f33"), ssh("secretName", "f33")
	target, err := d.Publish(deadline(t), p, v)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(target, root) || len(testkit.MountsBelow(t, strings.Replace(target, root, real, 1))) != 1 {
		t.Errorf("%s is not mounted once", target)
	}
	d.Kill()
	d.StartAgain()
	c.update(t, "f33", map[string]string{"k": "after"})
	holds(t, filepath.Join(target, "k"), "after")
	if _, err := d.Publish(deadline(t), p, v); err != nil {
		t.Errorf("republish: %v", err)
	}
	unpublish(t, d, p, "ssh")
	if mounts := testkit.MountsBelow(t, real); len(mounts) != 1 {
		t.Errorf("mounts are left: %q", mounts)
	}
	return "publish, restart, refresh, unpublish"
}
