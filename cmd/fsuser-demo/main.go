// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
)

const (
	demoUID  = 1000
	demoMode = "0600"
	// demoTimeout bounds the whole demo; it takes about a second.
	demoTimeout = time.Minute
	// inDemoNamespace marks the process that runs the demo in its own mount namespace.
	inDemoNamespace = "FSUSER_DEMO_IN_NAMESPACE"
)

func newDemoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show the driver at work on this machine, without a cluster",
		Long: `demo runs the real driver on a temporary socket, with a directory of manifests in place of an API server, and plays kubelet for a pod with an SSH
key. It works in a mount namespace and a temporary directory of its own, and leaves nothing. It needs root.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return errors.New("demo mounts and changes owners, which needs root: run it with sudo")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), demoTimeout)
			defer cancel()
			if os.Getenv(inDemoNamespace) == "" {
				return runInMountNamespace(ctx)
			}
			d := demo{out: cmd.OutOrStdout(), pod: kubelet.Pod{Namespace: "default", Name: "git", UID: "6f0a3c1e-0000-4000-8000-000000000001"}}
			return d.run(ctx)
		},
	}
}

// runInMountNamespace runs this command once more in a private mount namespace, so that nothing it mounts can reach the machine, even if it
// is killed.
func runInMountNamespace(ctx context.Context) error {
	runtime.LockOSThread() // Pdeathsig is tied to the thread
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "demo")
	cmd.Env = append(os.Environ(), inDemoNamespace+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		os.Exit(exit.ExitCode()) // it has said why
	} else if err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	return nil
}

// demo is one run of the demo. Everything lies below dir.
type demo struct {
	out io.Writer
	dir string
	pod kubelet.Pod
}

func (d *demo) path(elem ...string) string { return filepath.Join(append([]string{d.dir}, elem...)...) }

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *demo) run(ctx context.Context) (err error) {
	if d.dir, err = os.MkdirTemp("", "fsuser-demo-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	if err := d.prepare(); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(d.dir, unix.MNT_DETACH)) }()
	before, err := mountTable()
	if err != nil {
		return err
	}

	key, err := d.writeSecret()
	if err != nil {
		return err
	}
	d.say("A Secret with an SSH key, and a pod that runs as uid %d and wants it as a file:", demoUID)
	d.say(`
    volumes:
    - name: ssh
      csi:
        driver: fsuser.csi.io
        readOnly: true
        volumeAttributes: {secretName: ssh-keys, uid: "%d", mode: "%s"}
