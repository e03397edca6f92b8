// SPDX-License-Identifier: Apache-2.0

// Command scale measures what many drivers cost an API server, and what kubelet's own watch manager costs the same API
// server for the same objects:
//
//	make scale                                                          # 50 nodes, 5,000 watches; root
//	cd test/bench && go run ./scale -driver ../../bin/fsuser-csi -quick # 5 nodes: do all steps work?
//
// The API server, etcd and the drivers are real processes. Kubelet's manager is the package of Kubernetes. The exit code
// is 1 if a row of the driver is worse than kubelet's, beyond the noise of the run.
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
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// roleVariable is the environment variable that tells a process of this program what the process does. It is not set
// in the process that the user starts.
const roleVariable = "FSUSER_SCALE_ROLE"

const (
	roleRun      = "run"
	roleKubelets = "kubelets"
)

func main() {
	var err error
	switch os.Getenv(roleVariable) {
	case roleRun:
		err = run()
	case roleKubelets:
		err = serveKubelets(os.Stdin, os.Stdout, os.Args[1])
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

// options are the flags.
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

// inNamespaces runs this program again in a mount namespace and a network namespace. No mount stays on the machine, and
// the kernel's counters of connections count only the connections of this run. It returns the exit code of the other
// process, which has printed its error.
func inNamespaces() (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("it mounts and changes owners; run it as root")
	}
	// The flags are wrong here as they would be in the other process.
	if _, err := parseFlags(); err != nil {
		return 0, err
	}
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, unix.SIGINT, unix.SIGTERM)
	cmd := self(roleRun, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr.Unshareflags, cmd.SysProcAttr.Setpgid = unix.CLONE_NEWNS|unix.CLONE_NEWNET, true
	// PDEATHSIG is tied to the thread that forks.
	runtime.LockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start in new namespaces: %w", err)
	}
	go func() {
		for s := range interrupts {
			_ = cmd.Process.Signal(s) // fails only if the process has ended
		}
	}()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// self is a command that runs this program in a role. The process dies with this one.
func self(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

func run() (err error) {
	o, err := parseFlags()
	if err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("start the loopback interface: %w", err)
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
	r := &results{size: size, machine: machine()}
	if err := measure(ctx, o, size, dir, r); err != nil {
		return err
	}
	r.took = time.Since(start)
	r.derive()
	if err := r.print(os.Stdout); err != nil {
		return err
	}
	if o.page != "" && !o.quick && o.phase == "" {
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
		_ = unix.Unmount(dir, unix.MNT_DETACH) // the mount namespace ends with the process
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

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
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
