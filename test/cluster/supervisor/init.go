// SPDX-License-Identifier: Apache-2.0

//go:build linux

package supervisor

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Init is process 1 of the cluster's namespaces, or of a further node's. It
// starts node and waits for it and for every orphan, as the shims of containers
// are. It returns when node has ended, and by its own end the kernel ends
// everything else.
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
	// node shall have the only copies, but for the lock, which is to be held
	// until here, too, all is over.
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
