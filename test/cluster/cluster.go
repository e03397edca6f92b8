// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/supervisor"
)

// What a cluster has inside.
const (
	NodeName    = supervisor.NodeName
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

// Command returns a command that runs in the cluster's namespaces: kubelet's
// mounts, the node's network, with kubectl, ctr and helm in PATH and
// configured. It dies with the cluster.
func (c *Cluster) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	state, err := supervisor.ReadState(c.runDir)
	if err != nil {
		return nil, err
	}
	enter := []string{
		"--target=" + strconv.Itoa(state.InitPID), "--mount", "--net", "--pid", "--ipc", "--uts", "--",
		// nsenter's own PATH is not that of the command.
		"env", "--", name,
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Env = supervisor.Environment(c.runDir)
	cmd.WaitDelay = 10 * time.Second
	return cmd, nil
}

// Run runs a command inside, as Command, and returns what it printed. The error
// has what it printed to standard error.
func (c *Cluster) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd, err := c.Command(ctx, name, args...)
	if err != nil {
		return "", err
	}
	return output(cmd, name, args)
}

func output(cmd *exec.Cmd, name string, args []string) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		return string(stdout), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(stdout), nil
}

// Import makes the image of a docker-archive tar, as package images builds them,
// known to the node.
func (c *Cluster) Import(ctx context.Context, tar string) error {
	file, err := os.Open(tar)
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	defer file.Close()
	args := supervisor.ImportArgs("-") // the path need not exist inside
	cmd, err := c.Command(ctx, "ctr", args...)
	if err != nil {
		return fmt.Errorf("import image: %w", err)
	}
	cmd.Stdin = file
	if _, err := output(cmd, "ctr", args); err != nil {
		return fmt.Errorf("import image %s: %w", tar, err)
	}
	return nil
}

// Kill kills one of the programs that are kept running: kubelet, containerd,
// kube-proxy, kube-scheduler, kube-controller-manager. It is started again half
// a second later; Kill does not wait for that.
func (c *Cluster) Kill(ctx context.Context, program string) error {
	pid, err := os.ReadFile(filepath.Join(supervisor.Paths(c.runDir).PIDs(), program))
	if err != nil {
		return fmt.Errorf("kill %s: %w", program, err)
	}
	if _, err := c.Run(ctx, "kill", "-KILL", strings.TrimSpace(string(pid))); err != nil {
		return fmt.Errorf("kill %s: %w", program, err)
	}
	return nil
}
