// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
)

// drivers are real processes of the driver, one for each node.
type drivers struct {
	cluster *cluster
	binary  string
	args    []string
	nodes   []*driverNode
}

// driverNode is a node with its driver and the kubelet that calls the driver.
type driverNode struct {
	*kubelet.Kubelet
	index     int
	root      string
	namespace *mountNamespace
	process   *os.Process
	ended     chan error
}

func newDrivers(c *cluster, binary string, args ...string) (*drivers, error) {
	d := &drivers{cluster: c, binary: binary, args: args}
	for i := range c.size.nodes {
		n := &driverNode{index: i, root: filepath.Join(c.dir, fmt.Sprintf("n%d", i)), namespace: newMountNamespace()}
		d.nodes = append(d.nodes, n)
		if err := n.namespace.do(n.prepare); err != nil {
			return nil, errors.Join(err, d.close())
		}
	}
	return d, nil
}

// prepare makes kubelet's root directory on a mount with shared propagation.
func (n *driverNode) prepare() error {
	if err := kubelet.MakeRoot(n.root); err != nil {
		return err
	}
	if err := unix.Mount(n.root, n.root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on itself: %w", n.root, err)
	}
	if err := unix.Mount("", n.root, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make %s shared: %w", n.root, err)
	}
	return nil
}

func (d *drivers) name() string { return driverName }

// start starts the drivers and waits until they have registered.
func (d *drivers) start(ctx context.Context) error { return d.startSome(ctx, d.cluster.size.all()) }

func (d *drivers) startSome(ctx context.Context, nodes []int) error {
	return lab.Concurrently(len(nodes), len(nodes), func(i int) error {
		return d.nodes[nodes[i]].start(ctx, d)
	})
}

// restart ends drivers and starts them again. They take over the existing volumes.
func (d *drivers) restart(ctx context.Context, nodes []int) error {
	if err := d.stop(nodes); err != nil {
		return err
	}
	return d.startSome(ctx, nodes)
}

