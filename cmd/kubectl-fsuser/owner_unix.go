// SPDX-License-Identifier: Apache-2.0

//go:build !windows

package main

import (
	"os"
	"syscall"
)

// keepOwner gives file the owner and the group of another file. Only root may change the owner. An error has no effect,
// because the content is more important.
func keepOwner(file *os.File, of os.FileInfo) {
	if st, ok := of.Sys().(*syscall.Stat_t); ok {
		_ = file.Chown(int(st.Uid), int(st.Gid))
	}
}
