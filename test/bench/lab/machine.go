// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine says what the figures depend on most.
func Machine(cpus int) string {
	var u unix.Utsname
	_ = unix.Uname(&u) // can't fail with a valid pointer
	// What follows the version names who built it.
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	return fmt.Sprintf("Linux %s, %d CPUs, %s", release, cpus, runtime.Version())
}
