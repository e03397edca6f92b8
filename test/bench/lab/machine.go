// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine describes the machine, on which the figures depend most.
func Machine(cpus int) string {
	var u unix.Utsname
	_ = unix.Uname(&u) // This can't fail with a valid pointer.
	// The rest of the release, after the version, names the builder.
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	return fmt.Sprintf("Linux %s, %d CPUs, %s", release, cpus, runtime.Version())
}
