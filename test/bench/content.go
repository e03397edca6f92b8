// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"strings"
)

// The owner, mode and keys of the files of the driver and of the yardsticks.
const (
	owner    = 1000
	fileMode = 0o600
	dirMode  = 0o755
	mainKey  = "tls.key"
)

// content returns a version of an object: 3 keys with 4 KiB in total. Each value differs from those of all other
// versions.
func content(version int) map[string][]byte {
	data := map[string][]byte{}
	for key, size := range map[string]int{mainKey: 1700, "tls.crt": 1300, "ca.crt": 1096} {
		head := fmt.Sprintf("version %d\n", version)
		data[key] = []byte(head + strings.Repeat("x", size-len(head)))
	}
	return data
}

// isVersion reports whether b is the main key of a version.
func isVersion(b []byte, version int) bool { return bytes.Equal(b, content(version)[mainKey]) }
