// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"strings"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Template is the text of a file that shows other files of the volume. The syntax is that of a container's command:
// $(FILE) stands for the content of the file FILE, and $$ for the character $. Any other $ stands for itself.
type Template string

// maxTemplate is the length of the longest Template in bytes.
const maxTemplate = 16384

// part is a piece of a Template: text, or the name of a file that stands for its content.
type part struct {
	text   string
	isFile bool
}

// parts returns the pieces of t in their order. If a reference to a file is not closed, it returns the problem and the
// pieces before the reference.
func (t Template) parts() (parts []part, problem string) {
	for rest := string(t); ; {
		text, after, found := strings.Cut(rest, "$")
		parts = append(parts, part{text: text})
		switch {
		case !found:
			return parts, ""
		case strings.HasPrefix(after, "("):
			end := strings.IndexAny(after, "$)")
			if end < 0 || after[end] == '$' {
				return parts, templateReferenceRule
			}
			parts = append(parts, part{text: after[len("("):end], isFile: true})
			rest = after[end+len(")"):]
		default:
			parts = append(parts, part{text: "$"})
			rest = strings.TrimPrefix(after, "$")
		}
	}
}

// Files returns the files that t shows, in their order, with duplicates.
func (t Template) Files() (files []string) {
	parts, _ := t.parts()
	for _, p := range parts {
		if p.isFile {
			files = append(files, p.text)
		}
	}
	return files
}

// Size returns the length of the result of Expand without building the result.
func (t Template) Size(size func(file string) int) (sum int64) {
	parts, _ := t.parts()
	for _, p := range parts {
		if p.isFile {
			sum += int64(size(p.text))
		} else {
			sum += int64(len(p.text))
		}
	}
	return sum
}

// Expand returns t with the content of each file in place of its reference. It does not expand references in the
// content.
func (t Template) Expand(content func(file string) []byte) []byte {
	parts, _ := t.parts()
	expanded := make([]byte, 0, t.Size(func(file string) int { return len(content(file)) }))
	for _, p := range parts {
		if p.isFile {
			expanded = append(expanded, content(p.text)...)
		} else {
			expanded = append(expanded, p.text...)
		}
	}
	return expanded
}

// problem returns the rule that t breaks, or "". value is the reference that breaks the rule. If no reference does,
// value is nil, because t may hold a secret.
func (t Template) problem() (value any, rule string) {
	parts, problem := t.parts()
	switch {
	case len(t) == 0 || len(t) > maxTemplate:
		return field.OmitValueType{}, templateLengthRule
	case !utf8.ValidString(string(t)) || strings.Contains(string(t), "\x00"):
		return field.OmitValueType{}, templateTextRule
	case problem != "":
		return field.OmitValueType{}, problem
	}
	for _, p := range parts {
		if clean, problem := CleanPath(p.text); p.isFile && (problem != "" || clean != p.text) {
			return short("$(" + p.text + ")"), templateFileRule
		}
	}
	return nil, ""
}
