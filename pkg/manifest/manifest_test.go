// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestDocumentsAreThoseOfKubectl(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string // line: text
	}{
		{"nothing", "", []string{`1: ""`}},
		{"one", "a: 1\n", []string{`1: "a: 1\n"`}},
		{"several", "---\na: 1\n--- # c\n\nb: 2\n---\n", []string{`1: ""`, `2: "a: 1\n"`, `4: "\nb: 2\n"`, `7: ""`}},
		{"CRLF", "a: 1\r\n---\r\nb: 2\r\n", []string{`1: "a: 1\r\n"`, `3: "b: 2\r\n"`}},
		{"in a text it is no separator", "a: |\n  ---\n  b\n", []string{`1: "a: |\n  ---\n  b\n"`}},
		{"a document beside its separator", "--- {a: 1}\nb: 2\n",
			[]string{`1: ""`, `1: line 1: kubectl takes only`, `2: "b: 2\n"`}},
		{"a byte order mark", "\ufeffa: 1", []string{`1: "a: 1"`}},
		{"JSON", "{\"a\": 1}\n {\"b\":\n2}\n", []string{`1: "{\"a\": 1}"`, `1: "\n {\"b\":\n2}"`}},
		{"almost JSON", "{a: 1}\n---\n{\"b\": 2}", []string{`1: "{a: 1}\n"`, `3: "{\"b\": 2}"`}},
		{"an error is where it is", "a: 1\n---\nb: 2\n c: 3\n---\nd: 4\n",
			[]string{`1: "a: 1\n"`, `3: line 4: this is not YAML`, `6: "d: 4\n"`}},
		{"JSON with escapes", `{"a": "\/ \ud83d\ude80"}`, []string{`1: "{\"a\": \"\\/ \\ud83d\\ude80\"}"`}},
		{"broken JSON", "{\n\"a\": [1,\n,2]}\n", []string{`1: line 3: this is not JSON: invalid character ','`}},
		{"JSON that ends too early", "{\"a\": [1,\n2", []string{`1: line 2: this is not JSON: unexpected end of the text`}},
		{"broken YAML in brackets", "{a: [1,\n2}\n", []string{`1: line 2: this is not YAML: did not find expected`}},
		{"a template", "a: 1\n---\nb:\n  {{- x }}\n", []string{`1: "a: 1\n"`, `3: line 4: this is a template`}},
		{"a template that is YAML", "---\na: 1\nb: {{ x }}\n", []string{`1: ""`, `2: line 3: this is a template`}},
		{"a text with braces is none", "a: '{{ x }}'\n", []string{`1: "a: '{{ x }}'\n"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, d := range Parse("in", test.text).Documents {
				if d.Err != nil {
					got = append(got, fmt.Sprintf("%d: %v", d.Line, d.Err))
				} else {
					got = append(got, fmt.Sprintf("%d: %q", d.Line, d.Text))
				}
			}
			if !slices.EqualFunc(got, test.want, strings.HasPrefix) {
				t.Errorf("documents %q, want %q", got, test.want)
			}
		})
	}
}

func TestScalarsAreThoseOfKubectl(t *testing.T) {
	for text, want := range map[string]any{
		"yes": true, "off": false, "y": true, "'yes'": "yes", "0400": 256, "0x10": 16, "1_000": 1000, "1000": 1000,
		`"1000"`: "1000",
		"~":      nil, "": nil, "null": nil, "1.5": 1.5, "a b": "a b", "2001-01-01": "2001-01-01", "!!str 7": "7",
		"|\n  7": "7\n", "08": 8.0,
		"---x": "---x", "a:b": "a:b", "é": "é", "18446744073709551615": uint64(18446744073709551615),
	} {
		f := Parse("in", "k: "+text+"\n")
		if got := f.Documents[0].Root.Get("k").Value; f.Documents[0].Err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %#v, want %#v (%v)", text, got, want, f.Documents[0].Err)
		}
	}
}

func TestTabsAreNamed(t *testing.T) {
	for text, want := range map[string]string{
		"a:\n\tb: 1\n":                    "line 2: this is not YAML: indent with spaces, this line has a tab",
		"a: b\n---\na:\n  b: 1\n\tc: 1\n": "line 5: this is not YAML: indent with spaces, this line has a tab",
		"a:\n  b: 1\n\n  \tc: 2\n":        "line 4: this is not YAML: indent with spaces, this line has a tab",
		"a:\n  -\tb: 1\n    c: 2\n":       "line 2: this is not YAML: indent with spaces, this line has a tab",
		"a: |\n  b\n\tc\n":                "line 3: this is not YAML: indent with spaces, this line has a tab",
		"a: [\nb: c\n":                    "line 2: this is not YAML: did not find expected ',' or ']'",
	} {
		documents := Parse("in", text).Documents
		if err := documents[len(documents)-1].Err; err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestPlaces(t *testing.T) {
	text := strings.Join([]string{
		`# ü`,
		`a: {b: "ü\"", c: [x, 'it''s' ], d: }`,
		`ü: plain # c`,
		`e: |-`,
		`  one`,
		``,
		`  two`,
		``,
		`f:`,
		`- g: 1`,
		`  # deep`,
		`  h: >`,
		`    folded`,
		`i: two`,
		`  lines`,
		`j: &x {k: 1}`,
		`l: *x`,
	}, "\n") + "\n"
	d := Parse("in", text).Documents[0]
	for _, test := range []struct {
		path         string
		line, column int
		text         string // the beginning of the value
	}{
		{"a", 2, 4, "{b: "},
		{"a.b", 2, 8, `"ü\""`},
		{"a.c", 2, 18, "[x, "},
		{"ü", 3, 4, "plain"},
		{"e", 4, 4, "|-"},
		{"f", 10, 1, "- g: 1"},
		{"i", 14, 4, "two"},
		{"j", 16, 4, "&x {"},
		{"l", 17, 4, "*x"},
	} {
		n := d.Root.Get(strings.Split(test.path, ".")...)
		if line, column := n.Position(); line != test.line || column != test.column ||
			!strings.HasPrefix(text[n.Start:], test.text) {
			t.Errorf("%s is at %d:%d; want %d:%d: %q", test.path, line, column, test.line, test.column, test.text)
		}
	}
}

