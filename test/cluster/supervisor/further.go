// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"k8s.io/client-go/tools/clientcmd"
)

// Boot starts a further node and waits until the node is Ready. It runs in the machine's mount namespace and otherwise
// in the cluster's namespaces, so that process 1 of the cluster becomes the parent of process 1 of the node, and the
// kernel ends the node with the cluster.
func Boot(spec Spec) (err error) {
	state := Paths(spec.RunDir).Node(spec.Node).State()
	if _, err := os.Stat(state); err == nil {
		return fmt.Errorf("boot %s: the node is on", spec.Node.Name())
	}
	if err := makeNodeFolder(spec); err != nil {
		return err
	}
	progress, network, pid, err := startFurtherInit(spec)
	if err != nil {
		return err
	}
	defer progress.Close()
	defer func() {
		if err != nil {
			_ = syscall.Kill(pid, syscall.SIGKILL) // This fails only if the process has ended.
			_ = os.Remove(state)                   // This fails only if the file does not exist.
		}
	}()
	err = errors.Join(plugIn(spec.Node, pid), network.Close())
	if err != nil {
		return err
	}
	if err := (State{InitPID: pid, Spec: spec}).write(state); err != nil {
		return err
	}
	return awaitReady(progress, spec.Node)
}

// awaitReady reads the messages of a node until the node is Ready or has failed.
func awaitReady(progress io.Reader, node Number) error {
	for messages := json.NewDecoder(progress); ; {
		var message Message
		if err := messages.Decode(&message); err != nil {
			return fmt.Errorf("read the progress of %s, which has ended: %w", node.Name(), err)
		}
		switch {
		case message.Ready:
			return nil
		case message.Error != "":
			return errors.New(message.Error)
		}
	}
}

// makeNodeFolder makes the node's folder. The node's logs are in the cluster's folder of logs.
func makeNodeFolder(spec Spec) error {
	cluster := Paths(spec.RunDir)
	logs := filepath.Join(cluster.Logs(), spec.Node.Name())
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return fmt.Errorf("make folder of the node: %w", err)
	}
	if err := os.Symlink(logs, cluster.Node(spec.Node).Logs()); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make folder of the node: %w", err)
	}
	return nil
}

// startFurtherInit starts process 1 of the node's namespaces. The node waits until network is closed.
func startFurtherInit(spec Spec) (progress, network *os.File, pid int, err error) {
	path := filepath.Join(Paths(spec.RunDir).Logs(), "supervisor.log")
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("open the log of the node: %w", err)
	}
	defer log.Close()
	progress, progressWrite, err := os.Pipe()
	if err != nil {
		return nil, nil, 0, fmt.Errorf("make pipe: %w", err)
	}
	defer progressWrite.Close()
	networkRead, network, err := os.Pipe()
	if err != nil {
		progress.Close()
		return nil, nil, 0, fmt.Errorf("make pipe: %w", err)
	}
	defer networkRead.Close()
	cmd := exec.Command(self, "init", spec.String())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{progressWrite, networkRead}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Setsid: true}
	if err := cmd.Start(); err != nil {
		progress.Close()
		network.Close()
		return nil, nil, 0, fmt.Errorf("start process 1 of new namespaces: %w", err)
	}
	return progress, network, cmd.Process.Pid, nil
}

// ReadNodeState returns the state of a further node from its last boot. The error is fs.ErrNotExist while the node is
// off.
func ReadNodeState(runDir string, node Number) (State, error) {
	return readState(Paths(runDir).Node(node).State())
}

// RemoveNodeState records that the node is off.
func RemoveNodeState(runDir string, node Number) error {
	return os.Remove(Paths(runDir).Node(node).State())
}

// runFurtherNode runs the programs of a node without a control plane, until one of them fails.
func runFurtherNode(spec Spec) error {
	network := inherited(networkFD, "network")
	n := newNode(spec)
	return n.runUntilFailure(func(ctx context.Context) error {
		if _, err := io.ReadAll(network); err != nil {
			return fmt.Errorf("wait for the network: %w", err)
		}
		return inOrder(
			n.makeFolders,
			n.setUpMounts,
			n.setUpNetwork,
			// A reboot removes cgroups. Otherwise kubelet would search them for running containers.
			func() error { return removeCgroups(ctx, n.cgroup()) },
			func() error { return makeCgroups(n.cgroup()) },
			func() error { return n.startRuntime(ctx) },
			n.startKubelet,
			n.startProxy,
			func() error { return n.waitFurtherReady(ctx) },
		)
	})
}

func (n *node) waitFurtherReady(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", n.paths.kubeletConfig())
	if err != nil {
		return fmt.Errorf("make a client of the API server: %w", err)
	}
	return n.waitNodeReady(ctx, config)
}
