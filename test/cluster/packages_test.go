// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cluster

import (
	"slices"
	"testing"
)

func TestExpand(t *testing.T) {
	for pattern, want := range map[string][]string{
		"/usr/bin/gcc":      {"/usr/bin/gcc"},
		"{/usr,}/{s,}bin/x": {"/usr/sbin/x", "/usr/bin/x", "/sbin/x", "/bin/x"},
	} {
		if got := expand(pattern); !slices.Equal(got, want) {
			t.Errorf("expand(%q) = %q, want %q", pattern, got, want)
		}
	}
}
