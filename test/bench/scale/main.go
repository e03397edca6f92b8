// SPDX-License-Identifier: Apache-2.0

// Command scale measures what many drivers cost an API server, and the cost of kubelet's own watch manager for the same
// objects on the same API server:
//
//	make scale                                                          # 50 nodes, 5,000 watches; root
//	cd test/bench && go run ./scale -driver ../../bin/fsuser-csi -quick # 5 nodes: do all steps work?
//
// The API server, etcd and the drivers are real processes. Kubelet's manager is the package of Kubernetes. The exit
// code is 1 if a row of the driver is worse than kubelet's, beyond the noise of the run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/test/bench/lab"
	"github.com/fsuser-csi/fsuser-csi/test/loopback"
)

// The roles of the processes of this program.
const (
	roleRun     = "run"
	roleKubelet = "kubelet"
)

func main() {
	var err error
	switch lab.Role() {
	case roleRun:
		err = run()
	case roleKubelet:
		err = serveKubelet(os.Stdin, os.Stdout, os.Args[1])
	default:
		var code int
		if code, err = inNamespaces(); err == nil {
			os.Exit(code)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// options are the flags of the command.
type options struct {
	quick  bool
	driver string
	page   string
	keep   string
	phase  string
}

func parseFlags() (o options, err error) {
	flag.BoolVar(&o.quick, "quick", false, "small numbers: each step runs, and the figures mean nothing")
	flag.StringVar(&o.driver, "driver", "", "the `path` of the driver's binary")
	flag.StringVar(&o.page, "page", "", "write the page with the results to this `file`, without -quick and -phase")
	flag.StringVar(&o.keep, "keep", "", "write the API server's profiles to this `directory`")
	flag.StringVar(&o.phase, "phase", "", "run only this `phase`, after the watches have begun, and write no page: "+
		"hold, shared, restart, rolling, storm or renew")
	flag.Parse()
	if flag.NArg() > 0 || o.driver == "" {
		return o, errors.New("it takes no arguments but flags, and it needs -driver")
	}
	o.driver, err = filepath.Abs(o.driver)
	return o, err
}

// inNamespaces runs this program again in a mount namespace and a network namespace: the kernel's counters of
// connections count only the connections of this run. It returns the exit code of the other process.
func inNamespaces() (code int, err error) {
	// Wrong flags are an error here, before the other process starts.
	if _, err := parseFlags(); err != nil {
		return 0, err
	}
	servers, clients, err := splitCPUs()
	if err != nil {
		return 0, err
	}
	return lab.RunInNamespaces(roleRun, unix.CLONE_NEWNS|unix.CLONE_NEWNET, func(cmd *exec.Cmd) error {
		cmd.Env = append(cmd.Env, clientCPUsVariable+"="+clients)
		return startOn(servers, cmd)
	})
}

func run() (err error) {
	o, err := parseFlags()
	if err != nil {
		return err
	}
	if err := loopback.Up(); err != nil {
		return err
	}
	dir, remove, err := workDir()
	if err != nil {
		return err
	}
	defer remove()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, runTimeout, fmt.Errorf("not done after %v", runTimeout))
	defer cancel()

	start := time.Now()
	size := full()
	if o.quick {
		size = small()
	}
	if !o.wanted("hold") {
		size.idle, size.hold = time.Second, time.Second
	}
	r := &results{size: size, machine: lab.Machine(machineCPUs())}
	if err := measure(ctx, o, size, dir, r); err != nil {
		return err
	}
	r.took = time.Since(start)
	r.derive()
	if err := r.print(os.Stdout); err != nil {
		return err
	}
	if o.quick {
		return r.checkLimit()
	}
	if o.page != "" && o.phase == "" {
		if err := r.writePage(o.page); err != nil {
			return err
		}
	}
	return r.verdict()
}

// runTimeout bounds the run: a run that never ends is a failure.
const runTimeout = 25 * time.Minute

// workDir makes a directory on a tmpfs, so that no figure depends on a disk.
func workDir() (dir string, remove func(), err error) {
	// The path is short, because a unix socket below it has at most 107 bytes.
	if dir, err = os.MkdirTemp("", "scale-"); err != nil {
		return "", nil, err
	}
	remove = func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH) // The mount namespace ends with the process.
		_ = os.Remove(dir)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
		remove()
		return "", nil, fmt.Errorf("mount tmpfs at %s: %w", dir, err)
	}
	return dir, remove, nil
}

// wanted reports whether a phase runs.
func (o options) wanted(phase string) bool { return o.phase == "" || o.phase == phase }

// keepFile copies a file of the run to the directory of -keep.
func (o options) keepFile(name string, content []byte) error {
	if o.keep == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(o.keep, name), content, 0o600)
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
