// SPDX-License-Identifier: Apache-2.0

//go:build !failpoints

package failpoint

// Hit is a step that can't fail.
func Hit(string) {}

// Error is a step that can fail.
func Error(string) error { return nil }
