// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
)

// maxShown is the maximum number of bytes of a driver's log in the output of a failed test.
const maxShown = 256 << 10

// startTimeout bounds the start and the end of a driver, which normally take a tenth of a second. An emulated machine
// needs many times that.
const startTimeout = 2 * time.Minute

// Driver is a driver process with its directories. The directories outlive the process: StartAgain uses them again.
type Driver struct {
	*kubelet.Kubelet
	// Root is kubelet's root directory, and State the directory of the records.
	Root, State string

	// Env is added to the environment of the next process.
	Env []string
	// Stalled means that a stall blocks a thread of the driver, so that the process does not end when it is killed. Then
	// the next process starts beside it with another --http-address, and AwaitKilled waits for the end of the old process.
	Stalled bool

	t      testing.TB
	binary string
	args   []string
	http   string
	cmd    *exec.Cmd
	log    *os.File
	ended  chan struct{}
	// killed has a channel for each process that was killed during a stall. The channel is closed when the process has
	// ended.
	killed []<-chan struct{}
}

// StartDriver starts a driver and waits until it has registered. When t ends, the driver is stopped and must exit
// without an error. If t failed, the driver's log is printed.
func StartDriver(t testing.TB, binary string, args ...string) *Driver {
	t.Helper()
	return StartDriverAt(t, SharedDir(t), binary, args...)
}

// StartDriverAt is StartDriver with root, or a link to it, as kubelet's root directory.
func StartDriverAt(t testing.TB, root, binary string, args ...string) *Driver {
	t.Helper()
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
	d := &Driver{Root: root, State: filepath.Join(t.TempDir(), "state"), t: t, binary: binary, args: args, log: log,
		http: FreeAddress(t)}
	t.Cleanup(func() {
		if d.cmd != nil {
			d.Stop()
		}
		if t.Failed() {
			text := d.Log()
			t.Logf("log of the driver, its end:\n%s", text[max(0, len(text)-maxShown):])
		}
		log.Close()
	})
	d.StartAgain()
	return d
}

// StartAgain starts the driver again with the same directories.
func (d *Driver) StartAgain() {
	d.t.Helper()
	if err := d.TryStart(); err != nil {
		d.t.Fatal(err)
	}
}

