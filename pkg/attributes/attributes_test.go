// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

func number(n uint32) *uint32 { return &n }

// with returns attributes that name a Secret, changed by pairs of key and value.
func with(pairs ...string) map[string]string {
	m := map[string]string{"secretName": "keys"}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

// specOf returns a Spec of these sources, with the defaults for all else.
func specOf(sources ...Source) Spec {
	return Spec{Sources: sources, DirMode: 0o755, Refresh: RefreshWatch}
}

// text is the list as users see it, one problem a line.
func text(errs field.ErrorList) string {
	var lines []string
	for _, err := range errs {
		lines = append(lines, err.Error())
	}
	return strings.Join(lines, "\n")
}

// refused parses attributes that must not be accepted and returns the messages.
func refused(t *testing.T, context map[string]string, requestHasSecrets bool) string {
	t.Helper()
	spec, errs := Parse(context, requestHasSecrets)
	if len(errs) == 0 {
		t.Fatalf("Parse(%q) accepted it as %+v", context, spec)
	}
	if !reflect.DeepEqual(spec, Spec{}) {
		t.Errorf("Parse(%q) gave errors and the Spec %+v, want the zero Spec", context, spec)
	}
	return text(errs)
}

func TestParseAccepts(t *testing.T) {
	fromRequest := specOf(Source{Mode: 0o400})
	secret := specOf(Source{Object: Object{Secret, "keys"}, Mode: 0o400})
	configMap := specOf(Source{Object: Object{ConfigMap, "conf"}, Mode: 0o444})
	change := func(s Spec, f func(*Spec)) Spec { s.Sources = slices.Clone(s.Sources); f(&s); return s }

	for _, tc := range []struct {
		name              string
		context           map[string]string
		requestHasSecrets bool
		want              Spec
	}{
		{"a secret's defaults are 0400, 0755 and watch", with(), false, secret},
		{"a config map's default mode is 0444", map[string]string{"configMapName": "conf"}, false, configMap},
		{"the content may come with the request alone", nil, true, fromRequest},
		{"a name may have dots", with("secretName", "a.b-c.d"), false, change(secret, func(s *Spec) { s.Sources[0].Object.Name = "a.b-c.d" })},
		{"a name may have 253 characters", with("secretName", strings.Repeat("a", 253)), false,
			change(secret, func(s *Spec) { s.Sources[0].Object.Name = strings.Repeat("a", 253) })},
		{"uid and gid are numbers", with("uid", "1000", "gid", "2000"), false,
			change(secret, func(s *Spec) { s.UID, s.GID = number(1000), number(2000) })},
		{"uid 0 is not the same as no uid", with("uid", "0"), false, change(secret, func(s *Spec) { s.UID = number(0) })},
		{"mode wins over the kind's default", map[string]string{"configMapName": "conf", "mode": "0400"}, false,
			change(configMap, func(s *Spec) { s.Sources[0].Mode = 0o400 })},
		{"mode 0 is not the same as no mode", with("mode", "0"), false, change(secret, func(s *Spec) { s.Sources[0].Mode = 0 })},
		{"dirMode is octal too", with("dirMode", "700"), false, change(secret, func(s *Spec) { s.DirMode = 0o700 })},
		{"optional is true", with("optional", "true"), false, change(secret, func(s *Spec) { s.Sources[0].Optional = true })},
		{"optional is false", with("optional", "false"), false, secret},
		{"refresh is off", with("refresh", "off"), false, change(secret, func(s *Spec) { s.Refresh = RefreshOff })},
		{"refresh is watch", with("refresh", "watch"), false, secret},
		{"an empty list of items is every key", with("items", "[]"), false, secret},
		{"items are read", with("items", "[{key: a, path: b, uid: 5}]"), false,
			change(secret, func(s *Spec) { s.Sources[0].Items = []Item{{Key: "a", Path: "b", UID: number(5)}} })},
		{"kubelet's keys are skipped, known or not (H-046)", with("csi.storage.k8s.io/ephemeral", "true",
			"csi.storage.k8s.io/pod.name", "p", "csi.storage.k8s.io/from.the.future", "", "csi.storage.k8s.io/", "x"), false, secret},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, errs := Parse(tc.context, tc.requestHasSecrets)
			if len(errs) > 0 {
				t.Fatal(text(errs))
			}
			if !got.Equal(tc.want) {
				t.Errorf("got %+v\nwant %+v", got, tc.want)
			}
			if errs := Validate(got); len(errs) > 0 {
				t.Errorf("Validate refuses what Parse accepted: %s", text(errs))
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tc := range []struct {
		name              string
		context           map[string]string
		requestHasSecrets bool
		want              []string // all of these are in the messages
	}{
		{"no attributes at all (H-009, H-067)", nil, false, []string{"volumeAttributes: Required value", "secretName, configMapName or sources", "nodePublishSecretRef"}},
		{"only kubelet's attributes", map[string]string{"csi.storage.k8s.io/pod.name": "p"}, false, []string{"volumeAttributes: Required value"}},
		{"two objects", with("configMapName", "conf"), false, []string{`volumeAttributes: Invalid value: "configMapName, secretName"`, "keep one"}},
		{"an object besides the request's content", with(), true, []string{`"nodePublishSecretRef, secretName"`}},
		{"two objects, both names also bad", with("secretName", "A", "configMapName", "B"), false,
			[]string{"volumeAttributes[configMapName]: Invalid", "volumeAttributes[secretName]: Invalid"}},
		{"sources besides a name", with("sources", "[{configMap: {name: a}}]"), false, []string{`"secretName, sources"`, "list several objects in sources"}},

		{"an empty name", with("secretName", ""), false, []string{"volumeAttributes[secretName]: Required value: must not be empty"}},
		{"an empty uid", with("uid", ""), false, []string{"volumeAttributes[uid]: Required value"}},
		{"an empty gid", with("gid", ""), false, []string{"volumeAttributes[gid]: Required value"}},
		{"an empty mode", with("mode", ""), false, []string{"volumeAttributes[mode]: Required value"}},
		{"an empty dirMode", with("dirMode", ""), false, []string{"volumeAttributes[dirMode]: Required value"}},
		{"empty items", with("items", ""), false, []string{"volumeAttributes[items]: Required value"}},
		{"an empty optional", with("optional", ""), false, []string{"volumeAttributes[optional]: Required value"}},
		{"an empty refresh", with("refresh", ""), false, []string{"volumeAttributes[refresh]: Required value"}},

		{"a name that climbs (H-069)", with("secretName", "../../nodes/x"), false, []string{`volumeAttributes[secretName]: Invalid value: "../../nodes/x"`, "give the name alone"}},
		{"a name with a slash (H-069)", with("secretName", "a/b"), false, []string{"pod's own namespace", "RFC 1123"}},
		{"a name in upper case (H-069)", with("secretName", "A"), false, []string{"RFC 1123"}},
		{"a name of 254 characters (H-069)", with("secretName", strings.Repeat("a", 254)), false, []string{"no more than 253", `…"`}},
		{"a name of a mebibyte", with("secretName", strings.Repeat("/", 1<<20)), false, []string{"no more than 253"}},
		{"a name with a query (H-069)", with("secretName", "x?watch=1"), false, []string{"RFC 1123"}},
		{"a name with percent signs (H-069)", with("secretName", "%2e%2e"), false, []string{"RFC 1123"}},
		{"a config map's name with a slash", map[string]string{"configMapName": "a/b"}, false, []string{"volumeAttributes[configMapName]: Invalid"}},
		{"a name with a line break", with("secretName", "a\nb"), false, []string{`"a\nb"`}},

		{"optional yes (H-072)", with("optional", "yes"), false, []string{`volumeAttributes[optional]: Invalid value: "yes": must be exactly "true" or "false"`}},
		{"optional 1 (H-072)", with("optional", "1"), false, []string{"volumeAttributes[optional]"}},
		{"optional TRUE (H-072)", with("optional", "TRUE"), false, []string{"volumeAttributes[optional]"}},
		{"refresh Off", with("refresh", "Off"), false, []string{`volumeAttributes[refresh]: Invalid value: "Off": must be exactly "watch" or "off"`}},

		{"a typo in a key (H-046)", map[string]string{"secretname": "keys"}, false,
			[]string{"volumeAttributes[secretname]: Forbidden: unknown attribute", `"secretName"`, "volumeAttributes: Required value"}},
		{"a namespace", with("namespace", "kube-system"), false, []string{"volumeAttributes[namespace]: Forbidden", "always read from the pod's own namespace; remove it"}},
		{"defaultMode of the in-tree volume", with("defaultMode", "256"), false, []string{`it is called "mode" here`}},
		{"a key that would break a log line", with("a\nvolumeAttributes[uid]", "x"), false, []string{`volumeAttributes["a\nvolumeAttributes[uid]"]: Forbidden`}},
		{"an empty key", with("", "x"), false, []string{`volumeAttributes[""]: Forbidden`}},
		{"a key of a mebibyte", with(strings.Repeat("k", 1<<20), "x"), false, []string{"volumeAttributes[" + strings.Repeat("k", 64) + "…]"}},
		{"kubelet's prefix without the slash", with("csi.storage.k8s.io", "x"), false, []string{"volumeAttributes[csi.storage.k8s.io]: Forbidden"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := refused(t, tc.context, tc.requestHasSecrets)
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("message lacks %q:\n%s", want, got)
				}
			}
			if strings.Contains(got, "\x00") || len(got) > 4096 {
				t.Errorf("message of %d bytes is not fit to be shown: %.200q", len(got), got)
			}
		})
	}
}

func TestParseReportsEverythingAtOnceSortedByKey(t *testing.T) {
	context := map[string]string{
		"secretName": "A", "uid": "root", "gid": "-1", "mode": "0888", "dirMode": "01777", "optional": "yes", "refresh": "on",
		"items": `[{key: "", path: /a, mode: 600}, {key: b, path: b, uid: x}]`, "bogus": "x",
	}
	var fields []string
	_, errs := Parse(context, false)
	for _, err := range errs {
		fields = append(fields, err.Field)
	}
	want := []string{
		"volumeAttributes[bogus]", "volumeAttributes[dirMode]", "volumeAttributes[gid]",
		"volumeAttributes[items][0].mode", "volumeAttributes[items][1].uid",
		"volumeAttributes[items][0].key", "volumeAttributes[items][0].path",
		"volumeAttributes[mode]", "volumeAttributes[optional]", "volumeAttributes[refresh]",
		"volumeAttributes[secretName]", "volumeAttributes[uid]",
	}
	if !slices.Equal(fields, want) {
		t.Errorf("got %q\nwant %q", fields, want)
	}
	first := text(errs)
	for range 20 { // maps are walked in random order
		if _, errs := Parse(maps.Clone(context), false); text(errs) != first {
			t.Fatalf("not the same again:\n%s\nafter\n%s", text(errs), first)
		}
	}
}

func TestParseNeverEchoesTokensOrValuesOfUnknownKeys(t *testing.T) {
	const secret = "eyJhbGciOi"
	for _, key := range []string{
		"csi.storage.k8s.io/serviceAccount.tokens", "csi.storage.k8s.io/" + secret, // the prefix alone makes a key untouchable
		"CSI.storage.k8s.io/serviceAccount.tokens", "serviceAccount.tokens", "password",
	} {
		got := refused(t, map[string]string{key: secret, "uid": "x"}, false)
		if strings.Contains(got, secret) {
			t.Errorf("key %q: %s", key, got)
		}
		if strings.Contains(got, kubeletPrefix) {
			t.Errorf("key %q: kubelet's keys are nobody's business: %s", key, got)
		}
	}
}

func TestParseCutsLongValuesAndLongLists(t *testing.T) {
	got := refused(t, with("uid", strings.Repeat("é", 1<<19)), false)
	if !strings.Contains(got, `"`+strings.Repeat("é", 32)+`…"`) || len(got) > 500 {
		t.Errorf("a long value is not cut at a character: %.300s", got)
	}
	context := map[string]string{}
	for i := range 1000 {
		context[fmt.Sprintf("key%d", i)] = "x"
	}
	_, errs := Parse(context, false)
	if len(errs) != maxProblems+1 || !strings.Contains(text(errs), "volumeAttributes: Too many: 1001: problems; only the first 32 are listed") {
		t.Errorf("%d errors, the last is %v", len(errs), errs[len(errs)-1])
	}
}

func TestEqualLooksAtEveryField(t *testing.T) {
	base := func() Spec {
		return Spec{UID: number(1), GID: number(2), DirMode: 0o755, Refresh: RefreshWatch,
			Sources: []Source{{Object: Object{Secret, "a"}, Mode: 0o400,
				Items: []Item{{Key: "a", Container: "c", Divisor: "1", Path: "b", Mode: number(3), UID: number(4), GID: number(5)}}}}}
	}
	if !base().Equal(base()) {
		t.Error("equal numbers behind different pointers are not equal")
	}
	if a, b := specOf(Source{Items: nil}), specOf(Source{Items: []Item{}}); !a.Equal(b) {
		t.Error("no items and an empty list of items both mean every key")
	}
	for name, change := range map[string]func(*Spec){
		"kind": func(s *Spec) { s.Sources[0].Object.Kind = ConfigMap }, "name": func(s *Spec) { s.Sources[0].Object.Name = "b" },
		"uid": func(s *Spec) { s.UID = number(9) }, "no uid": func(s *Spec) { s.UID = nil },
		"gid": func(s *Spec) { s.GID = number(9) }, "no gid": func(s *Spec) { s.GID = nil },
		"mode": func(s *Spec) { s.Sources[0].Mode = 0 }, "dirMode": func(s *Spec) { s.DirMode = 0 },
		"optional": func(s *Spec) { s.Sources[0].Optional = true }, "refresh": func(s *Spec) { s.Refresh = RefreshOff },
		"no items": func(s *Spec) { s.Sources[0].Items = nil }, "item key": func(s *Spec) { s.Sources[0].Items[0].Key = "x" },
		"container": func(s *Spec) { s.Sources[0].Items[0].Container = "x" }, "divisor": func(s *Spec) { s.Sources[0].Items[0].Divisor = "1Ki" },
		"another source": func(s *Spec) { s.Sources = append(s.Sources, s.Sources[0]) },
		"item path":      func(s *Spec) { s.Sources[0].Items[0].Path = "x" }, "item mode": func(s *Spec) { s.Sources[0].Items[0].Mode = nil },
		"item uid": func(s *Spec) { s.Sources[0].Items[0].UID = number(9) }, "item gid": func(s *Spec) { s.Sources[0].Items[0].GID = nil },
	} {
		changed := base()
		change(&changed)
		if changed.Equal(base()) || base().Equal(changed) {
			t.Errorf("a change of %s goes unnoticed", name)
		}
	}
	// A field that is added later must be added to Equal too.
	for kind, known := range map[reflect.Type]int{reflect.TypeFor[Spec](): 5, reflect.TypeFor[Source](): 4, reflect.TypeFor[Item](): 7} {
		if n := kind.NumField(); n != known {
			t.Errorf("%s has %d fields: extend Equal and this test", kind, n)
		}
	}
}
