// SPDX-License-Identifier: Apache-2.0

package text

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestShorten(t *testing.T) {
	for _, test := range []struct {
		in    string
		limit int
		want  string
	}{
		{"", 0, ""}, {"abc", 3, "abc"}, {"abcd", 3, "abc…"}, {"ééé", 3, "é…"}, {"ééé", 4, "éé…"}, {"🚀🚀", 7, "🚀…"},
		{"🚀", 3, "…"}, {"🚀", 0, "…"},
		{strings.Repeat("\x80", 20), 10, strings.Repeat("\x80", 10) + "…"},
	} {
		got := Shorten(test.in, test.limit)
		if got != test.want {
			t.Errorf("%q to %d bytes: got %q, want %q", test.in, test.limit, got, test.want)
		}
		if utf8.ValidString(test.in) && !utf8.ValidString(got) {
			t.Errorf("%q to %d bytes: %q is cut inside a character", test.in, test.limit, got)
		}
	}
}

func TestOneLine(t *testing.T) {
	if got := OneLine("a\nb\tc\x00d é…\u2028e"); got != "a b c d é… e" {
		t.Errorf("got %q", got)
	}
}
