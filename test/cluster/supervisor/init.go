// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Init is process 1 of the namespaces of the cluster or of a further node. It starts node and waits for it and for
// every orphan, such as the shims of containers. It returns when node has ended. When process 1 ends, the kernel ends
// all other processes.
func Init(spec Spec) error {
	fds := []int{progressFD, aliveFD, lockFD, listenerFD}
	if spec.Node > firstNode {
		fds = []int{progressFD, networkFD}
	}
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	for _, fd := range fds {
		files = append(files, inherited(fd, "inherited"))
	}
	node, err := os.StartProcess(self, []string{self, "node", spec.String()},
		&os.ProcAttr{Env: os.Environ(), Files: files})
	if err != nil {
		return fmt.Errorf("start node: %w", err)
	}
	// node gets the only copies of the descriptors, except the lock, which this process must also hold to the end.
	for _, fd := range fds {
		if fd != lockFD {
			files[fd].Close()
		}
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("wait for children: %w", err)
		case pid == node.Pid && (status.Exited() || status.Signaled()):
			return fmt.Errorf("node ended: exit code %d, signal %d", status.ExitStatus(), status.Signal())
		}
	}
}