func TestMappings(t *testing.T) {
	d := Parse("in", "base: &base {a: 1, b: 2}\nx:\n  <<: *base\n  b: 3\n  b: 4\n  c: 5\n").Documents[0]
	x := d.Root.Get("x")
	var names []string
	for _, e := range x.Entries {
		names = append(names, e.Name+"="+e.Value.Text)
	}
	if got := strings.Join(names, " "); got != "b=4 c=5 a=1" {
		t.Errorf("x has %s", got)
	}
	if again := x.Repeated; len(again) != 1 || again[0].Name != "b" || again[0].Key.Line() != 5 {
		t.Errorf("repeated: %+v", again)
	}
}

func TestAliasesOfAliasesAreBounded(t *testing.T) {
	bomb := "a0: &a0 [x]\n"
	for i := range 20 {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1,
			strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 10), ", "))
	}
	merged := "a: &a {"
	for i := range 1001 {
		merged += fmt.Sprintf("k%d: 1, ", i)
	}
	for name, test := range map[string]struct{ text, want string }{
		"aliases of aliases": {bomb, "line 7: aliases of aliases stand for too many values"},
		"a mapping merged into many": {merged + "}\nb:\n" + strings.Repeat("- <<: *a\n", 1001),
			"line 500: aliases of aliases stand for too many values"},
		"a list within itself": {"a: &a [*a]\n",
			`line 1: the anchor "a" stands for a value that contains itself`},
		"a mapping merged into itself": {"b: 1\na: &a {<<: [*a, *a, *a], b: 1}\n",
			`line 2: the anchor "a" stands for a value that contains itself`},
		"values within values": {strings.Repeat("[", 2000) + strings.Repeat("]", 2000),
			"line 1: values are nested more than 1000 deep"},
		"values within values of YAML": {"a: " + strings.Repeat("[", 2000) + strings.Repeat("]", 2000),
			"line 1: values are nested more than 1000 deep"},
		"more than the decoder of YAML takes": {"a: " + strings.Repeat("[", 20000),
			"line 1: this is not YAML: exceeded max depth of 10000"},
	} {
		if err := Parse("in", test.text).Documents[0].Err; err == nil || err.Error() != test.want {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
}

func TestDecode(t *testing.T) {
	d := Parse("in", `
volumes:
- name: a
  secret: {secretName: s, defaultMode: "0400", items: , optional: null, unknown: 5}
- name: 7
  configMap: {name: c, items: {key: a}, defaultMode: 5000000000}
- projected: {sources: [{secret: {name: s}}, {downwardAPI: {items: [{path: p, mode: 0.5}]}}]}
- secret: {defaultMode: 8.0, optional: "yes"}
containers:
- {name: c, securityContext: {runAsUser: "root"}, volumeMounts: text}
`).Documents[0]
	var spec corev1.PodSpec
	var got []string
	for _, m := range d.Root.Decode(&spec) {
		line, column := m.Node.Position()
		got = append(got, fmt.Sprintf("%d:%d %s %s", line, column, m.Path, m.Message))
	}
	want := []string{
		`4:40 volumes[0].secret.defaultMode must be a whole number of 32 bits, and this is a string, which the API server ` +
			`refuses`,
		`5:9 volumes[1].name must be a string, and this is the number 7, which the API server refuses`,
		`6:31 volumes[1].configMap.items must be a list, and this is a mapping, which the API server refuses`,
		`6:54 volumes[1].configMap.defaultMode must be a whole number of 32 bits, and this is the number 5000000000, which ` +
			`the API server refuses`,
		`7:85 volumes[2].projected.sources[1].downwardAPI.items[0].mode must be a whole number of 32 bits, and this is the ` +
			`number 0.5, which the API server refuses`,
		`8:40 volumes[3].secret.optional must be a boolean, and this is a string, which the API server refuses`,
		`10:42 containers[0].securityContext.runAsUser must be a whole number of 64 bits, and this is a string, which the ` +
			`API server refuses`,
		`10:65 containers[0].volumeMounts must be a list, and this is a string, which the API server refuses`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("wrong types:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if v := spec.Volumes; len(v) != 4 || v[0].Secret.SecretName != "s" || v[0].Secret.Optional != nil ||
		v[2].Projected.Sources[0].Secret.Name != "s" || *v[3].Secret.DefaultMode != 8 {
		t.Errorf("volumes are %+v", v)
	}
}

func TestPods(t *testing.T) {
	const spec = "spec: {containers: [{name: c}]}"
	for _, test := range []struct{ name, text, want string }{
		{"a pod", "{kind: Pod, metadata: {name: a}, " + spec + "}", "Pod/a: spec.x"},
		{"a pod of a namespace", "{kind: Pod, metadata: {name: a, namespace: n}, " + spec + "}", "Pod/n/a: spec.x"},
		{"without a name of its own", "{kind: Job, metadata: {generateName: a-}, spec: {template: {" + spec + "}}}",
			"Job/a-*: spec.template.spec.x"},
		{"a CronJob", "{kind: CronJob, metadata: {name: a}, spec: {jobTemplate: {spec: {template: {" + spec + "}}}}}",
			"CronJob/a: spec.jobTemplate.spec.template.spec.x"},
		{"a PodTemplate", "{kind: PodTemplate, metadata: {name: a}, template: {" + spec + "}}",
			"PodTemplate/a: template.spec.x"},
		{"an unknown kind", "{kind: Rollout, metadata: {name: a}, spec: {template: {" + spec + "}}}",
			"Rollout/a: spec.template.spec.x"},
		{"a list of lists", "{kind: PodList, items: [{kind: List, items: [{kind: Service}, {kind: Pod, metadata: {name: " +
			"a}, " + spec + "}]}]}", "Pod/a: items[0].items[1].spec.x"},
		{"a typed list", "{kind: PodList, items: [{metadata: {name: a}, " + spec + "}]}", "Pod/a: items[0].spec.x"},
		{"a typed list with an object of another type",
			"{kind: DeploymentList, items: [{metadata: {name: a}, spec: {template: {" + spec +
				"}}}, {kind: Pod, metadata: {name: b}, " + spec + "}]}",
			"Deployment/a: items[0].spec.template.spec.x, Pod/b: items[1].spec.x"},
		{"a list of anything", "{kind: List, items: [{metadata: {name: a}, " + spec + "}]}", ""},
		{"several templates", "{kind: JobSet, metadata: {name: a}, spec: {replicatedJobs: [{template: {spec: {template: {" +
			spec + "}}}}, {template: {spec: {template: {" + spec + "}}}}]}}",
			"JobSet/a: spec.replicatedJobs[0].template.spec.template.spec.x, JobSet/a: " +
				"spec.replicatedJobs[1].template.spec.template.spec.x"},
		{"a template for each role",
			"{kind: PyTorchJob, metadata: {name: a}, spec: {pytorchReplicaSpecs: {Master: {template: {" + spec + "}}}}}",
			"PyTorchJob/a: spec.pytorchReplicaSpecs.Master.template.spec.x"},
		{"a podTemplate", "{kind: Elasticsearch, metadata: {name: a}, spec: {podTemplate: {" + spec + "}}}",
			"Elasticsearch/a: spec.podTemplate.spec.x"},
		{"a template by alias",
			"{kind: A, metadata: {name: a}, x: &x {" + spec + "}, spec: {template: *x, more: {template: *x}}}",
			"A/a: spec.template.spec.x, A/a: spec.more.template.spec.x"},
		{"no containers", "{kind: ExternalSecret, metadata: {name: a}, spec: {template: {spec: {}}}}", ""},
		{"no kind", "{metadata: {name: a}, " + spec + "}", ""},
		{"no object", "[1, 2]", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, o := range Parse("in", test.text).Documents[0].Objects() {
				for _, pod := range o.Pods() {
					got = append(got, o.Name()+": "+pod.Path("spec.x"))
				}
			}
			if strings.Join(got, ", ") != test.want {
				t.Errorf("pods %q, want %q", got, test.want)
			}
		})
	}
}
