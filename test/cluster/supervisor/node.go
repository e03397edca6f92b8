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
	"sync"
	"syscall"
	"time"

	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

// startTimeout bounds a start. It takes about 15 seconds on an idle machine.
const startTimeout = 5 * time.Minute

// node is what the process of that name knows.
type node struct {
	spec    Spec
	paths   Paths
	report  *reporter
	life    context.Context         // of the cluster
	fail    context.CancelCauseFunc // ends it
	control *controlplane.ControlPlane
}

// Node prepares the namespaces it is in, runs the cluster, and never returns
// without an error: it ends when keep does or when the cluster cannot go on.
func Node(spec Spec) error {
	report := &reporter{out: inherited(progressFD, "progress")}
	alive := inherited(aliveFD, "alive")
	_ = inherited(lockFD, "lock") // held to the end
	listener, err := net.FileListener(inherited(listenerFD, "listener"))
	if err != nil {
		return fmt.Errorf("use the listener: %w", err)
	}
	ctx, fail := context.WithCancelCause(context.Background())
	go func() {
		_, _ = io.ReadAll(alive)
		fail(errKeepEnded)
	}()
	n := &node{spec: spec, paths: Paths(spec.RunDir), report: report, life: ctx, fail: fail}
	if err := n.start(ctx, listener); err != nil {
		report.send(Message{Error: err.Error()})
		fail(err)
	} else {
		report.send(Message{Ready: true})
	}
	<-ctx.Done()
	cause := context.Cause(ctx)
	if !errors.Is(cause, errKeepEnded) {
		return cause // keep cleans up
	}
	// Every process that this one may kill but itself: all but init.
	if err := syscall.Kill(-1, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill all: %w", err)
	}
	return errors.Join(cause, n.detach(), cleanWithin(cleanTimeout, spec.RunDir))
}

var errKeepEnded = errors.New("the keep process ended")

func (n *node) start(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not done after %s", startTimeout))
	defer cancel()
	begin := time.Now()
	for _, step := range []func() error{n.makeFolders, n.setUpMounts, n.setUpNetwork, func() error { return makeCgroups(n.paths.Cgroup()) }} {
		if err := step(); err != nil {
			return err
		}
	}
	n.report.step(begin, "namespaces: mounts, network, cgroup %s", n.paths.Cgroup())

	// containerd knows nothing of the API server and the other way round.
	if err := inParallel(
		func() error { return n.startRuntime(ctx) },
		func() error { return n.startControlPlane(ctx, listener) },
	); err != nil {
		return err
	}
	begin = time.Now()
	if err := n.startKubernetes(); err != nil {
		return err
	}
	if err := n.waitReady(ctx); err != nil {
		return err
	}
	n.report.step(begin, "scheduler, controller manager, kube-proxy, kubelet: node %s is Ready", NodeName)
	return nil
}

func (n *node) startControlPlane(ctx context.Context, listener net.Listener) error {
	begin := time.Now()
	log, err := os.Create(filepath.Join(n.paths.Logs(), "control-plane.log"))
	if err != nil {
		return fmt.Errorf("make the log of the control plane: %w", err)
	}
	control, err := controlplane.Start(ctx, controlplane.Options{
		Dir:        n.paths.Data("control-plane"),
		Advertise:  netip.MustParseAddr(NodeAddress),
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

// inParallel calls the functions at once and joins their errors.
func inParallel(functions ...func() error) error {
	errs := make([]error, len(functions))
	var group sync.WaitGroup
	for i, function := range functions {
		group.Go(func() { errs[i] = function() })
	}
	group.Wait()
	return errors.Join(errs...)
}

func (n *node) makeFolders() error {
	for _, dir := range []string{
		n.paths.Bin(), n.paths.Logs(), n.paths.PIDs(),
		n.paths.Data("cni", "net.d"), n.paths.Data("cni", "state"), n.paths.Data("containerd"),
		n.paths.Data("kubelet"), n.paths.Data("pod-logs"), n.paths.Data("home"), n.paths.Data("config"),
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make folder of the cluster: %w", err)
		}
	}
	return nil
}
