// SPDX-License-Identifier: Apache-2.0

// Command bench measures the driver. In the same run it measures the kernel, the API server, kubelet and other drivers
// with the same work:
//
//	cd test/bench && go run .                  # everything, about five minutes; root
//	cd test/bench && go run . -run refresh     # the rows that match, and their yardsticks
//	cd test/bench && go run . -quick           # every row once or twice: does the benchmark still work?
//	cd test/bench && go run . -driver /x/old   # another build of the driver, to compare
//
// The driver is its real binary in a process of its own, which the benchmark calls over its socket, as kubelet would.
// The API server and etcd are real (test/controlplane). A missed goal is printed, but it is no error: machines differ,
// and the ratios to the yardsticks matter. A failed operation is an error, and the exit code is 1. Updates of one
// object are more than 100 ms apart, which is the minimum interval between two refreshes of one volume.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
)

// The roles of the processes of this program.
const (
	roleRun  = "run"
	rolePeer = "peer"
)

func main() {
	testkit.RunHelper(nil)
	var err error
	switch lab.Role() {
	case roleRun:
		err = run()
	case rolePeer:
		err = servePeer(peer(os.Args[1]), os.Args[2], os.Args[3])
	default:
		var code int
		if code, err = lab.RunInNamespaces(roleRun, unix.CLONE_NEWNS, (*exec.Cmd).Start); err == nil {
			os.Exit(code)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	quick := flag.Bool("quick", false, "small numbers: every benchmark runs, the figures mean nothing")
	asJSON := flag.Bool("json", false, "print JSON instead of a table")
	pattern := flag.String("run", "", "measure only the rows that match this `regexp`, and their yardsticks")
	binary := flag.String("driver", "", "measure this binary of the driver, instead of one built now (an absolute `path`)")
	n := flag.Int("n", 300, "how often an operation is measured")
	flag.Parse()
	wanted, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if flag.NArg() > 0 || *n < 1 {
		return errors.New("it takes no arguments but flags, and -n is at least 1")
	}
	size := full(*n)
	if *quick {
		size = small()
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()

	e, err := newEnv(size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	if *binary != "" {
		e.binary = lazy[string]{made: true, value: *binary}
	}
	rows, err := measure(ctx, e, wanted)
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(os.Stdout, rows)
	}
	return printTable(os.Stdout, rows)
}
