// SPDX-License-Identifier: Apache-2.0

// Command demo shows the driver on this machine, without a cluster: "make demo". It runs the real driver on a temporary
// socket, with a directory of manifests in place of an API server, and acts as kubelet for a pod with an SSH key. It
// uses a mount namespace and a temporary directory of its own, and leaves nothing. It requires root.
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
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
)

const (
	uid  = 1000
	mode = 0o600
	// timeout bounds the whole demo, which takes about a second.
	timeout = time.Minute

	volumes = `    volumes:
    - name: ssh
      csi:
        driver: fsuser.csi.io
        volumeAttributes: {secretName: ssh-keys, uid: "1000", mode: "0600"}
    - name: keys                    # as the pod has it today
      secret: {secretName: ssh-keys, defaultMode: 0600, items: [{key: id_ecdsa, path: id}]}
    - name: keys-fsuser             # the same files, owned by uid 1000
      csi:
        driver: fsuser.csi.io
        volumeAttributes: {volume: keys, uid: "1000"}
`
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	err := demo(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context) (err error) {
	switch {
	case len(os.Args) != 2:
		return errors.New("usage: demo DRIVER, the path of the program fsuser-csi")
	case os.Geteuid() != 0:
		return errors.New("the demo mounts and changes owners, which needs root: run it with sudo")
	}
	d := stage{pod: kubelet.Pod{Namespace: "default", Name: "git", UID: "6f0a3c1e-0000-4000-8000-000000000001"}}
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
	fmt.Printf("A Secret with an SSH key, and a pod whose user %d wants it as a file. There are two ways to write "+
		"it:\n\n%s\n", uid, volumes)
	if err := d.play(ctx); err != nil {
		return err
	}
	return d.proveNothingLeft(before)
}

// stage is the directory of the demo.
type stage struct {
	dir string
	pod kubelet.Pod
}

func (d *stage) path(elem ...string) string {
	return filepath.Join(append([]string{d.dir}, elem...)...)
}

// prepare moves this thread into a mount namespace of its own, so that no mount can reach the machine, and makes a
// kubelet root directory on a mount with shared propagation, as on a node. The main goroutine keeps its thread.
func (d *stage) prepare() error {
	runtime.LockOSThread()
	for _, step := range []func() error{
		func() error { return os.Chmod(d.dir, 0o755) },
		func() error { return unix.Unshare(unix.CLONE_NEWNS) },
		func() error { return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "") },
		func() error { return unix.Mount(d.dir, d.dir, "", unix.MS_BIND, "") },
		func() error { return unix.Mount("", d.dir, "", unix.MS_SHARED, "") },
		func() error { return os.Mkdir(d.path("manifests"), 0o755) },
		func() error { return kubelet.MakeRoot(d.path("kubelet")) },
		d.writePod,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// play publishes the pod's volumes, shows and refreshes them, and unpublishes them.
func (d *stage) play(ctx context.Context) error {
	key, err := d.writeSecret()
	if err != nil {
		return err
	}
	stopDriver, k, err := d.startDriver(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stopDriver() }()
	defer k.Close()
	short, err := d.publish(ctx, k, "ssh",
		map[string]string{"secretName": "ssh-keys", "uid": fmt.Sprint(uid), "mode": fmt.Sprintf("%04o", mode)})
	if err != nil {
		return err
	}
	described, err := d.publish(ctx, k, "keys-fsuser", map[string]string{"volume": "keys", "uid": fmt.Sprint(uid)})
	if err != nil {
		return err
	}
	files := []string{filepath.Join(short, "id_ecdsa"), filepath.Join(described, "id")}
	if err := d.compare(ctx, key, files); err != nil {
		return err
	}
	if err := d.refresh(ctx, files); err != nil {
		return err
	}
	for _, volume := range []string{"ssh", "keys-fsuser"} {
		start := time.Now()
		if err := k.Unpublish(ctx, d.pod, volume); err != nil {
			return fmt.Errorf("unpublish: %w", err)
		}
		fmt.Printf("The pod ends, and the volume %s is gone after %s.\n", volume, milliseconds(time.Since(start)))
	}
	return errors.Join(k.RemovePod(d.pod), stopDriver())
}

// writePod writes the manifest of the pod, which the driver reads for the attribute volume.
func (d *stage) writePod() error {
	manifest := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, uid: %s}
spec:
  containers:
  - name: git
    volumeMounts:
    - {name: ssh, mountPath: /ssh}
    - {name: keys-fsuser, mountPath: /keys}
%s`, d.pod.Name, d.pod.Namespace, d.pod.UID, strings.ReplaceAll(volumes[2:], "\n  ", "\n"))
	return d.writeManifest("pod.yaml", manifest)
}

// writeSecret writes the manifest of a Secret with a new key.
func (d *stage) writeSecret() (key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, err
	}
	key = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	return key, d.writeManifest("secret.yaml",
		fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: ssh-keys, namespace: %s}\ndata: {id_ecdsa: %s}\n",
			d.pod.Namespace, base64.StdEncoding.EncodeToString(key)))
}

// writeManifest writes a manifest under another name and renames it, as an editor does.
func (d *stage) writeManifest(name, text string) error {
	if err := os.WriteFile(d.path("manifests", "."+name), []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(d.path("manifests", "."+name), d.path("manifests", name))
}

// startDriver starts the driver and waits until it has registered. stop ends it and waits; a second call does nothing.
func (d *stage) startDriver(ctx context.Context) (stop func() error, k *kubelet.Kubelet, err error) {
	log, err := os.Create(d.path("driver.log"))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	cmd := exec.Command(os.Args[1], "node", "--node-name=demo", "--kubelet-root="+d.path("kubelet"),
		"--state-dir="+d.path("state"), "--manifests="+d.path("manifests"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := cmd.Wait()
		if text, _ := os.ReadFile(log.Name()); err != nil {
			err = fmt.Errorf("the driver ended: %w\n%s", err, text)
		}
		cancel(err)
	}()
	stop = func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		<-ended
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
			return cause
		}
		return nil
	}
	if k, err = kubelet.Register(ctx, d.path("kubelet")); err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return stop, k, nil
}

func (d *stage) publish(ctx context.Context, k *kubelet.Kubelet, name string,
	attributes map[string]string) (target string, err error) {
	start := time.Now()
	target, err = k.Publish(ctx, d.pod, kubelet.Volume{Name: name, Attributes: attributes})
	if err != nil {
		return "", fmt.Errorf("publish %s: %w", name, err)
	}
	fmt.Printf("Kubelet asks the driver for the volume %s, which is there %s later.\n", name,
		milliseconds(time.Since(start)))
	return target, nil
}

// compare shows the key in Kubernetes' own secret volume, beside the driver's files.
func (d *stage) compare(ctx context.Context, key []byte, files []string) error {
	native := d.path("native")
	if err := os.WriteFile(native, key, mode); err != nil {
		return err
	}
	fmt.Printf("\nThe file in Kubernetes' own secret volume (defaultMode %04o), and in the driver's volumes:\n\n", mode)
	for _, file := range append([]string{native}, files...) {
		// ls is independent of the demo.
		out, err := exec.CommandContext(ctx, "ls", "-lnL", file).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ls: %w: %s", err, out)
		}
		fmt.Println(" ", d.shorten(string(out)))
	}
	for _, file := range files {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil || st.Uid != uid || st.Mode&0o7777 != mode {
			return fmt.Errorf("%s belongs to uid %d with mode %04o (%v)", file, st.Uid, st.Mode&0o7777, err)
		}
	}
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		fmt.Printf("\n(ssh-keygen is not installed here: with it, the demo lets uid %d read the keys.)\n", uid)
		return nil
	}
	fmt.Printf("\nssh-keygen -y, as uid %d:\n\n", uid)
	if out, err := asUser(ctx, keygen, native); err == nil {
		return fmt.Errorf("ssh-keygen read the key of Kubernetes' own volume: %s", out)
	} else {
		fmt.Println("  Kubernetes' own  refused:", d.shorten(out))
	}
	for _, file := range files {
		out, err := asUser(ctx, keygen, file)
		if err != nil {
			return fmt.Errorf("ssh-keygen does not read the driver's key: %w: %s", err, out)
		}
		fmt.Println("  driver's         read:   ", d.shorten(out))
	}
	return nil
}

func asUser(ctx context.Context, keygen, path string) (string, error) {
	// The descriptor leads to the file. Only root can enter its directories, whereas in a container the volume is mounted.
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	cmd := exec.CommandContext(ctx, keygen, "-y", "-f", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// shorten removes the temporary directory from a line, and cuts the line to the width of a terminal.
func (d *stage) shorten(s string) string {
	s = strings.ReplaceAll(s, d.dir+"/", "")
	if _, rest, found := strings.Cut(s, "/volumes/kubernetes.io~csi/"); found {
		s = s[:strings.Index(s, "kubelet/pods")] + rest
	}
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s[:min(len(s), 90)]
}

// refresh changes the Secret and measures for how long the container still sees the old key.
func (d *stage) refresh(ctx context.Context, files []string) error {
	key, err := d.writeSecret()
	if err != nil {
		return err
	}
	start := time.Now()
	fmt.Println("\nThe Secret is edited. Kubernetes' own volume shows the new key within a minute and a half, the " +
		"driver's after:")
	for _, file := range files {
		for {
			now, err := os.ReadFile(file)
			switch {
			case err != nil:
				return fmt.Errorf("the file was not readable during the refresh: %w", err)
			case ctx.Err() != nil:
				return fmt.Errorf("waited for the new key in %s: %w", file, context.Cause(ctx))
			}
			if string(now) == string(key) {
				break
			}
		}
		fmt.Printf("  %s  %s\n", milliseconds(time.Since(start)), d.shorten(file))
	}
	fmt.Println()
	return nil
}

// proveNothingLeft compares the mount table and searches for files of the volumes.
func (d *stage) proveNothingLeft(before string) error {
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
			if e.Name() != "lock" { // The lock stays for the next driver.
				left = append(left, filepath.Join(dir, e.Name()))
			}
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	fmt.Println("Nothing is left: the mount table is as before, and no directory, socket or record of the volumes " +
		"remains.")
	return nil
}

// mountTable returns the mount table of this thread's mount namespace.
func mountTable() (string, error) {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	return string(b), err
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}