`, demoUID, demoMode)

	stopDriver, k, err := d.startDriver(ctx)
	if err != nil {
		return err
	}
	defer stopDriver()
	defer k.Close()
	if err := d.publish(ctx, k); err != nil {
		return err
	}
	if err := d.compare(ctx, key); err != nil {
		return err
	}
	if err := d.refresh(ctx); err != nil {
		return err
	}
	if err := d.unpublish(ctx, k); err != nil {
		return err
	}
	if err := stopDriver(); err != nil {
		return fmt.Errorf("stop the driver: %w", err)
	}
	return d.proveNothingLeft(before)
}

// prepare makes a kubelet root directory on a mount with shared propagation, as a node has, and what else the demo needs.
func (d *demo) prepare() error {
	if err := os.Chmod(d.dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(d.dir, d.dir, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Mount("", d.dir, "", unix.MS_SHARED, ""); err != nil {
		return err
	}
	for _, dir := range []string{"manifests", "in-tree", "container/ssh"} {
		if err := os.MkdirAll(d.path(dir), 0o755); err != nil {
			return err
		}
	}
	return kubelet.MakeRoot(d.path("kubelet"))
}

// writeSecret writes the manifest of a Secret with a new key, the way an editor does: to another name first.
func (d *demo) writeSecret() (key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, err
	}
	key = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata:\n  name: ssh-keys\n  namespace: default\ndata:\n  id_ecdsa: %s\n",
		base64.StdEncoding.EncodeToString(key))
	if err := os.WriteFile(d.path("manifests", ".secret"), []byte(manifest), 0o600); err != nil {
		return nil, err
	}
	return key, os.Rename(d.path("manifests", ".secret"), d.path("manifests", "secret.yaml"))
}

// startDriver starts the driver as a process of its own and waits until it has registered. stop ends it and waits; more than once
// does no harm.
func (d *demo) startDriver(ctx context.Context) (stop func() error, k *kubelet.Kubelet, err error) {
	log, err := os.Create(d.path("driver.log"))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	cmd := exec.Command("/proc/self/exe", "node", "--node-name=demo", "--kubelet-root="+d.path("kubelet"),
		"--state-dir="+d.path("state"), "--manifests="+d.path("manifests"))
	cmd.Stdout, cmd.Stderr = log, log
	runtime.LockOSThread() // Pdeathsig is tied to the thread: this one is kept until the demo ends
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		if err := cmd.Wait(); err != nil {
			text, _ := os.ReadFile(d.path("driver.log"))
			cancel(fmt.Errorf("the driver ended: %w\n%s", err, text))
		} else {
			cancel(nil)
		}
		close(ended)
	}()
	stop = func() error {
		// It may have ended already.
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		<-ended
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			return cause
		}
		return nil
	}
	k, err = kubelet.Register(ctx, d.path("kubelet"))
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return stop, k, nil
}

func (d *demo) publish(ctx context.Context, k *kubelet.Kubelet) error {
	volume := kubelet.Volume{Name: "ssh", Attributes: map[string]string{"secretName": "ssh-keys", "uid": fmt.Sprint(demoUID), "mode": demoMode}}
	start := time.Now()
	target, err := k.Publish(ctx, d.pod, volume)
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	d.say("Kubelet asks the driver for the volume; it is there %s later.", milliseconds(time.Since(start)))
	// What a container runtime does: bind the volume to where the container wants it.
	if err := unix.Mount(target, d.path("container/ssh"), "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return nil
}

// compare shows the key as an in-tree secret volume gives it beside the driver's.
func (d *demo) compare(ctx context.Context, key []byte) error {
	inTree, ours := d.path("in-tree", "id_ecdsa"), d.path("container/ssh", "id_ecdsa")
	if err := os.WriteFile(inTree, key, 0o600); err != nil {
		return err
	}
	d.say("\nThe file as Kubernetes' own secret volume gives it (defaultMode %s), and as this driver does:\n", demoMode)
	for _, path := range []string{inTree, ours} {
		if err := d.list(ctx, path); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(ours, &st); err != nil {
		return err
	}
	if st.Uid != demoUID || fmt.Sprintf("%04o", st.Mode&0o7777) != demoMode {
		return fmt.Errorf("%s belongs to uid %d with mode %04o", ours, st.Uid, st.Mode&0o7777)
	}
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		d.say("\n(ssh-keygen is not installed here: with it, the demo lets uid %d read both keys.)", demoUID)
		return nil
	}
	d.say("\nssh-keygen -y, as uid %d:\n", demoUID)
	if out, err := asUser(ctx, keygen, inTree); err == nil {
		return fmt.Errorf("ssh-keygen read the key of the in-tree volume: %s", out)
	} else {
		d.say("  in-tree   refused: %s", d.shorten(out))
	}
	out, err := asUser(ctx, keygen, ours)
	if err != nil {
		return fmt.Errorf("ssh-keygen does not read the driver's key: %w: %s", err, out)
	}
	d.say("  driver's  read:    %s", d.shorten(out))
	return nil
}

// list shows a file as ls -ln does, so that nobody has to take the demo's word.
func (d *demo) list(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, "ls", "-lnL", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ls: %w: %s", err, out)
	}
	d.say("  %s", d.shorten(string(out)))
	return nil
}

func asUser(ctx context.Context, keygen, path string) (string, error) {
	cmd := exec.CommandContext(ctx, keygen, "-y", "-f", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: demoUID, Gid: demoUID}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// shorten takes the temporary directory out of a line, and cuts it to the width of a terminal.
func (d *demo) shorten(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(strings.ReplaceAll(s, d.dir+"/", "")), "\n")
	if len(s) > 90 {
		s = s[:90] + "…"
	}
	return s
}

// refresh changes the Secret and measures how long the container goes on seeing the old one.
func (d *demo) refresh(ctx context.Context) error {
	file := d.path("container/ssh", "id_ecdsa")
	key, err := d.writeSecret()
	start := time.Now()
	if err != nil {
		return err
	}
	for {
		now, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("the file was not readable during the refresh: %w", err)
		}
		if string(now) == string(key) {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("waited for the new key in the container: %w", context.Cause(ctx))
		}
	}
	d.say("\nThe Secret is edited. The container sees the new key %s later (Kubernetes' own volumes: within a minute and a half).", milliseconds(time.Since(start)))
	return nil
}

func (d *demo) unpublish(ctx context.Context, k *kubelet.Kubelet) error {
	if err := unix.Unmount(d.path("container/ssh"), 0); err != nil {
		return err
	}
	start := time.Now()
	if err := k.Unpublish(ctx, d.pod, "ssh"); err != nil {
		return fmt.Errorf("unpublish: %w", err)
	}
	d.say("\nThe pod goes, and with it the volume: %s.", milliseconds(time.Since(start)))
	return k.RemovePod(d.pod)
}

// proveNothingLeft compares the mount table and looks for files of the volume.
func (d *demo) proveNothingLeft(before string) error {
	after, err := mountTable()
	if err != nil {
		return err
	}
	if after != before {
		return fmt.Errorf("the mount table is not as before:\n%s\nbefore:\n%s", after, before)
	}
	var left []string
	for _, dir := range []string{"kubelet/pods", "kubelet/plugins/fsuser.csi.io", "kubelet/plugins_registry", "state"} {
		entries, err := os.ReadDir(d.path(dir))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Name() != "lock" { // it stays for the next driver
				left = append(left, filepath.Join(dir, e.Name()))
			}
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	d.say("Nothing is left: the mount table is as before, and no directory, socket or record of it remains.")
	return nil
}

func mountTable() (string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return string(b), err
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
