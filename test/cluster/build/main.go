// SPDX-License-Identifier: Apache-2.0

// Command build compiles programs of the test cluster into the cache that
// package tools describes:
//
//	go run ./test/cluster/build kube-apiserver etcd
//
// It builds only what is missing, prints one line for each, and is safe to
// interrupt and to run twice at once.
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
	if len(names) == 0 {
		var known []string
		for _, t := range tools.All() {
			known = append(known, t.Name)
		}
		return fmt.Errorf("name the tools to build, of: %s", strings.Join(known, ", "))
	}
	wanted := make([]tools.Tool, len(names))
	for i, name := range names {
		t, err := tools.Lookup(name)
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
