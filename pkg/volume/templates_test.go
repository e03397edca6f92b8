// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
)

func TestPayloadWithTemplates(t *testing.T) {
	file := func(path, data string, mode, uid uint32) projector.File {
		return projector.File{Path: path, Data: []byte(data), Mode: mode, UID: uid}
	}
	moded := secretVolume("s", "a", "d/a", "b", "b")
	moded.Secret.DefaultMode, moded.Secret.Items[0].Mode = ptr.To[int32](0o755), ptr.To[int32](0o640)
	moded.Secret.Items[0].User = ptr.To[int64](7)
	for _, test := range []struct {
		name      string
		described *corev1.VolumeSource // nil means that the volume has the attribute secretName
		attrs     []string
		content   []content
		want      []projector.File
	}{
		{"two keys in one file", nil, []string{"template/.pgpass", "db:5432:*:$(user):$(pass)\n", "uid", "5"},
			[]content{{"user": "u", "pass": "p"}},
			[]projector.File{file(".pgpass", "db:5432:*:u:p\n", 0o400, 5), file("pass", "p", 0o400, 5),
				file("user", "u", 0o400, 5)}},
		{"text alone", nil, []string{"template/d/t", "$$(a)", "mode", "0440"}, []content{{}},
			[]projector.File{file("d/t", "$(a)", 0o440, 0)}},
		{"content with references and bytes that are no text", nil, []string{"template/t", "[$(a)]"},
			[]content{{"a": "$(b)\x00\xff"}},
			[]projector.File{file("a", "$(b)\x00\xff", 0o400, 0), file("t", "[$(b)\x00\xff]", 0o400, 0)}},
		{"a template shows the object's file whose place it takes", nil,
			[]string{"template/a", "<$(a)>", "template/b", "<$(a)$(b)>"}, []content{{"a": "1", "b": "2"}},
			[]projector.File{file("a", "<1>", 0o400, 0), file("b", "<12>", 0o400, 0)}},
		{"an owner and a mode of its own", nil, []string{"template/t", "$(a)", "uid/t", "6", "mode/t", "0444"},
			[]content{{"a": "1"}}, []projector.File{file("a", "1", 0o400, 0), file("t", "1", 0o444, 6)}},
		{"the mode is what all files and the volume let do", &moded,
			[]string{"mode/b", "0500", "template/all", "$(b)$(d/a)", "template/one", "$(d/a)", "template/none", "x"},
			[]content{{"a": "1", "b": "2"}},
			[]projector.File{file("all", "21", 0o400, 0), file("b", "2", 0o500, 0), file("d/a", "1", 0o640, 7),
				file("none", "x", 0o755, 0), file("one", "1", 0o640, 0)}},
		{"files of all sources", ptr.To(projectedVolume(secretProjection("s"), secretProjection("o", "k", "d/k"))),
			[]string{"template/t", "$(a)$(d/k)"}, []content{{"a": "1"}, {"k": "2"}},
			[]projector.File{file("a", "1", 0o644, 0), file("d/k", "2", 0o644, 0), file("t", "12", 0o644, 0)}},
		{"a volume without objects", ptr.To(projectedVolume()), []string{"template/t", "x"}, nil,
			[]projector.File{file("t", "x", 0o644, 0)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := templateVolume(t, test.described, test.attrs...)
			content := v.showing(test.content...)
			got, err := v.payload(content, ample)
			must(t, err)
			must(t, v.checkPaths(content, got))
			if !reflect.DeepEqual(got.Files, test.want) {
				t.Errorf("got  %+v\nwant %+v", got.Files, test.want)
			}
		})
	}
}

// templateVolume returns a volume of a Secret, or one that another volume describes.
func templateVolume(t *testing.T, described *corev1.VolumeSource, attrs ...string) *volume {
	t.Helper()
	if described != nil {
		return testVolume(describe(t, *described, attrs...), nil)
	}
	m := map[string]string{"secretName": "s"}
	for i := 0; i < len(attrs); i += 2 {
		m[attrs[i]] = attrs[i+1]
	}
	return testVolume(parse(t, m, false), nil)
}

