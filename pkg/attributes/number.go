// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"strconv"
)

const (
	// maxID is the largest user or group id of the Kubernetes API (runAsUser, fsGroup; KEP-5936's defaultUser). Above it
	// lies 4294967295, which chown(2) takes for "leave the owner alone".
	maxID = 1<<31 - 1
	// maxMode leaves no room for setuid, setgid and sticky.
	maxMode = 0o777

	idRule   = "must be a number from 0 to 2147483647 in plain decimal digits, without sign, space or leading zero (names are not looked up), such as 1000"
	modeRule = `must be octal permission bits from 0 to 0777, such as "0400" (always octal; setuid, setgid and sticky are never set)`
)

// idProblem is the one home of the range of uid and gid. It returns "" for a good value.
func idProblem(value uint64) string {
	if value > maxID {
		return idRule
	}
	return ""
}

// modeProblem is the one home of the range of mode and dirMode. It returns "" for a good value.
func modeProblem(value uint64) string {
	if value > maxMode {
		return modeRule
	}
	return ""
}

// idFromText reads a uid or gid of ^(0|[1-9][0-9]*)$. It returns the number, or nil and the rule that was broken.
func idFromText(text string) (*uint32, string) {
	if !onlyDigits(text, '9') || len(text) > 1 && text[0] == '0' {
		return nil, idRule
	}
	value, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return nil, idRule
	}
	return numberOrProblem(value, idProblem(value))
}

// modeFromText reads permission bits, always as octal: "256" is 0256, whatever the Kubernetes API would make of the number 256.
// A leading zero is one of at most four digits. It returns the bits, or nil and the rule that was broken.
func modeFromText(text string) (*uint32, string) {
	if !onlyDigits(text, '7') || len(text) > 4 {
		return nil, modeRule
	}
	value, err := strconv.ParseUint(text, 8, 32)
	if err != nil {
		return nil, modeRule
	}
	return numberOrProblem(value, modeProblem(value))
}

// idFromItem reads a decoded uid or gid of an item: absent, an integer, or a string as in the volume's own uid.
func idFromItem(decoded any) (*uint32, string) {
	if text, ok := decoded.(string); ok {
		return idFromText(text)
	}
	value, absent, ok := integer(decoded)
	if absent {
		return nil, ""
	}
	if !ok {
		return nil, idRule
	}
	return numberOrProblem(value, idProblem(value))
}

// modeFromItem reads a decoded mode of an item: absent, an integer whose value counts as in the Kubernetes API (YAML's 0400 and
// JSON's 256 are the same), or a string of octal digits.
func modeFromItem(decoded any) (*uint32, string) {
	if text, ok := decoded.(string); ok {
		return modeFromText(text)
	}
	value, absent, ok := integer(decoded)
	if absent {
		return nil, ""
	}
	if !ok {
		return nil, modeRule
	}
	if modeProblem(value) != "" {
		// The usual cause is 600 or 644 without the zero.
		return nil, fmt.Sprintf(`as in the Kubernetes API a bare number counts by its value, from 0 to 511 (0400 is 256): `+
			`give the octal digits as a string instead, such as "0400", not %d`, value)
	}
	return numberOrProblem(value, "")
}

// integer returns the value of a decoded non-negative integer; absent is true for null. Floats are no integers, not even 256.0.
func integer(decoded any) (value uint64, absent, ok bool) {
	switch v := decoded.(type) {
	case nil:
		return 0, true, false
	case int:
		return uint64(v), false, v >= 0
	case int64: // what YAML gives for large numbers where int has 32 bits
		return uint64(v), false, v >= 0
	case uint64:
		return v, false, true
	}
	return 0, false, false
}

func numberOrProblem(value uint64, problem string) (*uint32, string) {
	if problem != "" {
		return nil, problem
	}
	number := uint32(value)
	return &number, ""
}

// onlyDigits reports whether text consists of the ASCII digits 0 to highest. strconv alone would let signs and more through.
func onlyDigits(text string, highest byte) bool {
	for i := range len(text) {
		if text[i] < '0' || text[i] > highest {
			return false
		}
	}
	return text != ""
}

func equalNumber(a, b *uint32) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
