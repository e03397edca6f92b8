// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package controlplane

import "syscall"

// childAttributes: only Linux can tie a child's life to its parent's.
func childAttributes() *syscall.SysProcAttr { return nil }
