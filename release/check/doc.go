// SPDX-License-Identifier: Apache-2.0

// Package check has tests of the files that make release has written (make release-check).
package check
