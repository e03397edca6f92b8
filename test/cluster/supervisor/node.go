// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// startTimeout bounds a start. It takes about 15 seconds on an idle machine.
const startTimeout = 5 * time.Minute

// node is the state of the process node.
type node struct {
	spec   Spec
	number Number
	paths  Paths // the paths of the node
	report *reporter
	life   context.Context         // the lifetime of the node
	fail   context.CancelCauseFunc // ends life
}

// Node runs the node of its namespaces. It always returns an error.
func Node(spec Spec) error {
	if spec.Node > firstNode {
		return runFurtherNode(spec)
	}
	return runControlNode(spec)
}

func newNode(spec Spec) node {
	life, fail := context.WithCancelCause(context.Background())
	number := max(spec.Node, firstNode)
	return node{
		spec:   spec,
		number: number,
		paths:  Paths(spec.RunDir).Node(number),
		report: &reporter{out: inherited(progressFD, "progress")},
		life:   life,
		fail:   fail,
	}
}

// runUntilFailure starts the node, reports that, and returns the reason for its end.
func (n *node) runUntilFailure(start func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(n.life, startTimeout, fmt.Errorf("not done after %s", startTimeout))
	defer cancel()
	if err := start(ctx); err != nil {
		n.report.send(Message{Error: err.Error()})
		n.fail(err)
	} else {
		n.report.send(Message{Ready: true})
	}
	<-n.life.Done()
	return context.Cause(n.life)
}

// inOrder calls the functions until one returns an error.
func inOrder(functions ...func() error) error {
	for _, function := range functions {
		if err := function(); err != nil {
			return err
		}
	}
	return nil
}

// inParallel calls the functions at the same time and joins their errors.
func inParallel(functions ...func() error) error {
	errs := make([]error, len(functions))
	var group sync.WaitGroup
	for i, function := range functions {
		group.Go(func() { errs[i] = function() })
	}
	group.Wait()
	return errors.Join(errs...)
}

// cgroup returns the name of the parent of all cgroups of the node.
func (n *node) cgroup() string {
	cluster := Paths(n.spec.RunDir).Cgroup()
	if n.number == firstNode {
		return cluster
	}
	return filepath.Join(cluster, n.number.Name())
}

func (n *node) makeFolders() error {
	for _, dir := range []string{
		n.paths.Bin(), n.paths.Logs(), n.paths.PIDs(),
		n.paths.Data("cni", "net.d"), n.paths.Data("cni", "state"), n.paths.Data("containerd"),
		n.paths.Data("kubelet"), n.paths.Data("pod-logs"), n.paths.Data("home"), n.paths.Data("config"),
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make folder of the node: %w", err)
		}
	}
	return nil
}
