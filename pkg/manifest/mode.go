// SPDX-License-Identifier: Apache-2.0

package manifest

import "slices"

// IsUsualMode reports whether people give files these permission bits.
func IsUsualMode(mode int64) bool {
	return slices.Contains([]int64{
		0o400, 0o440, 0o444, 0o500, 0o550, 0o555, 0o600, 0o640, 0o644, 0o660, 0o664, 0o666, 0o700, 0o750, 0o755, 0o770, 0o775, 0o777,
	}, mode)
}
