// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
)

// driverBinary builds the driver as its image has it, on its first call. The build uses the dependencies of the
// driver's module instead of this module's versions.
func (e *env) driverBinary(ctx context.Context) (string, error) {
	return e.binary.get(func() (string, error) {
		path := filepath.Join(e.dir, "fsuser-csi")
		const module = "github.com/fsuser-csi/fsuser-csi"
		root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
		if err != nil {
			return "", fmt.Errorf("find the driver's source: %w", err)
		}
		cmd := exec.CommandContext(ctx, "make", "-C", strings.TrimSpace(string(root)), "BIN="+e.dir, path)
		if output, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build the driver: %w\n%s", err, output)
		}
		return path, nil
	})
}

// node is a driver in a process of its own, with the kubelet that calls the driver.
type node struct {
	*kubelet.Kubelet
	env            *env
	root, endpoint string
	pid            int
	log            string
	// layout is the layout of the volumes that the node publishes. If it is empty, the volumes do not set a layout, so
	// that older drivers can publish them.
	layout attributes.Layout
}

// apiNode returns a driver that reads from the API server. Its only volumes are those of the benchmarks.
func (e *env) apiNode(ctx context.Context) (*node, error) {
	return e.api.get(func() (*node, error) { return e.startWithAPI(ctx) })
}

func (e *env) startWithAPI(ctx context.Context) (*node, error) {
	c, err := e.newCluster(ctx)
	if err != nil {
		return nil, err
	}
	return e.startNode(ctx, "--access=service-account", "--kubeconfig="+c.kubeconfig)
}