// TryStart is StartAgain for a driver that may die during its start.
func (d *Driver) TryStart() error {
	if d.Stalled {
		d.http = FreeAddress(d.t)
	}
	args := append([]string{"node", "--node-name=node-1", "--kubelet-root=" + d.Root, "--state-dir=" + d.State,
		"--http-address=" + d.http}, d.args...)
	d.cmd = exec.Command(d.binary, args...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.Env = append(append(os.Environ(), withoutExitSleep()), d.Env...)
	d.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("start the driver: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), startTimeout,
		fmt.Errorf("the driver took more than %v to start", startTimeout))
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	cmd, ended := d.cmd, make(chan struct{})
	d.ended = ended
	go func() {
		err := cmd.Wait()
		fail(fmt.Errorf("the driver ended: %v", err))
		close(ended)
	}()
	if d.Stalled {
		var watching sync.WaitGroup
		watching.Go(func() {
			if within(startTimeout, func() bool { return ctx.Err() != nil || dead(cmd.Process.Pid) }) {
				fail(errors.New("the driver was killed"))
			}
		})
		defer watching.Wait()
		defer fail(nil)
	}
	var err error
	if d.Kubelet, err = kubelet.Register(ctx, d.Root); err != nil {
		_ = cmd.Process.Kill() // it may have ended
		d.awaitEnd(unix.SIGKILL)
		d.cmd = nil
		return errors.Join(fmt.Errorf("start the driver: %w", err), d.removeSocket())
	}
	return nil
}

// Ended returns a channel that is closed when the process has ended.
func (d *Driver) Ended() <-chan struct{} { return d.ended }

// Dead reports whether the process has ended. A process that was killed during a stall counts, too.
func (d *Driver) Dead() bool {
	if d.Stalled {
		return dead(d.PID())
	}
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

// AwaitKilled waits for the processes that were killed during a stall. Call it after the end of the stall.
func (d *Driver) AwaitKilled() {
	d.t.Helper()
	for _, ended := range d.killed {
		select {
		case <-ended:
		case <-time.After(startTimeout):
			d.t.Fatalf("a killed driver did not end within %v of the end of the stall", startTimeout)
		}
	}
	d.killed = nil
}

// Bury cleans up after a driver that is dead. Call it before the next start.
func (d *Driver) Bury() {
	d.t.Helper()
	if d.Stalled {
		d.killed = append(d.killed, d.ended)
	}
	if err := errors.Join(d.Kubelet.Close(), d.removeSocket()); err != nil {
		d.t.Fatal(err)
	}
	d.cmd = nil
}

// removeSocket removes the registration socket of a killed driver. The fake kubelet can't tell a stale socket from a
// new one. The real kubelet can, by the inode.
func (d *Driver) removeSocket() error {
	err := os.Remove(filepath.Join(d.Root, "plugins_registry", "fsuser.csi.io-reg.sock"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Kill ends the driver with SIGKILL, as the kernel does when memory is short. The driver may already be dead.
func (d *Driver) Kill() {
	d.t.Helper()
	d.signal(unix.SIGKILL)
	d.cmd = nil
	if err := d.removeSocket(); err != nil {
		d.t.Fatal(err)
	}
}

// Crash ends the driver with a fatal signal and returns its exit status.
func (d *Driver) Crash(s unix.Signal) syscall.WaitStatus {
	d.t.Helper()
	d.signal(s)
	status := d.cmd.ProcessState.Sys().(syscall.WaitStatus)
	d.cmd = nil
	if err := d.removeSocket(); err != nil {
		d.t.Fatal(err)
	}
	return status
}

// Stop ends the driver with SIGTERM, as kubelet does when the pod is deleted, and checks the exit code.
func (d *Driver) Stop() {
	d.t.Helper()
	d.signal(unix.SIGTERM)
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		d.t.Errorf("the driver ended with exit code %d after SIGTERM", code)
	}
	d.cmd = nil
}

// StopOrDie is Stop for a driver that may be killed during its shutdown. It returns false if the driver was killed.
func (d *Driver) StopOrDie() (stopped bool) {
	d.t.Helper()
	d.signal(unix.SIGTERM)
	status := d.cmd.ProcessState.Sys().(syscall.WaitStatus)
	d.cmd = nil
	if status.Signaled() && status.Signal() == unix.SIGKILL {
		if err := d.removeSocket(); err != nil {
			d.t.Fatal(err)
		}
		return false
	}
	if status.ExitStatus() != 0 {
		d.t.Errorf("the driver ended with %v after SIGTERM", status)
	}
	return true
}

func (d *Driver) signal(s os.Signal) {
	d.t.Helper()
	if err := d.Kubelet.Close(); err != nil {
		d.t.Error(err)
	}
	if err := d.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Fatal(err)
	}
	d.awaitEnd(s)
}

// awaitEnd waits for the end of the process, or during a stall until it is dead.
func (d *Driver) awaitEnd(after os.Signal) {
	d.t.Helper()
	if d.Stalled {
		pid := d.PID()
		Eventually(d.t, startTimeout, "the driver to be dead", func() bool { return dead(pid) })
		d.killed = append(d.killed, d.ended)
		return
	}
	select {
	case <-d.ended:
	case <-time.After(startTimeout):
		d.t.Fatalf("the driver did not end within %v of %v\n%s", startTimeout, after, d.Log())
	}
}

// PID returns the process id.
func (d *Driver) PID() int { return d.cmd.Process.Pid }

// HTTPAddress returns the value of --http-address.
func (d *Driver) HTTPAddress() string { return d.http }

// Log returns the driver's log so far.
func (d *Driver) Log() string {
	b, err := os.ReadFile(d.log.Name())
	if err != nil {
		d.t.Error(err)
	}
	return string(b)
}

// Get requests a path over HTTP: /healthz, /readyz or /metrics.
func (d *Driver) Get(path string) (status int, body string) {
	d.t.Helper()
	status, body, err := d.get(path)
	if err != nil {
		d.t.Fatal(err)
	}
	return status, body
}

func (d *Driver) get(path string) (status int, body string, err error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + d.http + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// Metric returns the value of a metric. The name includes the labels as /metrics prints them.
func (d *Driver) Metric(name string) float64 {
	d.t.Helper()
	value, err := d.TryMetric(name)
	if err != nil {
		d.t.Fatal(err)
	}
	return value
}

// TryMetric is Metric for a driver that may die during the request.
func (d *Driver) TryMetric(name string) (float64, error) {
	_, body, err := d.get("/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("there is no metric %s", name)
}

// Status returns the output of "fsuser-csi status".
func (d *Driver) Status() string {
	d.t.Helper()
	cmd := exec.Command(d.binary, "status", "--state-dir="+d.State)
	cmd.Env = append(os.Environ(), withoutExitSleep())
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("status: %v\n%s", err, out)
	}
	return string(out)
}

// Records returns the names of the volume records.
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

// AsContainer bind-mounts the volume at target to a new directory that all users can enter, as a container runtime
// does. The mount is removed when t ends or undo is called.
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

// ReadAs reads a file in a process of another user without supplementary groups.
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

// FreeAddress returns an address to listen on, which is still free after a restart. It is not on 127.0.0.1, where the
// local port of a connection could take the port between two starts.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", net.IPv4(127, byte(1+rand.N(250)), byte(rand.N(250)), byte(1+rand.N(250))).String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
