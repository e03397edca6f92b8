// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// IsMode reports whether a field of a volume is a mode.
func IsMode(path string) bool {
	name := path[strings.LastIndexByte(path, '.')+1:]
	return name == "mode" || name == "defaultMode"
}

// IsUsualMode reports whether these permission bits are common for files.
func IsUsualMode(mode int64) bool {
	return slices.Contains([]int64{
		0o400, 0o440, 0o444, 0o500, 0o550, 0o555, 0o600, 0o640, 0o644, 0o660, 0o664, 0o666,
		0o700, 0o750, 0o755, 0o770, 0o775, 0o777,
	}, mode)
}

var looksOctal = regexp.MustCompile(`^([1-7][0-7]{2}|0[0-9]*[89][0-9]*)$`)

// Mode checks the value of a field of Kubernetes' own volumes. If the value is a decimal number that looks octal, hint
// explains the value and the remedy: 400 means 0620. isValid reports whether the API server accepts the value. Fields
// that are no mode, and values that are no whole number, are valid.
func Mode(path string, n *Node) (hint string, isValid bool) {
	value, isInteger := n.Integer()
	if !IsMode(path) || !isInteger {
		return "", true
	}
	isValid = 0 <= value && value <= 0o777
	octal, err := strconv.ParseInt(n.Text, 8, 64)
	if !looksOctal.MatchString(n.Text) || err == nil && !IsUsualMode(octal) {
		return "", isValid
	}
	hint = fmt.Sprintf("%s is decimal and means 0%o", n.Text, value)
	switch {
	case err != nil: // for example, 0008
	case n.Document.JSON:
		hint += fmt.Sprintf("; write %d", octal)
	default:
		hint += fmt.Sprintf("; write 0%o, or %d", octal, octal)
	}
	return hint, isValid
}
