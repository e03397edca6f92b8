// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"strings"
	"testing"
)

// sources returns attributes with the list, changed by pairs of key and value.
func sources(list string, pairs ...string) map[string]string {
	m := map[string]string{"sources": list}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

func TestSourcesAccepted(t *testing.T) {
	secret := Source{Object: Object{Secret, "a"}, Mode: 0o400}
	configMap := Source{Object: Object{ConfigMap, "b"}, Mode: 0o444}
	pod := func(items ...Item) Source { return Source{Object: Object{Kind: Pod}, Items: items, Mode: 0o444} }
	with := func(s Source, change func(*Source)) Source { change(&s); return s }
	for _, tc := range []struct {
		name    string
		context map[string]string
		want    []Source
	}{
		{"one secret", sources("[{secret: {name: a}}]"), []Source{secret}},
		{"a secret and a config map, each with its kind's mode", sources("- secret:\n    name: a\n- configMap:\n    name: b\n"), []Source{secret, configMap}},
		{"JSON, as a policy writes it", sources(`[{"secret":{"name":"a","optional":true,"items":[{"key":"k","path":"p","mode":256,"uid":5}]}}]`),
			[]Source{with(secret, func(s *Source) {
				s.Optional, s.Items = true, []Item{{Key: "k", Path: "p", Mode: number(0o400), UID: number(5)}}
			})}},
		{"the volume's mode is each source's", sources("[{secret: {name: a}}, {configMap: {name: b}}]", "mode", "0640"),
			[]Source{with(secret, func(s *Source) { s.Mode = 0o640 }), with(configMap, func(s *Source) { s.Mode = 0o640 })}},
		{"optional is a boolean or a string", sources(`[{secret: {name: a, optional: "true"}}, {configMap: {name: b, optional: false}}]`),
			[]Source{with(secret, func(s *Source) { s.Optional = true }), configMap}},
		{"one object twice", sources("[{secret: {name: a, items: [{key: k, path: x}]}}, {secret: {name: a, items: [{key: k, path: z}]}}]"), []Source{
			with(secret, func(s *Source) { s.Items = []Item{{Key: "k", Path: "x"}} }), with(secret, func(s *Source) { s.Items = []Item{{Key: "k", Path: "z"}} })}},
		{"null is absent", sources("[{secret: {name: a, items: null, optional: null}, configMap: null}]"), []Source{secret}},
		{"fields of the pod", sources("[{downwardAPI: {items: [{path: l, fieldRef: {apiVersion: v1, fieldPath: metadata.labels}, mode: 0440, gid: 7}]}}]"),
			[]Source{pod(Item{Key: "metadata.labels", Path: "l", Mode: number(0o440), GID: number(7)})}},
		{"one label", sources(`[{downwardAPI: {items: [{path: l, fieldRef: {fieldPath: "metadata.labels['app.kubernetes.io/name']"}}]}}]`),
			[]Source{pod(Item{Key: "metadata.labels['app.kubernetes.io/name']", Path: "l"})}},
		{"one annotation in upper case", sources(`[{downwardAPI: {items: [{path: l, fieldRef: {fieldPath: "metadata.annotations['Example.com/A']"}}]}}]`),
			[]Source{pod(Item{Key: "metadata.annotations['Example.com/A']", Path: "l"})}},
		{"a resource", sources("[{downwardAPI: {items: [{path: c, resourceFieldRef: {containerName: app, resource: limits.cpu, divisor: 1m}}]}}]"),
			[]Source{pod(Item{Key: "limits.cpu", Container: "app", Divisor: "1m", Path: "c"})}},
		{"a divisor that is a number", sources("[{downwardAPI: {items: [{path: c, resourceFieldRef: {containerName: app, resource: requests.hugepages-2Mi, divisor: 1}}]}}]"),
			[]Source{pod(Item{Key: "requests.hugepages-2Mi", Container: "app", Divisor: "1", Path: "c"})}},
		{"the divisor that the API server fills in", sources(`[{downwardAPI: {items: [{path: c, resourceFieldRef: {containerName: app, resource: limits.memory, divisor: "0"}}]}}]`),
			[]Source{pod(Item{Key: "limits.memory", Container: "app", Divisor: "0", Path: "c"})}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, errs := Parse(tc.context, false)
			if len(errs) > 0 {
				t.Fatal(text(errs))
			}
			if want := specOf(tc.want...); !got.Equal(want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			if errs := Validate(got); len(errs) > 0 {
				t.Errorf("Validate refuses what Parse accepted: %s", text(errs))
			}
		})
	}
	for _, path := range fieldPaths() {
		path = strings.ReplaceAll(path, "<key>", "k")
		if _, errs := Parse(sources(fmt.Sprintf(`[{downwardAPI: {items: [{path: p, fieldRef: {fieldPath: %q}}]}}]`, path)), false); len(errs) > 0 {
			t.Errorf("%s: %s", path, text(errs))
		}
	}
}

func TestSourcesRefused(t *testing.T) {
	item := func(item string) map[string]string { return sources("[{downwardAPI: {items: [" + item + "]}}]") }
	for _, tc := range []struct {
		name    string
		context map[string]string
		want    string // all that is said
	}{
		{"nothing in it", sources("[]"), "volumeAttributes[sources]: Required value: list the objects"},
		{"null", sources("null"), "volumeAttributes[sources]: Required value: list the objects"},
		{"no list", sources("{secret: {name: a}}"), "put it in a list, as in [{secret: {name: a}}]"},
		{"an entry that is text", sources("[a]"), `volumeAttributes[sources][0]: Invalid value: "a": must be a mapping, such as {secret: {name: a}}`},
		{"an empty entry", sources("[{}]"), "volumeAttributes[sources][0]: Invalid value: \"\": must have exactly one of"},
		{"two in one entry", sources("[{secret: {name: a}, configMap: {name: b}}]"), `volumeAttributes[sources][0]: Invalid value: "configMap, secret": must have exactly one of`},
		{"a secret that is text", sources("[{secret: a}]"), `volumeAttributes[sources][0].secret: Invalid value: "a": must be a mapping, such as {name: a}`},
		{"no name", sources("[{secret: {items: [{key: a, path: b}]}}]"), "volumeAttributes[sources][0].secret.name: Required value: name the object"},
		{"a bad name", sources("[{configMap: {name: ../a}}]"), `volumeAttributes[sources][0].configMap.name: Invalid value: "../a": give the name alone`},
		{"a number for a name", sources("[{secret: {name: 1}}]"), `volumeAttributes[sources][0].secret.name: Invalid value: "1": must be a string`},
		{"a namespace", sources("[{secret: {name: a, namespace: b}}]"), "volumeAttributes[sources][0].secret.namespace: Forbidden: unknown field: the object is always read"},
		{"secretName, as in a secret volume", sources("[{secret: {secretName: a, name: a}}]"), `secret.secretName: Forbidden: unknown field: it is called "name" here`},
		{"a mode of its own", sources("[{secret: {name: a, defaultMode: 0400}}]"), "volumeAttributes[sources][0].secret.defaultMode: Forbidden: unknown field"},
		{"an unknown kind", sources("[{secrets: {name: a}}]"), `volumeAttributes[sources][0].secrets: Forbidden: unknown field; the nearest known one is "secret"`},
		{"a token", sources("[{serviceAccountToken: {path: t}}]"), "volumeAttributes[sources][0].serviceAccountToken: Forbidden: stays with Kubernetes: put it in a projected volume of its own"},
		{"a trust bundle", sources("[{clusterTrustBundle: {path: t}}]"), "clusterTrustBundle: Forbidden: stays with Kubernetes"},
		{"a pod certificate", sources("[{podCertificate: {keyType: ED25519}}]"), "podCertificate: Forbidden: stays with Kubernetes"},
		{"optional that is a word", sources("[{secret: {name: a, optional: perhaps}}]"), `volumeAttributes[sources][0].secret.optional: Invalid value: "perhaps": must be true or false`},
		{"items that are a mapping", sources("[{secret: {name: a, items: {key: a}}}]"), `volumeAttributes[sources][0].secret.items: Invalid value: "a mapping": must be a list`},
		{"an item's key", sources("[{secret: {name: a, items: [{key: a/b, path: b}]}}]"), `volumeAttributes[sources][0].secret.items[0].key: Invalid value: "a/b"`},
		{"an item's path", sources("[{secret: {name: a}}, {configMap: {name: a, items: [{key: a, path: ../b}]}}]"), `volumeAttributes[sources][1].configMap.items[0].path: Invalid value: "../b"`},
		{"one path in two sources", sources("[{secret: {name: a, items: [{key: a, path: x}]}}, {configMap: {name: b, items: [{key: a, path: x}]}}]"),
			"volumeAttributes[sources][1].configMap.items[0].path: Invalid value: \"x\": sources[0].secret.items[0] and sources[1].configMap.items[0] have the same path"},
		{"a file in one source, a directory in another", sources("[{secret: {name: a, items: [{key: a, path: x/y}]}}, {configMap: {name: b, items: [{key: a, path: x}]}}]"),
			`sources[1].configMap.items[0] makes "x" a file, but sources[0].secret.items[0] needs it to be a directory for "x/y": rename one`},
		{"items besides sources", sources("[{secret: {name: a}}]", "items", "[{key: a, path: b}]"), "volumeAttributes[items]: Forbidden: belongs to each entry of sources"},
		{"optional besides sources", sources("[{secret: {name: a}}]", "optional", "true"), "volumeAttributes[optional]: Forbidden: belongs to each entry of sources"},
		{"an anchor", sources("[{secret: &a {name: a}}]"), "anchors and aliases"},

		{"no field of the pod", sources("[{downwardAPI: {}}]"), "volumeAttributes[sources][0].downwardAPI.items: Required value: list the fields"},
		{"an optional downward API", sources("[{downwardAPI: {optional: true, items: [{path: a, fieldRef: {fieldPath: metadata.name}}]}}]"), "downwardAPI.optional: Forbidden: unknown field"},
		{"no reference", item("{path: a}"), "volumeAttributes[sources][0].downwardAPI.items[0]: Required value: an item of the downward API needs exactly one of fieldRef and resourceFieldRef"},
		{"both references", item("{path: a, fieldRef: {fieldPath: metadata.name}, resourceFieldRef: {containerName: a, resource: limits.cpu}}"), "needs exactly one of"},
		{"a key", item("{path: a, key: b, fieldRef: {fieldPath: metadata.name}}"), "items[0].key: Forbidden: unknown field"},
		{"no path", item("{fieldRef: {fieldPath: metadata.name}}"), "items[0].path: Required value"},
		{"no field path", item("{path: a, fieldRef: {}}"), "items[0].fieldRef.fieldPath: Required value: name the pod's field"},
		{"a field that is none", item("{path: a, fieldRef: {fieldPath: spec.containers}}"), `items[0].fieldRef.fieldPath: Unsupported value: "spec.containers"`},
		{"the placeholder", item(`{path: a, fieldRef: {fieldPath: "metadata.labels['<key>']"}}`), "items[0].fieldRef.fieldPath: Invalid value"},
		{"a label of the name", item(`{path: a, fieldRef: {fieldPath: "metadata.name['a']"}}`), "Unsupported value"},
		{"a label's key that is none", item(`{path: a, fieldRef: {fieldPath: "metadata.labels['a b']"}}`), `Invalid value: "metadata.labels['a b']"`},
		{"a label's key that is long", item(`{path: a, fieldRef: {fieldPath: "metadata.labels['` + strings.Repeat("a", 600) + `']"}}`), "Too long"},
		{"another version", item("{path: a, fieldRef: {apiVersion: v2, fieldPath: metadata.name}}"), `fieldRef.apiVersion: Unsupported value: "v2"`},
		{"a resource as field", item("{path: a, fieldRef: {fieldPath: limits.cpu}}"), "fieldRef.fieldPath: Invalid value: \"limits.cpu\": is a resource: use resourceFieldRef"},
		{"a field as resource", item("{path: a, resourceFieldRef: {containerName: a, resource: metadata.name}}"), "resourceFieldRef.resource: Invalid value: \"metadata.name\": must be limits. or requests."},
		{"no resource", item("{path: a, resourceFieldRef: {containerName: a}}"), "resourceFieldRef.resource: Required value"},
		{"a resource that is none", item("{path: a, resourceFieldRef: {containerName: a, resource: limits.disk}}"), `resourceFieldRef.resource: Invalid value: "limits.disk"`},
		{"hugepages without a size", item("{path: a, resourceFieldRef: {containerName: a, resource: limits.hugepages-x}}"), "resourceFieldRef.resource: Invalid value"},
		{"no container", item("{path: a, resourceFieldRef: {resource: limits.cpu}}"), "resourceFieldRef.containerName: Required value"},
		{"a container that is none", item("{path: a, resourceFieldRef: {containerName: A, resource: limits.cpu}}"), `resourceFieldRef.containerName: Invalid value: "A"`},
		{"a divisor of another resource", item("{path: a, resourceFieldRef: {containerName: a, resource: limits.cpu, divisor: 1Mi}}"), "resourceFieldRef.divisor: Invalid value: \"1Mi\": must be one of 1, 1m"},
		{"a divisor that is none", item("{path: a, resourceFieldRef: {containerName: a, resource: limits.memory, divisor: 3}}"), "resourceFieldRef.divisor: Invalid value: \"3\""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := refused(t, tc.context, false)
			if !strings.Contains(got, tc.want) || strings.Contains(got, "\n") {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestSourcesAreBounded(t *testing.T) {
	list := func(n int, entry func(i int) string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "- %s\n", entry(i))
		}
		return b.String()
	}
	secret := func(i int) string { return fmt.Sprintf("secret: {name: a%d}", i) }
	if _, errs := Parse(sources(list(maxSources, secret)), false); len(errs) > 0 {
		t.Errorf("%d sources: %s", maxSources, text(errs))
	}
	if got := refused(t, sources(list(maxSources+1, secret)), false); !strings.Contains(got, "volumeAttributes[sources]: Too many: 65: must have at most 64 items") {
		t.Error(got)
	}
	// Two sources with more items together than one may have.
	half := func(s int) string {
		return "configMap: {name: a, items: [" + strings.Repeat("{key: k, path: p}, ", maxItems/2+s) + "]}"
	}
	if got := refused(t, sources(list(2, half)), false); !strings.Contains(got, "volumeAttributes[sources]: Too many: 1025: must have at most 1024 items") {
		t.Error(got)
	}
	// As many as one source may have, in the widest spelling, are let through.
	var fields strings.Builder
	for i := range maxItems {
		fmt.Fprintf(&fields, "- {path: p%d, fieldRef: {fieldPath: metadata.name}}\n", i)
	}
	full := "- downwardAPI:\n    items:\n" + strings.ReplaceAll("    "+strings.TrimSpace(strings.ReplaceAll(fields.String(), "\n", "\n    ")), "    \n", "\n")
	if spec, errs := Parse(sources(full), false); len(errs) > 0 || len(spec.Sources[0].Items) != maxItems {
		t.Errorf("%s", text(errs))
	}
}

// What is in a Spec from elsewhere, such as a record.
func TestValidateLooksAtEachSource(t *testing.T) {
	for _, tc := range []struct {
		name string
		spec Spec
		want string
	}{
		{"content of the request among others", specOf(Source{Mode: 0o400}, Source{Object: Object{Secret, "a"}, Mode: 0o400}), "volumeAttributes[sources][0]: Unsupported value"},
		{"a pod with a name", specOf(Source{Object: Object{Pod, "other"}, Items: []Item{{Key: "metadata.name", Path: "a"}}}), "it has neither name nor optional"},
		{"a pod without items", specOf(Source{Object: Object{Kind: Pod}}), "downwardAPI.items: Required value"},
		{"a container of a key", specOf(Source{Object: Object{Secret, "a"}, Items: []Item{{Key: "a", Path: "a", Container: "c"}}}), "a key has neither container nor divisor"},
		{"a container of a field", specOf(Source{Object: Object{Kind: Pod}, Items: []Item{{Key: "metadata.name", Path: "a", Container: "c"}}}), "a field has neither container nor divisor"},
		{"a mode of the second", specOf(Source{Object: Object{Secret, "a"}}, Source{Object: Object{Secret, "b"}, Mode: 0o1777}), `volumeAttributes[mode]: Invalid value: "1777"`},
	} {
		if got := text(Validate(tc.spec)); !strings.Contains(got, tc.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
	}
}
