// SPDX-License-Identifier: Apache-2.0

// Package text prepares texts from other programs for messages.
package text

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Shorten returns s, or its beginning of at most limit bytes with an ellipsis. It does not cut inside a character.
func Shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	// Invalid UTF-8 may have no beginning of a character.
	for end := limit; end > limit-utf8.UTFMax; end-- {
		if end <= 0 || utf8.RuneStart(s[end]) {
			return s[:max(end, 0)] + "…"
		}
	}
	return s[:limit] + "…"
}

// OneLine replaces each character of s that is not printable by a space.
func OneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}
