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

// specOf returns a Spec with these Sources and with defaults in the other fields.
func specOf(sources ...Source) Spec {
	return Spec{Sources: sources, DirMode: 0o755, Refresh: RefreshWatch, Layout: LayoutLinks}
}

// messages returns the list as users see it, one problem in a line.
func messages(errs field.ErrorList) string {
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
	return messages(errs)
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
		{"a name may have dots", with("secretName", "a.b-c.d"), false,
			change(secret, func(s *Spec) { s.Sources[0].Object.Name = "a.b-c.d" })},
		{"a name may have 253 characters", with("secretName", strings.Repeat("a", 253)), false,
			change(secret, func(s *Spec) { s.Sources[0].Object.Name = strings.Repeat("a", 253) })},
		{"uid and gid are numbers", with("uid", "1000", "gid", "2000"), false,
			change(secret, func(s *Spec) { s.UID, s.GID = number(1000), number(2000) })},
		{"uid 0 is not the same as no uid", with("uid", "0"), false, change(secret, func(s *Spec) { s.UID = number(0) })},
		{"mode wins over the kind's default", map[string]string{"configMapName": "conf", "mode": "0400"}, false,
			change(configMap, func(s *Spec) { s.Mode, s.Sources[0].Mode = number(0o400), 0o400 })},
		{"mode 0 is not the same as no mode", with("mode", "0"), false,
			change(secret, func(s *Spec) { s.Mode, s.Sources[0].Mode = number(0), 0 })},
		{"dirMode is octal too", with("dirMode", "700"), false, change(secret, func(s *Spec) { s.DirMode = 0o700 })},
		{"optional is true", with("optional", "true"), false, change(secret, func(s *Spec) { s.Sources[0].Optional = true })},
		{"optional is false", with("optional", "false"), false, secret},
		{"refresh is off", with("refresh", "off"), false, change(secret, func(s *Spec) { s.Refresh = RefreshOff })},
		{"refresh is watch", with("refresh", "watch"), false, secret},
		{"layout is links", with("layout", "links"), false, secret},
		{"layout is files", with("layout", "files"), false, change(secret, func(s *Spec) { s.Layout = LayoutFiles })},
		{"layout is in-place", with("layout", "in-place"), false,
			change(secret, func(s *Spec) { s.Layout = LayoutInPlace })},
		{"volume names another volume of the pod", map[string]string{"volume": "keys", "mode": "0400"}, false,
			Spec{Volume: "keys", Mode: number(0o400), DirMode: 0o755, Refresh: RefreshWatch, Layout: LayoutLinks}},
		{"a PATH has an owner, a group and a mode of its own",
			with("uid/id", "5", "gid/id", "6", "mode/id", "0600", "uid/a/b:c\\d e", "7"), false,
			change(secret, func(s *Spec) {
				s.Paths = map[string]Permissions{
					"id": {UID: number(5), GID: number(6), Mode: number(0o600)}, `a/b:c\d e`: {UID: number(7)},
				}
			})},
		{"a template has a PATH, an owner and a mode",
			with("template/.pgpass", "db:5432:*:$(user):$(password)\n", "template/a/b", "$", "uid/.pgpass", "5"), false,
			change(secret, func(s *Spec) {
				s.Paths = map[string]Permissions{".pgpass": {UID: number(5)}}
				s.Templates = map[string]Template{".pgpass": "db:5432:*:$(user):$(password)\n", "a/b": "$"}
			})},
		{"a template of 16384 bytes", with("template/a", strings.Repeat("é", 8192)), false,
			change(secret, func(s *Spec) { s.Templates = map[string]Template{"a": Template(strings.Repeat("é", 8192))} })},
		{"kubelet's keys are skipped, known or not (H-046)", with("csi.storage.k8s.io/ephemeral", "true",
			"csi.storage.k8s.io/pod.name", "p", "csi.storage.k8s.io/from.the.future", "", "csi.storage.k8s.io/", "x"), false,
			secret},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, errs := Parse(tc.context, tc.requestHasSecrets)
			if len(errs) > 0 {
				t.Fatal(messages(errs))
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v\nwant %+v", got, tc.want)
			}
			if errs := Validate(got); len(errs) > 0 {
				t.Errorf("Validate refuses what Parse accepted: %s", messages(errs))
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tc := range []struct {
		name              string
		context           map[string]string
		requestHasSecrets bool
		want              []string // The messages must contain all of these.
	}{
		{"no attributes at all (H-009, H-067)", nil, false,
			[]string{"volumeAttributes: Required value", "secretName, configMapName or volume", "nodePublishSecretRef"}},
		{"only kubelet's attributes", map[string]string{"csi.storage.k8s.io/pod.name": "p"}, false,
			[]string{"volumeAttributes: Required value"}},
		{"two objects", with("configMapName", "conf"), false,
			[]string{`volumeAttributes: Invalid value: "configMapName, secretName"`, "keep one"}},
		{"an object besides the request's content", with(), true, []string{`"nodePublishSecretRef, secretName"`}},
		{"two objects, both names also bad", with("secretName", "A", "configMapName", "B"), false,
			[]string{"volumeAttributes[configMapName]: Invalid", "volumeAttributes[secretName]: Invalid"}},
		{"volume besides a name", with("volume", "a"), false, []string{`"secretName, volume"`,
			"name a projected volume of the pod in volume"}},
		{"volume besides the request's content", map[string]string{"volume": "a"}, true,
			[]string{`"nodePublishSecretRef, volume"`}},
		{"optional with volume", map[string]string{"volume": "a", "optional": "true"}, false,
			[]string{"volumeAttributes[optional]: Forbidden: belongs to secretName and configMapName",
				"write optional in the volume"}},
		{"optional with the request's content", map[string]string{"optional": "false"}, true,
			[]string{"volumeAttributes[optional]: Forbidden"}},
		{"a volume's name that is none", map[string]string{"volume": "a.b"}, false,
			[]string{`volumeAttributes[volume]: Invalid value: "a.b"`, "must not contain dots"}},
		{"a volume's name of 64 characters", map[string]string{"volume": strings.Repeat("a", 64)}, false,
			[]string{"no more than 63"}},
		{"an empty volume", map[string]string{"volume": ""}, false, []string{"volumeAttributes[volume]: Required value"}},
		{"items, as in Kubernetes' volumes", with("items", "[]"), false,
			[]string{"volumeAttributes[items]: Forbidden", "name that volume in volume"}},

		{"an empty value for a PATH", with("uid/id", ""), false, []string{"volumeAttributes[uid/id]: Required value"}},
		{"a bad value for a PATH", with("mode/id", "0888"), false,
			[]string{`volumeAttributes[mode/id]: Invalid value: "0888": ` + modeRule}},
		{"no PATH", with("uid/", "5"), false,
			[]string{`volumeAttributes[uid/]: Invalid value: "": the path must name a file`}},
		{"a PATH that leaves the volume", with("mode/../../etc/shadow", "0644"), false,
			[]string{"the path must not contain the element '..'"}},
		{"an absolute PATH", with("mode//etc/shadow", "0644"), false, []string{"must be relative to the volume"}},
		{"a PATH that is not clean", with("mode/a/./b", "0644"), false, []string{"must be in its shortest form"}},
		{"a PATH of what has none", with("dirMode/a", "0644"), false,
			[]string{"volumeAttributes[dirMode/a]: Forbidden: unknown attribute"}},

		{"an empty template", with("template/a", ""), false,
			[]string{"volumeAttributes[template/a]: Required value: must not be empty"}},
		{"a template of 16385 bytes", with("template/a", strings.Repeat("a", 16385)), false,
			[]string{"volumeAttributes[template/a]: Invalid value: must have 1 to 16384 bytes"}},
		{"a template with NUL", with("template/a", "a\x00"), false,
			[]string{"volumeAttributes[template/a]: Invalid value: must be UTF-8 text without NUL"}},
		{"a template that is no UTF-8", with("template/a", "a\xff"), false, []string{"must be UTF-8 text without NUL"}},
		{"a template with an open reference", with("template/a", "$(b"), false,
			[]string{`volumeAttributes[template/a]: Invalid value: must close each "$(" with ")"`, `write "$$(" for`}},
		{"a template with the path of no file", with("template/a", "$(b) $(/c)"), false,
			[]string{`volumeAttributes[template/a]: Invalid value: "$(/c)": must name a file of the volume by its path`}},
		{"a template whose PATH leaves the volume", with("template/../a", "x"), false,
			[]string{"volumeAttributes[template/../a]: Invalid value", "must not contain the element '..'"}},
		{"a template whose PATH is not clean", with("template/a/", "x"), false, []string{"must be in its shortest form"}},
		{"a template without a PATH", with("template", "x"), false,
			[]string{`volumeAttributes[template]: Forbidden: unknown attribute: it is called "template/PATH" here`}},

		{"an empty name", with("secretName", ""), false,
			[]string{"volumeAttributes[secretName]: Required value: must not be empty"}},
		{"an empty uid", with("uid", ""), false, []string{"volumeAttributes[uid]: Required value"}},
		{"an empty gid", with("gid", ""), false, []string{"volumeAttributes[gid]: Required value"}},
		{"an empty mode", with("mode", ""), false, []string{"volumeAttributes[mode]: Required value"}},
		{"an empty dirMode", with("dirMode", ""), false, []string{"volumeAttributes[dirMode]: Required value"}},
		{"an empty optional", with("optional", ""), false, []string{"volumeAttributes[optional]: Required value"}},
		{"an empty refresh", with("refresh", ""), false, []string{"volumeAttributes[refresh]: Required value"}},

		{"a name that climbs (H-069)", with("secretName", "../../nodes/x"), false,
			[]string{`volumeAttributes[secretName]: Invalid value: "../../nodes/x"`, "give the name alone"}},
		{"a name with a slash (H-069)", with("secretName", "a/b"), false, []string{"pod's own namespace", "RFC 1123"}},
		{"a name in upper case (H-069)", with("secretName", "A"), false, []string{"RFC 1123"}},
		{"a name of 254 characters (H-069)", with("secretName", strings.Repeat("a", 254)), false,
			[]string{"no more than 253", `…"`}},
		{"a name of a mebibyte", with("secretName", strings.Repeat("/", 1<<20)), false, []string{"no more than 253"}},
		{"a name with a query (H-069)", with("secretName", "x?watch=1"), false, []string{"RFC 1123"}},
		{"a name with percent signs (H-069)", with("secretName", "%2e%2e"), false, []string{"RFC 1123"}},
		{"a config map's name with a slash", map[string]string{"configMapName": "a/b"}, false,
			[]string{"volumeAttributes[configMapName]: Invalid"}},
		{"a name with a line break", with("secretName", "a\nb"), false, []string{`"a\nb"`}},

		{"optional yes (H-072)", with("optional", "yes"), false,
			[]string{`volumeAttributes[optional]: Invalid value: "yes": must be exactly "true" or "false"`}},
		{"optional 1 (H-072)", with("optional", "1"), false, []string{"volumeAttributes[optional]"}},
		{"optional TRUE (H-072)", with("optional", "TRUE"), false, []string{"volumeAttributes[optional]"}},
		{"refresh Off", with("refresh", "Off"), false,
			[]string{`volumeAttributes[refresh]: Invalid value: "Off": must be exactly "watch" or "off"`}},

		{"an empty layout", with("layout", ""), false, []string{"volumeAttributes[layout]: Required value"}},
		{"layout inplace", with("layout", "inplace"), false, []string{
			`volumeAttributes[layout]: Invalid value: "inplace": must be exactly "links", "files" or "in-place"`}},
		{"a typo in layout", with("layouts", "files"), false, []string{`the nearest known one is "layout"`}},

		{"a typo in a key (H-046)", map[string]string{"secretname": "keys"}, false,
			[]string{"volumeAttributes[secretname]: Forbidden: unknown attribute", `"secretName"`,
				"volumeAttributes: Required value"}},
		{"a namespace", with("namespace", "kube-system"), false, []string{"volumeAttributes[namespace]: Forbidden",
			"always read from the pod's own namespace; remove it"}},
		{"defaultMode of the in-tree volume", with("defaultMode", "256"), false, []string{`it is called "mode" here`}},
		{"a key that would break a log line", with("a\nvolumeAttributes[uid]", "x"), false,
			[]string{`volumeAttributes["a\nvolumeAttributes[uid]"]: Forbidden`}},
		{"an empty key", with("", "x"), false, []string{`volumeAttributes[""]: Forbidden`}},
		{"a key of a mebibyte", with(strings.Repeat("k", 1<<20), "x"), false,
			[]string{"volumeAttributes[" + strings.Repeat("k", 64) + "…]"}},
		{"kubelet's prefix without the slash", with("csi.storage.k8s.io", "x"), false,
			[]string{"volumeAttributes[csi.storage.k8s.io]: Forbidden"}},
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
		"uid/a": "x", "mode/../a": "0400", "bogus": "x",
	}
	var fields []string
	_, errs := Parse(context, false)
	for _, err := range errs {
		fields = append(fields, err.Field)
	}
	want := []string{
		"volumeAttributes[bogus]", "volumeAttributes[dirMode]", "volumeAttributes[gid]", "volumeAttributes[mode/../a]",
		"volumeAttributes[mode]", "volumeAttributes[optional]", "volumeAttributes[refresh]",
		"volumeAttributes[secretName]", "volumeAttributes[uid/a]", "volumeAttributes[uid]",
	}
	if !slices.Equal(fields, want) {
		t.Errorf("got %q\nwant %q", fields, want)
	}
	first := messages(errs)
	for range 20 { // The order of maps is random.
		if _, errs := Parse(maps.Clone(context), false); messages(errs) != first {
			t.Fatalf("not the same again:\n%s\nafter\n%s", messages(errs), first)
		}
	}
}

func TestParseNeverEchoesTokensOrValuesOfUnknownKeys(t *testing.T) {
	const secret = "eyJhbGciOi"
	for _, key := range []string{
		// the prefix alone makes a key untouchable
		"csi.storage.k8s.io/serviceAccount.tokens", "csi.storage.k8s.io/" + secret,
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

// A template may hold a password.
func TestParseNeverEchoesTheTextOfATemplate(t *testing.T) {
	const secret = "hunter2"
	for _, text := range []string{secret + "$(", secret + "$(/a)" + secret, secret + "\x00", secret + "\xff",
		strings.Repeat(secret, maxTemplate)} {
		if got := refused(t, with("template/a", text), false); strings.Contains(got, secret) {
			t.Errorf("the text %.40q: %s", text, got)
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
	if len(errs) != maxProblems+1 || !strings.Contains(messages(errs),
		"volumeAttributes: Too many: 1001: problems; only the first 32 are listed") {
		t.Errorf("%d errors, the last is %v", len(errs), errs[len(errs)-1])
	}
}

func TestSameRequestLooksAtEveryAttribute(t *testing.T) {
	base := func() Spec {
		return Spec{UID: number(1), GID: number(2), Mode: number(0o400), DirMode: 0o755, Refresh: RefreshWatch,
			Layout:    LayoutLinks,
			Paths:     map[string]Permissions{"f": {UID: number(3), GID: number(4), Mode: number(5)}},
			Templates: map[string]Template{"t": "$(a)"},
			Sources:   []Source{{Object: Object{Secret, "a"}, Mode: 0o400}}}
	}
	if !base().SameRequest(base()) {
		t.Error("equal numbers behind different pointers are not equal")
	}
	for name, change := range map[string]func(*Spec){
		"kind": func(s *Spec) { s.Sources[0].Object.Kind = ConfigMap },
		"name": func(s *Spec) { s.Sources[0].Object.Name = "b" },
		"uid":  func(s *Spec) { s.UID = number(9) }, "no uid": func(s *Spec) { s.UID = nil },
		"gid": func(s *Spec) { s.GID = number(9) }, "no gid": func(s *Spec) { s.GID = nil },
		"mode": func(s *Spec) { s.Mode = number(0) }, "no mode": func(s *Spec) { s.Mode = nil },
		"default mode": func(s *Spec) { s.Sources[0].Mode = 0 }, "dirMode": func(s *Spec) { s.DirMode = 0 },
		"optional": func(s *Spec) { s.Sources[0].Optional = true }, "refresh": func(s *Spec) { s.Refresh = RefreshOff },
		"layout":      func(s *Spec) { s.Layout = LayoutFiles },
		"volume":      func(s *Spec) { s.Volume = "v" },
		"path":        func(s *Spec) { s.Paths = map[string]Permissions{"g": s.Paths["f"]} },
		"template":    func(s *Spec) { s.Templates = map[string]Template{"t": "$(b)"} },
		"no template": func(s *Spec) { s.Templates = nil },
		"no path":     func(s *Spec) { s.Paths = nil },
		"path uid":    func(s *Spec) { s.Paths["f"] = Permissions{GID: number(4), Mode: number(5)} },
		"path gid":    func(s *Spec) { s.Paths["f"] = Permissions{UID: number(3), Mode: number(5)} },
		"path mode":   func(s *Spec) { s.Paths["f"] = Permissions{UID: number(3), GID: number(4)} },
	} {
		changed := base()
		change(&changed)
		if changed.SameRequest(base()) || base().SameRequest(changed) {
			t.Errorf("a change of %s goes unnoticed", name)
		}
	}
	described := Spec{Volume: "v", Sources: []Source{{Mode: 1}}, DefaultUser: number(5), MountPoints: []string{"m"},
		SubPaths: []string{"s"}}
	if !described.SameRequest(Spec{Volume: "v"}) {
		t.Error("what Describe adds is taken for another request")
	}
	// A field that is added later must be added to SameRequest too, unless Describe sets it.
	for kind, known := range map[reflect.Type]int{reflect.TypeFor[Spec](): 13, reflect.TypeFor[Source](): 4,
		reflect.TypeFor[Permissions](): 3} {
		if n := kind.NumField(); n != known {
			t.Errorf("%s has %d fields: extend SameRequest and this test", kind, n)
		}
	}
}
