// SPDX-License-Identifier: Apache-2.0

// Package text makes texts from elsewhere fit for messages.
package text

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Shorten returns s, or its first limit bytes at most and an ellipsis. It does not cut inside a character.
func Shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	// Bytes that are no UTF-8 have no beginning of a character.
	for end := limit; end > limit-utf8.UTFMax; end-- {
		if end <= 0 || utf8.RuneStart(s[end]) {
			return s[:max(end, 0)] + "…"
		}
	}
	return s[:limit] + "…"
}

// OneLine returns s with a space for each character that is not printable.
func OneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}
