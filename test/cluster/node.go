// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/supervisor"
)

// Node is a node of a cluster. The first one also has the control plane. Only the others can be cut off and powered
// off.
type Node struct {
	cluster *Cluster
	number  supervisor.Number
}

func (c *Cluster) first() *Node { return &Node{cluster: c, number: 1} }

// Nodes returns the nodes, including those that are powered off.
func (c *Cluster) Nodes() ([]*Node, error) {
	state, err := supervisor.ReadState(c.runDir)
	if err != nil {
		return nil, err
	}
	var nodes []*Node
	for number := supervisor.Number(1); number <= state.Spec.Nodes; number++ {
		nodes = append(nodes, &Node{cluster: c, number: number})
	}
	return nodes, nil
}

// Name returns the node's name in Kubernetes.
func (n *Node) Name() string { return n.number.Name() }

// Cluster returns the cluster of the node.
func (n *Node) Cluster() *Cluster { return n.cluster }

func (n *Node) paths() supervisor.Paths { return supervisor.Paths(n.cluster.runDir).Node(n.number) }

// Command returns a command that runs in the node's namespaces: with kubelet's mounts and the node's network, and with
// kubectl, ctr and helm in PATH and configured. The kernel kills the command with the node.
func (n *Node) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	// env searches the command in the PATH of the node, whereas nsenter would use its own PATH.
	args = append([]string{"env", "--", name}, args...)
	if n.number > 1 {
		state, err := supervisor.ReadNodeState(n.cluster.runDir, n.number)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("run a command on %s: the node is off", n.Name())
		}
		if err != nil {
			return nil, err
		}
		args = enter(state.InitPID, args, "--mount", "--net", "--pid", "--ipc", "--uts")
	}
	return n.cluster.enter(ctx, n.paths(), args, "--mount", "--net", "--pid", "--ipc", "--uts")
}

// enter returns a command that runs in namespaces of the cluster.
func (c *Cluster) enter(
	ctx context.Context, paths supervisor.Paths, command []string, namespaces ...string,
) (*exec.Cmd, error) {
	state, err := supervisor.ReadState(c.runDir)
	if err != nil {
		return nil, err
	}
	args := enter(state.InitPID, command, namespaces...)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = supervisor.Environment(paths)
	cmd.WaitDelay = 10 * time.Second
	return cmd, nil
}

func enter(pid int, command []string, namespaces ...string) []string {
	args := append([]string{"nsenter", "--target=" + strconv.Itoa(pid)}, namespaces...)
	return append(append(args, "--"), command...)
}

// Run runs a command like Command, and returns its standard output. The error contains its standard error.
func (n *Node) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd, err := n.Command(ctx, name, args...)
	if err != nil {
		return "", err
	}
	return output(cmd, name, args)
}

func (n *Node) importImage(ctx context.Context, tar string) error {
	file, err := os.Open(tar)
	if err != nil {
		return err
	}
	defer file.Close()
	args := supervisor.ImportArgs("-") // The path of the tar need not exist inside of the cluster.
	cmd, err := n.Command(ctx, "ctr", args...)
	if err != nil {
		return err
	}
	cmd.Stdin = file
	_, err = output(cmd, "ctr", args)
	return err
}

// Kill kills one of the supervised programs: kubelet, containerd or kube-proxy. It is started again after half a
// second. Kill does not wait for that.
func (n *Node) Kill(ctx context.Context, program string) error {
	pid, err := os.ReadFile(filepath.Join(n.paths().PIDs(), program))
	if err != nil {
		return fmt.Errorf("kill %s: %w", program, err)
	}
	if _, err := n.Run(ctx, "kill", "-KILL", strings.TrimSpace(string(pid))); err != nil {
		return fmt.Errorf("kill %s: %w", program, err)
	}
	return nil
}

// CutOff takes down the node's link to the other nodes.
func (n *Node) CutOff(ctx context.Context) error {
	return n.ip(ctx, "cut it off", n.number.Disconnect())
}

// Connect connects the node again after CutOff.
func (n *Node) Connect(ctx context.Context) error {
	return n.ip(ctx, "connect it", n.number.Connect())
}

// ip runs commands of ip on the first node.
func (n *Node) ip(ctx context.Context, action string, commands []string) error {
	if err := n.refuseFirst(action); err != nil {
		return err
	}
	cmd, err := n.cluster.Command(ctx, "ip", "-batch", "-")
	if err != nil {
		return err
	}
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n"))
	_, err = output(cmd, "ip", commands)
	return err
}

// PowerOff kills all processes of the node at once and waits for their end. The mounts of the node and the files below
// /run are gone, too. The files of kubelet and containerd stay.
func (n *Node) PowerOff(ctx context.Context) error {
	if err := n.refuseFirst("power it off"); err != nil {
		return err
	}
	state, err := supervisor.ReadNodeState(n.cluster.runDir, n.number)
	if err != nil {
		return fmt.Errorf("power off %s: %w", n.Name(), err)
	}
	// The kernel lets process 1 end after all others in its PID namespace.
	const script = `kill -KILL "$1" && while kill -0 "$1" 2>&-; do sleep 0.05; done`
	if _, err := n.cluster.Run(ctx, "sh", "-c", script, "sh", strconv.Itoa(state.InitPID)); err != nil {
		return fmt.Errorf("power off %s: %w", n.Name(), err)
	}
	return supervisor.RemoveNodeState(n.cluster.runDir, n.number)
}

// Boot starts a node that is powered off and waits until it is Ready. kubeletArgs override the flags of package
// supervisor and of Options.
func (n *Node) Boot(ctx context.Context, kubeletArgs ...string) error {
	if err := n.refuseFirst("boot it"); err != nil {
		return err
	}
	state, err := supervisor.ReadState(n.cluster.runDir)
	if err != nil {
		return err
	}
	spec := state.Spec
	spec.Node = n.number
	spec.KubeletArgs = append(spec.KubeletArgs[:len(spec.KubeletArgs):len(spec.KubeletArgs)], kubeletArgs...)
	// The cluster's own program starts the node in the machine's mount namespace, so that the node gets the mounts of the
	// machine instead of those of the first node.
	program := fmt.Sprintf("/proc/%d/exe", state.InitPID)
	boot := []string{program, "boot", spec.String()}
	cmd, err := n.cluster.enter(ctx, n.paths(), boot, "--net", "--pid", "--ipc", "--uts")
	if err != nil {
		return err
	}
	cmd.Env = append(os.Environ(), "FSUSER_CACHE="+spec.CacheDir)
	if _, err := output(cmd, "fsuser-cluster", []string{"boot"}); err != nil {
		return fmt.Errorf("boot %s: %w; logs are in %s", n.Name(), err, n.paths().Logs())
	}
	return nil
}

func (n *Node) refuseFirst(action string) error {
	if n.number == 1 {
		return fmt.Errorf("%s has the control plane: the tests cannot %s", n.Name(), action)
	}
	return nil
}
