// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/images"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

const containerdSocket = "/run/containerd/containerd.sock"

// socketInterval is the pause between two attempts to connect.
const socketInterval = 50 * time.Millisecond

// startRuntime starts containerd and imports the first images.
func (n *node) startRuntime(ctx context.Context) error {
	begin := time.Now()
	for _, tool := range tools.OfCluster(n.spec.Kubernetes) {
		path, err := tool.Binary()
		if err != nil {
			return err
		}
		// After a reboot, the link exists already.
		if err := os.Symlink(path, filepath.Join(n.paths.Bin(), tool.Name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("link programs: %w", err)
		}
	}
	config := n.paths.Data("config", "containerd.toml")
	if err := n.writeConfig(config, n.containerdConfig()); err != nil {
		return err
	}
	if err := n.run("containerd", "--config="+config); err != nil {
		return err
	}
	if err := waitSocket(ctx, containerdSocket); err != nil {
		return fmt.Errorf("wait for containerd: %w", err)
	}
	for _, tar := range n.spec.Images {
		ctr := exec.CommandContext(ctx, filepath.Join(n.paths.Bin(), "ctr"), ImportArgs(tar)...)
		ctr.Env = Environment(n.paths)
		if output, err := ctr.CombinedOutput(); err != nil {
			return fmt.Errorf("import %s: %w\n%s", tar, err, output)
		}
	}
	n.report.step(begin, "containerd, with %d images", len(n.spec.Images))
	return nil
}

// ImportArgs returns the arguments of ctr for importing a docker-archive tar for kubelet.
func ImportArgs(tar string) []string {
	return []string{"-n", "k8s.io", "images", "import", "--all-platforms", "--local", tar}
}

func waitSocket(ctx context.Context, path string) error {
	ticker := time.NewTicker(socketInterval)
	defer ticker.Stop()
	for {
		connection, err := net.Dial("unix", path)
		if err == nil {
			return connection.Close()
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("connect to %s: %w: %w", path, context.Cause(ctx), err)
		}
	}
}

// containerdConfig returns the configuration of containerd. Its state folder is on the namespace's /run, where shims
// also have their sockets.
func (n *node) containerdConfig() string {
	return `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
# It would make a folder in /opt.
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
  address = "` + containerdSocket + `"

[plugins."io.containerd.cri.v1.runtime"]
  # Lowering the score of the shim takes a privilege that a container of CI may not have.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = ` + strconv.Quote(filepath.Join(n.paths.Bin(), "runc")) + `
        SystemdCgroup = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = ` + strconv.Quote(n.paths.Data("cni", "net.d")) + `

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "` + n.snapshotter() + `"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "` + images.PauseName + `"
`
}

// snapshotter returns the snapshotter. An overlay cannot be the upper layer of another overlay, which would happen if
// the run folder is in the file system of a container.
func (n *node) snapshotter() string {
	if isType(n.paths.Data("containerd"), unix.OVERLAYFS_SUPER_MAGIC) {
		return "native"
	}
	return "overlayfs"
}
