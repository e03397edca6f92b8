// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestTemplateExpand(t *testing.T) {
	files := map[string]string{
		"a": "A", "d/b.c": "B", "empty": "", "reference": "$(a) $$", "binary": "\x00\xff\r\n", "a b": "space",
	}
	for text, want := range map[Template]string{
		"text": "text", "": "", "$(a)": "A", "x$(a)y": "xAy", "$(a)$(a)": "AA", "$(d/b.c)": "B", "$(a b)": "space",
		"[$(empty)]":   "[]",
		"$(reference)": "$(a) $$", // The content is not expanded again.
		"<$(binary)>":  "<\x00\xff\r\n>",
		"$$":           "$", "$$(a)": "$(a)", "$$$(a)": "$A", "$$$$(a)": "$$(a)", "$$$": "$$", "$$a": "$a",
		"$": "$", "a$": "a$", "$a": "$a", "$ (a)": "$ (a)", "${a}": "${a}", "$é": "$é", "cost: 5$, $(a)": "cost: 5$, A",
		"$)": "$)", "(a)": "(a)", "$(a))": "A)", "$((a))": ")", "line\n$(a)\n": "line\nA\n",
	} {
		content := func(file string) []byte { return []byte(files[file]) }
		if got := string(text.Expand(content)); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
		size := text.Size(func(file string) int { return len(files[file]) })
		if size != int64(len(want)) {
			t.Errorf("%q: the size is %d, want %d", text, size, len(want))
		}
	}
}

func TestTemplateFiles(t *testing.T) {
	for text, want := range map[Template][]string{
		"": nil, "text $$(a) $b": nil, "$(b)$$(c)$(a/a)$(b)": {"b", "a/a", "b"}, "$()": {""},
	} {
		if got := text.Files(); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestTemplateProblem(t *testing.T) {
	for text, want := range map[Template]string{
		"$(a)": "", "$(a/b c)$": "", "$$(": "", "$$(../a)": "", "$": "", "$(..": templateReferenceRule,
		"$(": templateReferenceRule, "$(a": templateReferenceRule, "$$$(a": templateReferenceRule,
		"$(a$(b)": templateReferenceRule, "$(a$$)": templateReferenceRule, "$(a)$(b": templateReferenceRule,
		"$()": templateFileRule, "$(.)": templateFileRule, "$(/a)": templateFileRule, "$(a/)": templateFileRule,
		"$(a//b)": templateFileRule, "$(./a)": templateFileRule, "$(a/./b)": templateFileRule, "$(..a)": templateFileRule,
		"$(a/../b)": templateFileRule, "$(a/..)": templateFileRule, "$(a)$(..)": templateFileRule,
		Template("$(" + strings.Repeat("a", 256) + ")"): templateFileRule,
	} {
		if _, got := text.problem(); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// FuzzTemplate compares Expand with a simple implementation of Kubernetes' rules for $(NAME), and Size with Expand.
func FuzzTemplate(f *testing.F) {
	for _, seed := range []string{
		"$(a)", "$$(a)", "$$$(b)$", "x$y$(a", "$(a$(b))", "$(a$$)", "$()", "$é$(é)", "\xff$(",
	} {
		f.Add(seed, "A$(b)$$", "")
	}
	f.Fuzz(func(t *testing.T, text, a, b string) {
		files := map[string]string{"a": a, "b": b, "é": a + b}
		template := Template(text)
		got := template.Expand(func(file string) []byte { return []byte(files[file]) })
		if n := template.Size(func(file string) int { return len(files[file]) }); n != int64(len(got)) {
			t.Fatalf("%q: the size is %d, and the result has %d bytes", text, n, len(got))
		}
		if _, problem := template.problem(); problem != "" {
			return
		}
		want, names := kubernetesExpands(text, files)
		if string(got) != want || !slices.Equal(template.Files(), names) {
			t.Fatalf("%q: got %q of %q, want %q of %q", text, got, template.Files(), want, names)
		}
		spec, errs := Parse(map[string]string{"secretName": "a", "template/t": text}, false)
		if len(errs) > 0 || !reflect.DeepEqual(spec.Templates, map[string]Template{"t": template}) {
			t.Fatalf("%q: parsed as %+v, %s", text, spec, messages(errs))
		}
	})
}

// kubernetesExpands reads text byte by byte, as the API describes command and args: $(NAME) is a reference, $$ is $,
// and any other $ is text. It also returns the names in their order.
func kubernetesExpands(text string, values map[string]string) (expanded string, names []string) {
	var b strings.Builder
	dollar, begin := false, -1 // whether the last byte was an unused $, and the beginning of an open name
	for i := range len(text) {
		switch c := text[i]; {
		case begin >= 0 && c == ')':
			name := text[begin:i]
			b.WriteString(values[name])
			names, begin = append(names, name), -1
		case begin >= 0:
		case dollar && c == '(':
			dollar, begin = false, i+1
		case dollar:
			dollar = false
			b.WriteByte('$')
			if c != '$' {
				b.WriteByte(c)
			}
		case c == '$':
			dollar = true
		default:
			b.WriteByte(c)
		}
	}
	if dollar {
		b.WriteByte('$')
	}
	return b.String(), names
}
