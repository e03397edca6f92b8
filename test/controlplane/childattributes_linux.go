// SPDX-License-Identifier: Apache-2.0

package controlplane

import "syscall"

// childAttributes: the kernel kills the child when the thread that started it
// ends (see keeper), and a Ctrl-C at the terminal does not reach it, so that
// the order of ending stays Stop's.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