// startNode starts a driver and waits until it has registered. env.close ends the driver, which must exit without an
// error.
func (e *env) startNode(ctx context.Context, args ...string) (*node, error) {
	binary, err := e.driverBinary(ctx)
	if err != nil {
		return nil, err
	}
	root, err := e.newDir("n")
	if err != nil {
		return nil, err
	}
	if err := kubelet.MakeRoot(root); err != nil {
		return nil, err
	}
	socket := filepath.Join(root, "plugins", "fsuser.csi.io", "csi.sock")
	n := &node{env: e, root: root, endpoint: socket, log: root + ".log"}
	// The log goes to a file, as under kubelet. A pipe that nobody reads would block the driver.
	log, err := os.Create(n.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(binary, append([]string{"node", "--node-name=bench", "--kubelet-root=" + root,
		"--state-dir=" + filepath.Join(e.run, filepath.Base(root))}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the driver: %w", err)
	}
	n.pid = cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	e.onClose(func() error { return n.stop(cmd.Process, ended) })

	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the driver did not register"))
	defer cancel()
	if n.Kubelet, err = kubelet.Register(ctx, root); err != nil {
		return nil, n.withLog(fmt.Errorf("start the driver: %w", err))
	}
	e.onClose(n.Kubelet.Close)
	return n, nil
}

func (n *node) stop(process *os.Process, ended <-chan error) error {
	_ = process.Signal(unix.SIGTERM) // Fails only if the process has ended, which the next lines report.
	select {
	case err := <-ended:
		if err != nil {
			return n.withLog(fmt.Errorf("the driver did not end well: %w", err))
		}
		return nil
	case <-time.After(30 * time.Second):
		_ = process.Kill()
		<-ended
		return n.withLog(errors.New("the driver did not end within 30 s of SIGTERM"))
	}
}

// withLog adds the end of the driver's log to an error.
func (n *node) withLog(err error) error {
	log, _ := os.ReadFile(n.log) // The error is useful without the log, too.
	return fmt.Errorf("%w; the end of its log:\n%s", err, log[max(0, len(log)-4096):])
}

// volume is a published volume, or one that can be published.
type volume struct {
	pod     kubelet.Pod
	request *csi.NodePublishVolumeRequest
	layout  attributes.Layout
	// refreshed is the time at which the last refresh became visible.
	refreshed time.Time
}

const volumeName = "keys"

// file returns the path of the main key.
func (v *volume) file() string { return filepath.Join(v.request.GetTargetPath(), mainKey) }

// event is an inotify event: the watched path, the mask, and the name.
type event struct {
	path string
	mask uint32
	name string
}

// event returns the event with which a new version of the volume becomes visible: of all files, or with the layout
// in-place of the main key.
func (v *volume) event() event {
	switch v.layout {
	case attributes.LayoutFiles:
		return event{v.request.GetTargetPath(), unix.IN_DELETE, "..pending"}
	case attributes.LayoutInPlace:
		return event{v.file(), unix.IN_MODIFY, ""}
	}
	return event{v.request.GetTargetPath(), unix.IN_MOVED_TO, "..data"}
}

// prepare creates the volume's directory, as kubelet does before its call.
func (n *node) prepare(object string) (*volume, error) {
	name := n.env.name("pod")
	pod := kubelet.Pod{Namespace: namespace, Name: name, UID: name + "-6f0a3c1e"}
	of := kubelet.Volume{Name: volumeName, Attributes: owned("secretName", object)}
	if n.layout != "" {
		of.Attributes["layout"] = string(n.layout)
	}
	return n.prepareOf(pod, of)
}

func (n *node) prepareOf(pod kubelet.Pod, of kubelet.Volume) (*volume, error) {
	v := &volume{pod: pod, request: n.Request(pod, of), layout: n.layout}
	return v, os.MkdirAll(filepath.Dir(v.request.GetTargetPath()), 0o750)
}

// owned returns the attributes of a volume with owner and mode, and another attribute.
func owned(key, value string) map[string]string {
	return map[string]string{
		key: value, "uid": strconv.Itoa(owner), "gid": strconv.Itoa(owner), "mode": fmt.Sprintf("%#o", fileMode),
	}
}

func (n *node) publish(ctx context.Context, object string) (*volume, error) {
	v, err := n.prepare(object)
	if err != nil {
		return nil, err
	}
	_, err = n.NodePublishVolume(ctx, v.request)
	return v, err
}

// publishMany publishes a volume of each object, a few at a time.
func (n *node) publishMany(ctx context.Context, objects []string) ([]*volume, error) {
	volumes, err := n.prepareMany(objects)
	if err != nil {
		return nil, err
	}
	return volumes, lab.Concurrently(len(volumes), 8, func(i int) error {
		_, err := n.NodePublishVolume(ctx, volumes[i].request)
		return err
	})
}

func (n *node) prepareMany(objects []string) (volumes []*volume, err error) {
	for _, object := range objects {
		v, err := n.prepare(object)
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, v)
	}
	return volumes, nil
}

// unpublish unpublishes a volume and removes the directories of its pod.
func (n *node) unpublish(ctx context.Context, v *volume) error {
	if err := n.Unpublish(ctx, v.pod, volumeName); err != nil {
		return err
	}
	return n.RemovePod(v.pod)
}

func (n *node) unpublishMany(ctx context.Context, volumes []*volume) error {
	return lab.Concurrently(len(volumes), 8, func(i int) error { return n.unpublish(ctx, volumes[i]) })
}

// comeAndGo publishes and unpublishes a volume of an object, and measures both.
func (n *node) comeAndGo(ctx context.Context, object string, publish, unpublish *row) error {
	v, err := n.prepare(object)
	if err != nil {
		return err
	}
	return n.measure(ctx, v, publish, unpublish)
}

// comeAndGoOf is comeAndGo for a volume of an existing pod.
func (n *node) comeAndGoOf(ctx context.Context, pod kubelet.Pod, of kubelet.Volume, publish, unpublish *row) error {
	v, err := n.prepareOf(pod, of)
	if err != nil {
		return err
	}
	return n.measure(ctx, v, publish, unpublish)
}

func (n *node) measure(ctx context.Context, v *volume, publish, unpublish *row) error {
	start := time.Now()
	if _, err := n.NodePublishVolume(ctx, v.request); err != nil {
		return err
	}
	publish.time(time.Since(start))
	start = time.Now()
	_, err := n.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{
		VolumeId: v.request.GetVolumeId(), TargetPath: v.request.GetTargetPath(),
	})
	if err != nil {
		return err
	}
	unpublish.time(time.Since(start))
	if err := os.Remove(filepath.Dir(v.request.GetTargetPath())); err != nil {
		return err
	}
	return n.RemovePod(v.pod)
}
