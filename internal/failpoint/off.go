// SPDX-License-Identifier: Apache-2.0

//go:build !failpoints

package failpoint

// Hit marks a step that can't fail.
func Hit(string) {}

// Error marks a step that can fail.
func Error(string) error { return nil }
