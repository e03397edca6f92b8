// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"strconv"

	"k8s.io/utils/ptr"
)

const (
	// maxID is the largest user or group id of the Kubernetes API (runAsUser, fsGroup; KEP-5936's defaultUser). It
	// excludes 4294967295, which for chown(2) means no change of the owner.
	maxID = 1<<31 - 1
	// maxMode excludes setuid, setgid and sticky.
	maxMode = 0o777

	idRule = "must be a number from 0 to 2147483647 in plain decimal digits, without sign, space or leading zero " +
		"(names are not looked up), such as 1000"
	modeRule = `must be octal permission bits from 0 to 0777, such as "0400" ` +
		`(always octal; setuid, setgid and sticky are never set)`
)

// idProblem checks the range of uid and gid. It returns the broken rule, or "" for a valid value.
func idProblem(value uint64) string {
	if value > maxID {
		return idRule
	}
	return ""
}

// modeProblem checks the range of mode and dirMode. It returns the broken rule, or "" for a valid value.
func modeProblem(value uint64) string {
	if value > maxMode {
		return modeRule
	}
	return ""
}

// ParseID reads a user or group id in the format of the attributes: decimal, from 0 to 2147483647, without sign, space
// or leading zero. problem is the broken rule, or "" for a valid text.
func ParseID(text string) (id uint32, problem string) {
	number, problem := idFromText(text)
	return ptr.Deref(number, 0), problem
}

// idFromText reads a uid or gid of the form ^(0|[1-9][0-9]*)$. It returns the number, or nil and the broken rule.
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

// modeFromText reads permission bits, always as octal: "256" is 0256, although the number 256 in the Kubernetes API is
// 0400. A leading zero counts as one of at most four digits. It returns the bits, or nil and the broken rule.
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

func numberOrProblem(value uint64, problem string) (*uint32, string) {
	if problem != "" {
		return nil, problem
	}
	return ptr.To(uint32(value)), ""
}

// onlyDigits reports whether text consists of the ASCII digits 0 to highest. strconv would also accept signs, for
// example.
func onlyDigits(text string, highest byte) bool {
	for i := range len(text) {
		if text[i] < '0' || text[i] > highest {
			return false
		}
	}
	return text != ""
}