func TestPayloadRefusesTemplates(t *testing.T) {
	const secret = "hunter2"
	many := content{}
	for i := range 13 {
		many[fmt.Sprintf("k%02d", i)] = ""
	}
	optional := secretVolume("s", "a", "a", "b", "b")
	optional.Secret.Optional = ptr.To(true)
	for _, test := range []struct {
		name      string
		described *corev1.VolumeSource
		attrs     []string
		content   content
		limits    Limits
		says      []string
	}{
		{"a file that is not there", nil, []string{"template/t", secret + "$(a)$(c)"}, content{"a": secret, "b": "2"}, ample,
			[]string{`the attribute "template/t"`, `the file "c"`, `Secret "ns/s"`, `the files are "a", "b"; `, "$$("}},
		{"the first of 13 files are listed", nil, []string{"template/t", "$(c)"}, many, ample,
			[]string{`"k00", "k01"`, `"k09" and 3 more`}},
		{"no files", nil, []string{"template/t", "$(c)"}, content{}, ample, []string{"the files are none"}},
		{"another template", nil, []string{"template/t", "$(u)", "template/u", secret}, content{"a": secret}, ample,
			[]string{`the attribute "template/t"`, `the file "u"`, `the files are "a"; `}},
		{"a long name in a long PATH", nil,
			[]string{"template/" + strings.Repeat("p", 200), "$(" + strings.Repeat("f", 200) + ")"}, content{"a": ""}, ample,
			[]string{`"template/` + strings.Repeat("p", 55) + `…"`, `"` + strings.Repeat("f", 64) + `…"`}},
		{"a file that a missing optional key does not make", &optional, []string{"template/t", "$(c)"}, content{"a": "1"},
			ample, []string{`the file "c"`}},
		{"one byte too many", nil,
			[]string{"template/t", "12$(a)"}, content{"a": "3456"}, Limits{Bytes: 9, Files: 9},
			[]string{"hold 10 bytes", "more than the 9", "--max-volume-bytes"}},
		{"one file too many", nil, []string{"template/t", "x"}, content{"a": ""}, Limits{Bytes: 9, Files: 1},
			[]string{"2 files", "--max-volume-files"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := templateVolume(t, test.described, test.attrs...)
			_, err := v.payload(v.showing(test.content), test.limits)
			isErr(t, err, ErrPrecondition, test.says...)
			if strings.Contains(err.Error(), secret) || len(err.Error()) > 1500 || worthRetry(err) {
				t.Errorf("retry %v: %v", worthRetry(err), err)
			}
		})
	}
	t.Run("what is too large is not built", func(t *testing.T) {
		v := templateVolume(t, nil, "template/t", strings.Repeat("$(a)", 4096))
		c := v.showing(content{"a": strings.Repeat("x", 16<<10)})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := v.payload(c, ample)
		runtime.ReadMemStats(&after)
		isErr(t, err, ErrPrecondition, "67125248 bytes", "--max-volume-bytes")
		if built := after.TotalAlloc - before.TotalAlloc; built > 32<<20 {
			t.Errorf("%d bytes were allocated for a file of 64 MiB", built)
		}
	})
	t.Run("what a template takes the place of does not count", func(t *testing.T) {
		v := templateVolume(t, nil, "template/a", "1")
		_, err := v.payload(v.showing(content{"a": "12345"}), Limits{Bytes: 1, Files: 1})
		must(t, err)
	})
}

func TestATemplateIsLeftOutWhileSomethingOptionalIsMissing(t *testing.T) {
	projection := func(name string, items ...string) corev1.VolumeProjection {
		p := secretProjection(name, items...)
		p.Secret.Optional = ptr.To(true)
		return p
	}
	for name, described := range map[string]corev1.VolumeSource{
		"an object": projectedVolume(secretProjection("keys"), projection("later")),
		"a key":     projectedVolume(secretProjection("keys"), projection("keys", "k", "k", "later", "later")),
		"an object with items": projectedVolume(secretProjection("keys"),
			projection("later", "later", "later")),
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHarness(t)
			h.secret("keys", content{"k": "1", "t": "replaced"})
			// The path t belongs to the template, even while the template is left out.
			r := h.described("v", described, "uid", "1000", "template/t", "$(k)$(later)", "mode/t", "0600", "template/u", "$(k)")
			h.publish(r)
			h.present(r, content{"k": "1", "u": "1"})
			h.run()
			h.secret("later", content{"later": "2"})
			h.secret("keys", content{"k": "1", "t": "replaced", "later": "2"})
			h.becomes(r, content{"k": "1", "later": "2", "t": "12", "u": "1"})
			h.hasPermissions(r, map[string]permissions{"t": {0o600, 1000, 0}})
			h.removeSecret("later")
			h.secret("keys", content{"k": "3"})
			h.becomes(r, content{"k": "3", "u": "3"})
			h.unpublish(r)
		})
	}
}

