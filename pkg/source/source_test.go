// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/text"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

func TestErrorText(t *testing.T) {
	ref := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "name"}
	for name, test := range map[string]struct {
		err  *Error
		want string
	}{
		"without detail": {&Error{Ref: ref, Reason: ErrNotFound}, `Secret "ns/name": not found`},
		"with detail":    {&Error{Ref: ref, Reason: ErrForbidden, Detail: "no"}, `Secret "ns/name": forbidden: no`},
		"a name that is none": {
			&Error{Ref: Ref{Kind: attributes.ConfigMap, Namespace: "a\n", Name: `"`}, Reason: ErrUnavailable},
			`ConfigMap "a\n/\"": can't be read now`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.err.Error(); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
			wrapped := fmt.Errorf("volume: %w", test.err)
			if !errors.Is(wrapped, test.err.Reason) {
				t.Errorf("%v is not %v", wrapped, test.err.Reason)
			}
			var e *Error
			if !errors.As(wrapped, &e) || e.Ref != test.err.Ref {
				t.Errorf("%v is not an *Error of %v", wrapped, test.err.Ref)
			}
			for _, other := range []error{ErrNotFound, ErrForbidden, ErrUnavailable} {
				if other != test.err.Reason && errors.Is(wrapped, other) {
					t.Errorf("%v is also %v", wrapped, other)
				}
			}
		})
	}
}

func TestOneLine(t *testing.T) {
	long := strings.Repeat("x", maxDetail)
	for name, test := range map[string]struct{ in, want string }{
		"nothing":                                 {"", ""},
		"one line stays":                          {`all "good" – é`, `all "good" – é`},
		"lines become one":                        {"a\nb\r\tc", "a b  c"},
		"escape sequences lose their ESC":         {"\x1b[31mred", " [31mred"},
		"marks of the text direction are removed": {"a\u202eb", "a b"},
		"the longest that stays":                  {long, long},
		"longer is cut":                           {long + "y", long + "…"},
		"never inside a character":                {long[1:] + "é", long[1:] + "…"},
		"an invalid character is replaced":        {"a\xffb", "a\ufffdb"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := text.Shorten(text.OneLine(test.in), maxDetail); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func FuzzOneLine(f *testing.F) {
	f.Add("a\nb")
	f.Add(strings.Repeat("é", maxDetail))
	f.Add(strings.Repeat("\x80", 2*maxDetail))
	f.Fuzz(func(t *testing.T, s string) {
		got := text.Shorten(text.OneLine(s), maxDetail)
		if strings.ContainsAny(got, "\n\r\x1b\x00") || !utf8.ValidString(got) || len(got) > maxDetail+len("…") {
			t.Errorf("%q became %q", s, got)
		}
	})
}

func TestContentOf(t *testing.T) {
	yes, no := true, false
	meta := metav1.ObjectMeta{UID: "u", ResourceVersion: "7"}
	for name, test := range map[string]struct {
		kind   attributes.Kind // Secret if empty
		object any
		want   map[string]string
		fixed  bool
		bad    bool
	}{
		"a secret": {object: &corev1.Secret{ObjectMeta: meta, Data: map[string][]byte{"a": []byte("b")}},
			want: map[string]string{"a": "b"}},
		"a config map": {
			kind: attributes.ConfigMap, object: &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{"a": "b"},
				BinaryData: map[string][]byte{"c": {0}}},
			want: map[string]string{"a": "b", "c": "\x00"},
		},
		"an empty config map": {kind: attributes.ConfigMap, object: &corev1.ConfigMap{ObjectMeta: meta},
			want: map[string]string{}},
		"immutable": {object: &corev1.Secret{ObjectMeta: meta, Immutable: &yes}, fixed: true},
		"immutable: false": {kind: attributes.ConfigMap,
			object: &corev1.ConfigMap{ObjectMeta: meta, Immutable: &no}},
		"stringData is ignored":     {object: &corev1.Secret{ObjectMeta: meta, StringData: map[string]string{"a": "b"}}},
		"a secret for a config map": {kind: attributes.ConfigMap, object: &corev1.Secret{}, bad: true},
		"a config map for a secret": {object: &corev1.ConfigMap{}, bad: true},
		"another kind":              {object: &corev1.Pod{}, bad: true},
		"nothing":                   {object: nil, bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			kind := attributes.Secret
			if test.kind != "" {
				kind = test.kind
			}
			content, ok := contentOf(kind, test.object)
			if ok == test.bad {
				t.Fatalf("understood: %v", ok)
			}
			if test.bad {
				return
			}
			got := map[string]string{}
			for key, value := range content.Data {
				got[key] = string(value)
			}
			if !maps.Equal(got, test.want) || content.Immutable != test.fixed || content.UID != "u" ||
				content.ResourceVersion != "7" {
				t.Errorf("%+v, data %q; want %q, immutable %v", content, got, test.want, test.fixed)
			}
		})
	}
}

func TestSameVersion(t *testing.T) {
	for name, test := range map[string]struct {
		a, b Content
		want bool
	}{
		"one state of one object": {Content{UID: "u", ResourceVersion: "1"}, Content{UID: "u", ResourceVersion: "1"}, true},
		"another version":         {Content{UID: "u", ResourceVersion: "1"}, Content{UID: "u", ResourceVersion: "2"}, false},
		"another object":          {Content{UID: "u", ResourceVersion: "1"}, Content{UID: "v", ResourceVersion: "1"}, false},
		"content of a request":    {FromRequest(nil), FromRequest(nil), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.a.SameVersion(test.b); got != test.want {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

func TestFromRequest(t *testing.T) {
	content := FromRequest(map[string]string{"a": "b"})
	if string(content.Data["a"]) != "b" || len(content.Data) != 1 || content.UID != "" || content.Immutable {
		t.Errorf("%+v", content)
	}
}
