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

// What a cluster has inside.
const (
	NodeName    = "node"                 // of the first node
	KubeletRoot = supervisor.KubeletRoot // seen by Command
)

// Cluster is one that runs. It is safe for concurrent use.
type Cluster struct {
	runDir string
	alive  *os.File // open as long as the cluster shall live; nil: detached, or not ours
}

// Open returns the cluster that runs in a folder. Empty: DefaultRunDir.
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

// Down ends the cluster and returns when nothing is left of it: no process,
// mount, interface, cgroup, and in the run folder only logs. It may be called
// more than once.
func (c *Cluster) Down(ctx context.Context) error {
	return Down(ctx, c.runDir)
}

// Down ends the cluster of a folder, if one runs, and removes what a crash may
// have left there. Empty: DefaultRunDir.
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

// Kubeconfig returns the path of the admin's configuration, good on the machine
// and inside.
func (c *Cluster) Kubeconfig() string { return supervisor.Paths(c.runDir).Kubeconfig() }

// Logs returns the folder with the log of each program. It outlives the cluster.
func (c *Cluster) Logs() string { return supervisor.Paths(c.runDir).Logs() }

// Bin returns a folder with kubectl, helm, ctr and the rest.
func (c *Cluster) Bin() string { return supervisor.Paths(c.runDir).Bin() }

// Command returns a command that runs on the first node, as [Node.Command].
func (c *Cluster) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	return c.first().Command(ctx, name, args...)
}

// Run runs a command on the first node, as [Node.Run].
func (c *Cluster) Run(ctx context.Context, name string, args ...string) (string, error) {
	return c.first().Run(ctx, name, args...)
}

// Kill kills a program of the first node, as [Node.Kill], or kube-scheduler or
// kube-controller-manager.
func (c *Cluster) Kill(ctx context.Context, program string) error {
	return c.first().Kill(ctx, program)
}

// Import makes the image of a docker-archive tar, as package images builds them,
// known to all nodes.
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