func TestAChangeOfAnyFileRefreshesItsTemplates(t *testing.T) {
	for _, layout := range []attributes.Layout{attributes.LayoutLinks, attributes.LayoutFiles, attributes.LayoutInPlace} {
		t.Run(string(layout), func(t *testing.T) { refreshTemplates(t, layout) })
	}
}

func refreshTemplates(t *testing.T, layout attributes.Layout) {
	h := newFakeHarness(t)
	h.secret("a", content{"user": "u1"})
	h.fake.set(configMapRef("b"), content{"host": "h1"})
	described := projectedVolume(secretProjection("a"), configMapProjection("b"),
		corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
		}}})
	r := h.described("v", described, "uid", "1000", "layout", string(layout),
		"template/all", "$(user)@$(host) $(labels)")
	h.fake.setFields(r, "1", content{"metadata.labels": "l1"})
	h.publish(r)
	h.run()
	want := func(user, host, labels string) {
		t.Helper()
		h.becomes(r, content{"user": user, "host": host, "labels": labels, "all": user + "@" + host + " " + labels})
	}
	want("u1", "h1", "l1")
	h.secret("a", content{"user": "u2"})
	want("u2", "h1", "l1")
	h.fake.set(configMapRef("b"), content{"host": "h2"})
	want("u2", "h2", "l1")
	h.fake.setFields(r, "2", content{"metadata.labels": "l2"})
	want("u2", "h2", "l2")
	h.restart()
	h.run()
	want("u2", "h2", "l2")
	h.secret("a", content{"user": "u3"})
	want("u3", "h2", "l2")
	h.unpublish(r)
}

// A refresh that can't show a template keeps the old version of all files.
func TestATemplateWhoseFileGoes(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"a": "1", "b": "1"})
	r := h.request("v", "secretName", "keys", "uid", "1000", "template/t", "$(a)$(b)")
	h.publish(r)
	h.present(r, content{"a": "1", "b": "1", "t": "11"})
	h.secret("keys", content{"a": "2"})
	h.publish(r)
	h.shows(r, content{"a": "1", "b": "1", "t": "11"})
	if s := h.statusOf(r); !strings.Contains(s.Stale, `"template/t" shows the file "b"`) {
		t.Errorf("stale: %q", s.Stale)
	}
	h.secret("keys", content{"a": "3", "b": "3"})
	h.publish(r)
	h.shows(r, content{"a": "3", "b": "3", "t": "33"})
	if s := h.statusOf(r); s.Stale != "" {
		t.Errorf("stale: %q", s.Stale)
	}
	h.unpublish(r)
}

func TestTheFirstPublishRefusesATemplateOfNoFile(t *testing.T) {
	h := newFakeHarness(t)
	h.secret("keys", content{"a": "1"})
	r := h.request("v", "secretName", "keys", "uid", "1000", "template/t", "$(b)")
	before := h.snapshot()
	isErr(t, h.Publish(t.Context(), r), ErrPrecondition, `"template/t"`, `"b"`)
	h.unchanged(before)
	h.absent(r)
	r = h.request("w", "secretName", "keys", "uid", "1000", "template/a/b", "x")
	before = h.snapshot()
	isErr(t, h.Publish(t.Context(), r), ErrPrecondition, `"a/b"`) // The Secret has a file a.
	h.unchanged(before)
	h.absent(r)
}

func TestATemplateOfNodePublishSecretRef(t *testing.T) {
	h := newFakeHarness(t)
	r := h.request("v", "uid", "1000", "template/t", "<$(k)>")
	h.publish(r)
	h.present(r, content{"k": "from the request", "t": "<from the request>"})
	r.Secrets = map[string]string{"k": "new"}
	h.publish(r)
	h.present(r, content{"k": "new", "t": "<new>"})
	h.unpublish(r)
}

// The record of a volume counts with its templates in the resources that the volume takes.
func TestARecordCountsWithItsTemplates(t *testing.T) {
	text := attributes.Template(strings.Repeat("x", 16384))
	plain, with := testVolume(attributes.Spec{}, nil), testVolume(attributes.Spec{
		Templates: map[string]attributes.Template{"a": text, "b": text, "c": text},
	}, nil)
	if more := recordMemory(with) - recordMemory(plain); more < 3*16384 {
		t.Errorf("three templates count as %d bytes", more)
	}
}
