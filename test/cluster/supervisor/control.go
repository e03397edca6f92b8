// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

// controlNode is the first node, which also has the control plane.
type controlNode struct {
	node
	control *controlplane.ControlPlane
}

// runControlNode prepares its namespaces and runs the cluster. It returns when keep ends or when the cluster fails,
// always with an error.
func runControlNode(spec Spec) error {
	alive := inherited(aliveFD, "alive")
	_ = inherited(lockFD, "lock") // holds the lock to the end
	listener, err := net.FileListener(inherited(listenerFD, "listener"))
	if err != nil {
		return fmt.Errorf("use the listener: %w", err)
	}
	n := &controlNode{node: newNode(spec)}
	go func() {
		_, _ = io.ReadAll(alive)
		n.fail(errKeepEnded)
	}()
	cause := n.runUntilFailure(func(ctx context.Context) error { return n.start(ctx, listener) })
	if !errors.Is(cause, errKeepEnded) {
		return cause // keep cleans up.
	}
	// This kills all processes that this process may kill except itself: all except init.
	if err := syscall.Kill(-1, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill all: %w", err)
	}
	return errors.Join(cause, n.detach(), cleanWithin(cleanTimeout, spec.RunDir))
}

var errKeepEnded = errors.New("the keep process ended")

func (n *controlNode) start(ctx context.Context, listener net.Listener) error {
	begin := time.Now()
	if err := inOrder(
		n.makeFolders,
		n.setUpMounts,
		n.setUpNetwork,
		func() error { return makeCgroups(n.cgroup()) },
	); err != nil {
		return err
	}
	n.report.step(begin, "namespaces: mounts, network, cgroup %s", n.cgroup())

	// containerd and the API server do not depend on each other.
	if err := inParallel(
		func() error { return n.startRuntime(ctx) },
		func() error { return n.startControlPlane(ctx, listener) },
	); err != nil {
		return err
	}
	begin = time.Now()
	if err := inOrder(
		n.writeCredentials,
		n.startKubelet,
		n.startControllers,
		n.startProxy,
		func() error { return n.waitReady(ctx) },
	); err != nil {
		return err
	}
	n.report.step(begin, "scheduler, controller manager, kube-proxy, kubelet: node %s is Ready", n.number.Name())
	return nil
}

func (n *controlNode) startControlPlane(ctx context.Context, listener net.Listener) error {
	begin := time.Now()
	log, err := os.Create(filepath.Join(n.paths.Logs(), "control-plane.log"))
	if err != nil {
		return fmt.Errorf("make the log of the control plane: %w", err)
	}
	control, err := controlplane.Start(ctx, controlplane.Options{
		Dir:        n.paths.Data("control-plane"),
		Advertise:  netip.MustParseAddr(firstNode.Address()),
		Port:       n.spec.APIServerPort,
		Log:        log,
		Kubernetes: n.spec.Kubernetes,
		ExtraArgs:  n.spec.APIServerArgs,
	})
	if err != nil {
		return err
	}
	n.control = control
	go func() { n.fail(control.Wait(n.life)) }()
	go forward(listener, control.APIServerAddress())
	if err := control.Kubeconfig(n.paths.Kubeconfig(), control.AdminConfig()); err != nil {
		return err
	}
	n.report.step(begin, "etcd and API server, on the machine at %s", control.APIServerAddress())
	return nil
}
