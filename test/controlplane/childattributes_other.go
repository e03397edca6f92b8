// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package controlplane

import "syscall"

// childAttributes returns nil, because only Linux can end a child together with its parent.
func childAttributes() *syscall.SysProcAttr { return nil }
