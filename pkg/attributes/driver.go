// SPDX-License-Identifier: Apache-2.0

package attributes

// Driver is the name that a volume gives in csi.driver.
const Driver = "fsuser.csi.io"

// DefaultMode is the mode of the files of an object of this kind when the volume gives none: 0400 for a Secret, else 0444.
func DefaultMode(kind Kind) uint32 {
	if kind == Secret {
		return defaultSecretMode
	}
	return defaultMode
}

// ParseID reads a user or group id as an attribute gives it: decimal, from 0 to 2147483647, without sign, space or leading zero. problem is
// the rule that text breaks; "" if it is good.
func ParseID(text string) (id uint32, problem string) {
	number, problem := idFromText(text)
	if number == nil {
		return 0, problem
	}
	return *number, ""
}
