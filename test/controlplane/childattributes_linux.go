// SPDX-License-Identifier: Apache-2.0

package controlplane

import "syscall"

// childAttributes makes the kernel kill the child when the thread that started it ends (see keeper). A Ctrl-C at the
// terminal does not reach the child, so that Stop determines the order in which processes end.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
