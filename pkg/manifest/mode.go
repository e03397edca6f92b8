// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// IsUsualMode reports whether people give files these permission bits.
func IsUsualMode(mode int64) bool {
	return slices.Contains([]int64{
		0o400, 0o440, 0o444, 0o500, 0o550, 0o555, 0o600, 0o640, 0o644, 0o660, 0o664, 0o666, 0o700, 0o750, 0o755, 0o770, 0o775, 0o777,
	}, mode)
}

// DecimalMode is a mode that is written in decimal, and that people take for octal: 400 means 0620.
type DecimalMode struct {
	Field string // from where it was looked for: items[0].mode
	Node  Node
	Octal string // as which it is probably meant: 0400
	Value int64  // that it has then: 256
}

// String says what it means.
func (m DecimalMode) String() string {
	return fmt.Sprintf("%s is decimal and means 0%o", m.Node.Text(), m.Node.Scalar())
}

var octalDigits = regexp.MustCompile(`^[1-7][0-7]{2}$`)

// DecimalModes finds them among the fields "mode" and "defaultMode" of all that is in a value.
func (n Node) DecimalModes() (all []DecimalMode) {
	n.Walk(func(path string, at Node) bool {
		if name := path[strings.LastIndexByte(path, '.')+1:]; name != "mode" && name != "defaultMode" {
			return true
		}
		_, isNumber := at.Scalar().(int)
		octal, err := strconv.ParseInt(at.Text(), 8, 64)
		if isNumber && err == nil && octalDigits.MatchString(at.Text()) && IsUsualMode(octal) {
			all = append(all, DecimalMode{Field: path, Node: at, Octal: "0" + at.Text(), Value: octal})
		}
		return true
	})
	return all
}
