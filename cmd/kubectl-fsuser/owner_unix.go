// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package main

import (
	"os"
	"syscall"
)

// keepOwner gives a file the owner and the group that another file has, where that is allowed: only root may give files
// away, and the content matters more.
func keepOwner(file *os.File, of os.FileInfo) {
	if st, ok := of.Sys().(*syscall.Stat_t); ok {
		_ = file.Chown(int(st.Uid), int(st.Gid))
	}
}
