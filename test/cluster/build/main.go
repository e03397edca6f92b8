// SPDX-License-Identifier: Apache-2.0

// Command build compiles programs of the test cluster into the cache that
// package tools describes:
//
//	go run ./test/cluster/build kube-apiserver etcd
//
// The environment variable KUBERNETES chooses a minor version of Kubernetes other than the newest, for example 1.35.
// The command builds only missing programs and prints one line for each. It may be interrupted, and two of it may run
// at the same time.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, names []string) error {
	version, err := tools.FromEnvironment()
	if err != nil {
		return err
	}
	if len(names) == 0 {
		var known []string
		for _, t := range tools.All(version) {
			known = append(known, t.Name)
		}
		return fmt.Errorf("name the tools to build, of: %s", strings.Join(known, ", "))
	}
	wanted := make([]tools.Tool, len(names))
	for i, name := range names {
		t, err := tools.Lookup(version, name)
		if err != nil {
			return err
		}
		wanted[i] = t
	}
	for _, t := range wanted {
		if err := build(ctx, t, os.Stdout); err != nil {
			return err
		}
	}
	return nil
}