func (n *driverNode) start(ctx context.Context, d *drivers) error {
	log, err := os.OpenFile(n.root+".log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"node", "--node-name=" + nodeName(n.index), "--kubelet-root=" + n.root,
		"--state-dir=" + n.root + ".state", "--access=node", "--kubeconfig=" + driverConfig(d.cluster.dir, n.index)}
	cmd := exec.Command(d.binary, append(args, d.args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := n.namespace.do(func() error { return startClient(cmd) }); err != nil {
		return fmt.Errorf("start the driver: %w", err)
	}
	n.process, n.ended = cmd.Process, make(chan error, 1)
	go func() { n.ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the driver did not register"))
	defer cancel()
	if n.Kubelet, err = kubelet.Register(ctx, n.root); err != nil {
		return n.withLog(fmt.Errorf("start the driver: %w", err))
	}
	return nil
}

// stop ends the drivers of some nodes with SIGTERM.
func (d *drivers) stop(nodes []int) error {
	return lab.Concurrently(len(nodes), len(nodes), func(i int) error { return d.nodes[nodes[i]].stop() })
}

func (n *driverNode) stop() error {
	if n.process == nil {
		return nil
	}
	process := n.process
	n.process = nil
	if n.Kubelet != nil {
		n.Kubelet.Close()
	}
	_ = process.Signal(unix.SIGTERM) // This fails only if the process has ended.
	select {
	case err := <-n.ended:
		if err != nil {
			return n.withLog(fmt.Errorf("the driver did not end well: %w", err))
		}
		return nil
	case <-time.After(time.Minute):
		_ = process.Kill()
		<-n.ended
		return n.withLog(errors.New("the driver did not end within a minute of SIGTERM"))
	}
}

// withLog adds the end of the driver's log to an error.
func (n *driverNode) withLog(err error) error {
	log, _ := os.ReadFile(n.root + ".log") // The error is useful without the log, too.
	return fmt.Errorf("node %d: %w; the end of its log:\n%s", n.index, err, log[max(0, len(log)-4096):])
}

// watch publishes the volumes of all pods.
func (d *drivers) watch(ctx context.Context) error {
	return d.cluster.size.eachNode(func(node int) error {
		n := d.nodes[node]
		for _, v := range d.volumes(node) {
			if _, err := n.Publish(ctx, v.pod, v.volume); err != nil {
				return n.withLog(fmt.Errorf("publish volume %s of %s: %w", v.volume.Name, v.pod.Name, err))
			}
		}
		return nil
	})
}

// shown is a volume of a pod with its Secret.
type shown struct {
	pod    kubelet.Pod
	volume kubelet.Volume
	secret string
}

// volumes returns the driver's volumes of a node.
func (d *drivers) volumes(node int) (all []shown) {
	for _, pod := range d.cluster.pods[node] {
		p := kubelet.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)}
		for _, v := range pod.Spec.Volumes {
			if v.CSI == nil {
				continue
			}
			volume := kubelet.Volume{Name: v.Name, Attributes: v.CSI.VolumeAttributes}
			all = append(all, shown{p, volume, v.CSI.VolumeAttributes["secretName"]})
		}
	}
	return all
}

// await waits until the files of some Secrets of each node have a version.
func (d *drivers) await(ctx context.Context, version int, secrets func(node int) []string) error {
	want := strconv.Itoa(version)
	return lab.Concurrently(len(d.nodes), len(d.nodes), func(node int) error {
		n := d.nodes[node]
		files := map[string]string{}
		for _, v := range d.volumes(node) {
			files[v.secret] = filepath.Join(n.Target(v.pod, v.volume.Name), versionKey)
		}
		for _, secret := range secrets(node) {
			if err := n.awaitFile(ctx, files[secret], want); err != nil {
				return fmt.Errorf("wait for version %s of %s on node %d: %w", want, secret, node, err)
			}
		}
		return nil
	})
}

func (n *driverNode) awaitFile(ctx context.Context, path, want string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("waited %v", patience))
	defer cancel()
	for {
		var content []byte
		err := n.namespace.do(func() (err error) { content, err = os.ReadFile(path); return err })
		// If the path leads through the link to the old generation, the file is gone when the generation is removed.
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if string(content) == want {
			return nil
		}
		if err := sleep(ctx, pollInterval); err != nil {
			return fmt.Errorf("%w; it has %q", err, content)
		}
	}
}

// close ends all drivers. Their mounts end with the mount namespaces.
func (d *drivers) close() error {
	err := lab.Concurrently(len(d.nodes), len(d.nodes), func(i int) error { return d.nodes[i].stop() })
	for _, n := range d.nodes {
		n.namespace.close()
		err = errors.Join(err, os.RemoveAll(n.root), os.RemoveAll(n.root+".state"))
	}
	return err
}

// mountNamespace is a thread with a mount namespace of its own, so that a driver's mount table has the mounts of one
// node, as on a real node. The namespace ends with the thread and its children.
type mountNamespace struct {
	calls chan func()
	ended chan struct{}
}

func newMountNamespace() *mountNamespace {
	m := &mountNamespace{calls: make(chan func()), ended: make(chan struct{})}
	entered := make(chan error, 1)
	go func() {
		defer close(m.ended)
		runtime.LockOSThread() // It is never unlocked, so that the thread ends with the goroutine.
		entered <- unix.Unshare(unix.CLONE_NEWNS)
		for call := range m.calls {
			call()
		}
	}()
	if err := <-entered; err != nil {
		panic(fmt.Sprintf("make a mount namespace as root: %v", err))
	}
	return m
}

// do calls f in the namespace. A child that f starts is in the namespace, too.
func (m *mountNamespace) do(f func() error) error {
	done := make(chan error, 1)
	m.calls <- func() { done <- f() }
	return <-done
}

func (m *mountNamespace) close() {
	close(m.calls)
	<-m.ended
}
