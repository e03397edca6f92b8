// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The descriptors of a process of the cluster, in addition to the standard ones.
const (
	progressFD = 3 // for writing messages
	aliveFD    = 4 // for reading; at its end, the cluster must end
	lockFD     = 5 // init and node: the lock of the run folder
	listenerFD = 6 // init and node: the API server's port on the machine

	networkFD = 4 // for reading in a further node; at its end, the node's interface exists
)

// namespaces are the namespaces of the cluster, and of each further node.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// self is the program of this process, even if another one was compiled in the meantime.
const self = "/proc/self/exe"

// Detach is the message to keep on aliveFD that makes the cluster outlive the process that started it.
const Detach = "detach\n"

// cleanTimeout bounds the removal of cgroups and files. It takes a second.
const cleanTimeout = 30 * time.Second

// Keep runs a cluster until SIGTERM, until the process that started it ends without detaching, or until the cluster
// fails.
func Keep(spec Spec) error {
	report := &reporter{out: inherited(progressFD, "progress")}
	err := keep(spec, inherited(aliveFD, "alive"))
	if err != nil {
		report.send(Message{Error: err.Error()})
	}
	return err
}

func keep(spec Spec, alive io.Reader) (err error) {
	paths := Paths(spec.RunDir)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)

	// 1. The lock ensures that no other cluster uses this folder. Remove the leftovers of an earlier cluster.
	lock, err := lockSoon(paths.Lock())
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := writeHolder(lock); err != nil {
		return err
	}
	if err := cleanWithin(cleanTimeout, spec.RunDir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cleanWithin(cleanTimeout, spec.RunDir)) }()

	// 2. Listen on a port on the machine. node accepts the connections, in its namespace.
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return fmt.Errorf("listen for clients of the API server: %w", err)
	}
	defer listener.Close()
	spec.APIServerPort = listener.Addr().(*net.TCPAddr).Port

	// 3. Start process 1 in new namespaces.
	ended, kill, err := startInit(spec, paths, lock, listener)
	if err != nil {
		return err
	}

	// 4. The first of these events ends the cluster.
	select {
	case <-signals:
	case <-abandoned(alive):
	case err := <-ended:
		return fmt.Errorf("the cluster ended by itself: %w", err)
	}
	kill()
	_ = <-ended // The kernel reports this when every process in the namespace has ended.
	return nil
}

// startInit starts process 1 of the namespaces.
func startInit(
	spec Spec, paths Paths, lock *os.File, listener *net.TCPListener,
) (ended <-chan error, kill func(), err error) {
	socket, err := listener.File()
	if err != nil {
		return nil, nil, fmt.Errorf("get the listener's socket: %w", err)
	}
	defer socket.Close()
	aliveRead, aliveWrite, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	defer aliveRead.Close()
	cmd := exec.Command(self, "init", spec.String())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{inherited(progressFD, "progress"), aliveRead, lock, socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	if err := cmd.Start(); err != nil {
		aliveWrite.Close()
		return nil, nil, fmt.Errorf("start process 1 of new namespaces: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		aliveWrite.Close() // It must not be garbage-collected before.
		done <- err
	}()
	kill = func() { _ = cmd.Process.Kill() } // This fails only if the process has ended.
	if err := (State{InitPID: cmd.Process.Pid, Spec: spec}).write(paths.State()); err != nil {
		kill()
		_ = <-done
		return nil, nil, err
	}
	return done, kill, nil
}

// abandoned returns a channel that is closed when the process that started keep has ended without detaching.
func abandoned(alive io.Reader) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		if read, err := io.ReadAll(alive); err == nil && string(read) == Detach {
			return
		}
		close(done)
	}()
	return done
}

func writeHolder(lock *os.File) error {
	if err := lock.Truncate(0); err != nil {
		return fmt.Errorf("write own process id: %w", err)
	}
	if _, err := lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("write own process id: %w", err)
	}
	return nil
}

func cleanWithin(timeout time.Duration, runDir string) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, fmt.Errorf("not done after %s", timeout))
	defer cancel()
	return Clean(ctx, runDir)
}

// inherited returns an inherited descriptor, and keeps children from inheriting it.
func inherited(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}
