// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command fsuser-cluster starts and ends the test cluster of package cluster:
//
//	fsuser-cluster up                  start it; it runs on in the background
//	fsuser-cluster shell [command...]  a shell, or a command, inside it
//	fsuser-cluster down                end it
//	fsuser-cluster import <tar>...     import images
//	fsuser-cluster unpack <deb>...     unpack Debian packages, print the folder
//
// The environment variable KUBERNETES chooses the minor version of the cluster's Kubernetes, for example 1.35. `-run
// <folder>` before the first word names a run folder other than .cache/cluster. `-nodes <number>` before up is the
// number of nodes of the cluster. The words keep, init, node and boot are for the cluster's own processes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/fsuser-csi/fsuser-csi/test/cluster"
	"github.com/fsuser-csi/fsuser-csi/test/cluster/supervisor"
)

func main() {
	flags := flag.NewFlagSet("fsuser-cluster", flag.ExitOnError)
	runDir := flags.String("run", "", "`folder` of the cluster (default: cluster in the cache folder)")
	nodes := flags.Int("nodes", 1, "`number` of nodes of the cluster")
	_ = flags.Parse(os.Args[1:]) // It exits after an error.
	err := errUsage
	if flags.NArg() > 0 {
		err = do(*runDir, *nodes, flags.Arg(0), flags.Args()[1:])
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() > 0 && flags.Arg(0) == "shell" {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fsuser-cluster:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("say one of: up, down, shell [command...], import <tar>..., unpack <package>...")

func do(runDir string, nodes int, word string, args []string) error {
	switch word {
	case "keep", "init", "node", "boot":
		return supervise(word, args)
	case "shell":
		return shell(runDir, args)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch word {
	case "up":
		return up(ctx, runDir, nodes)
	case "down":
		return cluster.Down(ctx, runDir)
	case "import":
		return importAll(ctx, runDir, args)
	case "unpack":
		return unpack(ctx, args)
	default:
		return errUsage
	}
}

func supervise(word string, args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	spec, err := supervisor.ParseSpec(args[0])
	if err != nil {
		return err
	}
	switch word {
	case "keep":
		return supervisor.Keep(spec)
	case "init":
		return supervisor.Init(spec)
	case "boot":
		return supervisor.Boot(spec)
	default:
		return supervisor.Node(spec)
	}
}

// ignoreInterrupt makes this process ignore a Ctrl-C. Its child processes do not ignore it, in contrast to
// signal.Ignore, which children inherit.
func ignoreInterrupt() {
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
}
