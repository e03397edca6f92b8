// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/supervisor"
)

// Names inside of a cluster.
const (
	NodeName    = "node"                 // the name of the first node
	KubeletRoot = supervisor.KubeletRoot // kubelet's root directory as Command sees it
)

// Cluster is a running cluster. It is safe for concurrent use.
type Cluster struct {
	runDir string
	// alive ends the cluster when it is closed. It is nil for a detached cluster, and for a cluster of another process.
	alive *os.File
}

// Open returns the running cluster of a folder. An empty runDir means DefaultRunDir.
func Open(runDir string) (*Cluster, error) {
	o, err := Options{RunDir: runDir}.withDefaults()
	if err != nil {
		return nil, err
	}
	if _, err := supervisor.ReadState(o.RunDir); err != nil {
		return nil, err
	}
	return &Cluster{runDir: o.RunDir}, nil
}

// Down ends the cluster and waits until nothing of it is left: no process, mount, interface or cgroup, and only logs in
// the run folder. It may be called repeatedly.
func (c *Cluster) Down(ctx context.Context) error {
	return Down(ctx, c.runDir)
}

// Down ends the cluster of a folder, if one is running, and removes what a crash may have left there. An empty runDir
// means DefaultRunDir.
func Down(ctx context.Context, runDir string) error {
	o, err := Options{RunDir: runDir}.withDefaults()
	if err != nil {
		return err
	}
	if err := supervisor.Stop(ctx, o.RunDir); err != nil {
		return fmt.Errorf("end cluster: %w", err)
	}
	return nil
}

// RunDir returns the cluster's folder.
func (c *Cluster) RunDir() string { return c.runDir }

// Kubeconfig returns the path of the administrator's kubeconfig. It works on the machine and inside of the cluster.
func (c *Cluster) Kubeconfig() string { return supervisor.Paths(c.runDir).Kubeconfig() }

// Logs returns the folder with the log of each program. The folder outlives the cluster.
func (c *Cluster) Logs() string { return supervisor.Paths(c.runDir).Logs() }

// Bin returns a folder with kubectl, helm, ctr and other programs.
func (c *Cluster) Bin() string { return supervisor.Paths(c.runDir).Bin() }

// Command returns a command that runs on the first node, like [Node.Command].
func (c *Cluster) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	return c.first().Command(ctx, name, args...)
}

// Run runs a command on the first node, like [Node.Run].
func (c *Cluster) Run(ctx context.Context, name string, args ...string) (string, error) {
	return c.first().Run(ctx, name, args...)
}

// Kill kills a program of the first node, like [Node.Kill], or kube-scheduler or kube-controller-manager.
func (c *Cluster) Kill(ctx context.Context, program string) error {
	return c.first().Kill(ctx, program)
}

// Import imports the image of a docker-archive tar, which package images builds, on all nodes.
func (c *Cluster) Import(ctx context.Context, tar string) error {
	nodes, err := c.Nodes()
	if err != nil {
		return err
	}
	for _, node := range nodes {
		if err := node.importImage(ctx, tar); err != nil {
			return fmt.Errorf("import image %s on %s: %w", tar, node.Name(), err)
		}
	}
	return nil
}

func output(cmd *exec.Cmd, name string, args []string) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
		return string(stdout), err
	}
	return string(stdout), nil
}
