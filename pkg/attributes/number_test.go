// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"strings"
	"testing"
)

func TestIDFromText(t *testing.T) {
	for text, want := range map[string]uint32{"0": 0, "1": 1, "1000": 1000, "65534": 65534, "2147483647": 2147483647} {
		for _, key := range []string{"uid", "gid"} {
			spec, errs := Parse(with(key, text), false)
			got := map[string]*uint32{"uid": spec.UID, "gid": spec.GID}[key]
			if len(errs) > 0 || got == nil || *got != want {
				t.Errorf("%s %q: got %v, %v, want %d", key, text, got, errs, want)
			}
		}
	}
	for _, text := range []string{
		"-1", "+1000", " 1000", "1000 ", "1e3", "0x3e8", "1_000", "01000", "١٠٠٠", "１０００", "root", // H-048
		"4294967295", "2147483648", // H-049, H-051
		"00", "-0", "0o17", "0b1", "1.0", "1,000", "1000\n", "1000\x00", "18446744073709551616", "99999999999999999999999999",
		strings.Repeat("1", 1<<20),
	} {
		for _, key := range []string{"uid", "gid"} {
			got := refused(t, with(key, text), false)
			if !strings.HasPrefix(got, "volumeAttributes["+key+"]: Invalid value: ") || !strings.HasSuffix(got, idRule) ||
				strings.Contains(got, "\n") {
				t.Errorf("%s %.64q: %s", key, text, got)
			}
		}
	}
}

func TestModeFromText(t *testing.T) {
	for text, want := range map[string]uint32{
		"0": 0, "00": 0, "0000": 0, "0400": 0o400, "400": 0o400, "0777": 0o777, "777": 0o777, "7": 7, "07": 7, "44": 0o44,
		"256": 0o256, // H-057: never the decimal 256, which would be 0400
		"644": 0o644, "0644": 0o644,
	} {
		for _, key := range []string{"mode", "dirMode"} {
			spec, errs := Parse(with(key, text), false)
			if len(errs) > 0 {
				t.Errorf("%s %q: %v", key, text, errs)
			} else if got := map[string]uint32{"mode": spec.Sources[0].Mode, "dirMode": spec.DirMode}[key]; got != want {
				t.Errorf("%s %q: got %04o, want %04o", key, text, got, want)
			}
		}
	}
	for _, text := range []string{
		"0888", "abc", "-0400", "0o400", "0x1ff", // H-054
		"100644", "8389101", "2147484141", // H-055: FileMode bits
		"1777", "4755", "01777", "1000", "7777", "00400", "00000", "+400", " 400", "400 ", "4_00", "0b1", "rw-------", "u=r",
		"٤٠٠", "4００",
		"400\n", "0400\x00", strings.Repeat("0", 1<<20), "37777777777777777777777777",
	} {
		for _, key := range []string{"mode", "dirMode"} {
			got := refused(t, with(key, text), false)
			if !strings.HasPrefix(got, "volumeAttributes["+key+"]: Invalid value: ") || !strings.HasSuffix(got, modeRule) ||
				strings.Contains(got, "\n") {
				t.Errorf("%s %.64q: %s", key, text, got)
			}
		}
	}
}
