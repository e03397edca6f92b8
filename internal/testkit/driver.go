// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
)

// startTimeout bounds the start of a driver. It takes a tenth of a second.
const startTimeout = 30 * time.Second

// BuildDriver builds the driver into a directory of t's, with the race detector if the test has it, and returns the path.
func BuildDriver(t testing.TB) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "fsuser-csi")
	args := []string{"build", "-tags", "grpcnotrace", "-o", binary}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "github.com/fsuser-csi/fsuser-csi/cmd/fsuser-csi")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the driver: %v\n%s", err, out)
	}
	return binary
}

// Driver is a driver process with the directories that it works in. They outlive it: StartAgain takes them up.
type Driver struct {
	*kubelet.Kubelet
	// Root is kubelet's root directory, State that of the records.
	Root, State string

	t      testing.TB
	binary string
	args   []string
	http   string
	cmd    *exec.Cmd
	log    *os.File
	ended  chan struct{}
}

// StartDriver starts a driver and waits until it has registered. When t ends the driver is stopped, must have ended well, and its log is
// shown if t failed.
func StartDriver(t testing.TB, binary string, args ...string) *Driver {
	t.Helper()
	root := SharedDir(t)
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := kubelet.MakeRoot(root); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "driver.log"))
	if err != nil {
		t.Fatal(err)
	}
	d := &Driver{Root: root, State: filepath.Join(t.TempDir(), "state"), t: t, binary: binary, args: args, log: log, http: freeAddress(t)}
	t.Cleanup(func() {
		if d.cmd != nil {
			d.Stop()
		}
		if t.Failed() {
			t.Logf("log of the driver:\n%s", d.Log())
		}
		log.Close()
	})
	d.StartAgain()
	return d
}

// StartAgain starts the driver once more, with the same directories.
func (d *Driver) StartAgain() {
	d.t.Helper()
	args := append([]string{"node", "--node-name=node-1", "--kubelet-root=" + d.Root, "--state-dir=" + d.State, "--http-address=" + d.http}, d.args...)
	d.cmd = exec.Command(d.binary, args...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), startTimeout, fmt.Errorf("the driver took more than %v to start", startTimeout))
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	cmd, ended := d.cmd, make(chan struct{})
	d.ended = ended
	go func() {
		err := cmd.Wait()
		fail(fmt.Errorf("the driver ended: %v", err))
		close(ended)
	}()
	var err error
	if d.Kubelet, err = kubelet.Register(ctx, d.Root); err != nil {
		cmd.Process.Kill()
		<-ended
		d.cmd = nil
		d.t.Fatalf("start the driver: %v", err)
	}
}

// Kill kills the driver with SIGKILL, as the kernel does when memory is short.
func (d *Driver) Kill() {
	d.t.Helper()
	d.signal(unix.SIGKILL)
	d.cmd = nil
	d.removeRegistration()
}

func (d *Driver) removeRegistration() {
	d.t.Helper()
	// Nobody removes the sockets of a killed driver. A fake kubelet can't tell a stale one from a new one, as the real one does by
	// its inode: it looks again after the restart.
	if err := os.Remove(filepath.Join(d.Root, "plugins_registry", "fsuser.csi.io-reg.sock")); err != nil {
		d.t.Fatal(err)
	}
}

// Crash ends the driver with a signal that programs die of, and returns how it ended.
func (d *Driver) Crash(s unix.Signal) syscall.WaitStatus {
	d.t.Helper()
	d.signal(s)
	status := d.cmd.ProcessState.Sys().(syscall.WaitStatus)
	d.cmd = nil
	d.removeRegistration()
	return status
}

// Stop ends the driver with SIGTERM, as kubelet does when the pod is deleted, and checks that it ended well.
func (d *Driver) Stop() {
	d.t.Helper()
	d.signal(unix.SIGTERM)
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		d.t.Errorf("the driver ended with exit code %d after SIGTERM", code)
	}
	d.cmd = nil
}

func (d *Driver) signal(s os.Signal) {
	d.t.Helper()
	if err := d.Kubelet.Close(); err != nil {
		d.t.Error(err)
	}
	if err := d.cmd.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(startTimeout):
		d.t.Fatalf("the driver did not end within %v of %v\n%s", startTimeout, s, d.Log())
	}
}

// PID is the process id.
func (d *Driver) PID() int { return d.cmd.Process.Pid }

// Log is what the driver has logged so far.
func (d *Driver) Log() string {
	b, err := os.ReadFile(d.log.Name())
	if err != nil {
		d.t.Error(err)
	}
	return string(b)
}

// Get fetches a path over HTTP: /healthz, /readyz or /metrics.
func (d *Driver) Get(path string) (status int, body string) {
	d.t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + d.http + path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// Metric returns the value of a metric without labels.
func (d *Driver) Metric(name string) float64 {
	d.t.Helper()
	_, body := d.Get("/metrics")
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				d.t.Fatal(err)
			}
			return v
		}
	}
	d.t.Fatalf("there is no metric %s", name)
	return 0
}

// Status is what "fsuser-csi status" prints.
func (d *Driver) Status() string {
	d.t.Helper()
	out, err := exec.Command(d.binary, "status", "--state-dir="+d.State).CombinedOutput()
	if err != nil {
		d.t.Fatalf("status: %v\n%s", err, out)
	}
	return string(out)
}

// Records are the names of the volume records.
func (d *Driver) Records() []string {
	d.t.Helper()
	entries, err := os.ReadDir(d.State)
	if err != nil {
		d.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "lock" && e.Name() != "status.sock" {
			names = append(names, e.Name())
		}
	}
	return names
}

// AsContainer binds the volume at target to a new directory that any user can reach, as a container runtime does, until t
// ends or undo is called.
func AsContainer(t testing.TB, target string) (dir string, undo func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "container-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(target, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	done := false
	undo = func() {
		if done {
			return
		}
		done = true
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(undo)
	return dir, undo
}

// ReadAs reads a file in a process of another user, who has no other group.
func ReadAs(uid, gid uint32, path string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("cat", path)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr.String())
	}
	return stdout.Bytes(), nil
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
