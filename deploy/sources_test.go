// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// The objects that the attribute sources names are declared, however it is written. What it names is what the driver reads in it: the
// expressions of the policy have no parser of YAML.
func TestPolicyReadsSources(t *testing.T) {
	c := startCluster(t)
	c.install(t, "node", "validate.enabled=false") // which would refuse some of these volumes
	c.waitForPolicy(t)
	for name, text := range spellings(t) {
		t.Run(name, func(t *testing.T) {
			want := named(t, text)
			if want == nil {
				t.Fatalf("the driver finds no object in\n%s", text)
			}
			c.checkSources(t, text, want)
		})
	}
	t.Run("any spelling", func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		for range 100 {
			text := spelled(random)
			want := named(t, text)
			if want == nil {
				t.Fatalf("the driver refuses\n%s", text)
			}
			c.checkSources(t, text, want)
			if t.Failed() {
				t.Fatalf("sources:\n%s", text)
			}
		}
	})
	// The driver takes these; its error then says that it may not read the object, and the pod's author writes it in another way.
	for name, text := range map[string]string{
		"an escape in a name": `[{"secret": {"name": "\u0061"}}]`, "an escape in a key": `[{"s\u0065cret": {"name": "a"}}]`, "a key after a question mark": "- ? secret\n  : {name: a}",
		"a tag": "- secret: {name: !!str a}", "a folded name": "- secret:\n    name: >-\n      a\n",
	} {
		t.Run("not seen: "+name, func(t *testing.T) {
			if names := named(t, text); !slices.Equal(names, []string{"secret/a"}) {
				t.Fatalf("the driver finds %v", names)
			}
			c.checkSources(t, text, nil)
		})
	}
	// Such text the driver refuses. Nothing is declared that is not named.
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"no YAML":                       {"[{secret: {name: a}", []string{"secret/a"}},
		"one mapping":                   {"secret: {name: a}", []string{"secret/a"}},
		"another kind":                  {"[{serviceAccountToken: {path: t}}, {secret: {name: a}}]", []string{"secret/a"}},
		"another kind with a name":      {"[{secret: {optional: true}}, {clusterTrustBundle: {name: a}}]", nil},
		"a name that belongs to no one": {"[{name: a}]", nil},
		"a name of two words":           {"[{secret: {name: a b}}, {configMap: {name: a\n  b}}]", nil},
		"a name of a word and a dash":   {"- secret:\n    name: a - b\n", nil},
		"a name that is none":           {"[{secret: {name: A}}, {configMap: {name: a/b}}, {secret: {name: -a}}, {secret: {name: a_b}}, {secret: {name: a#b}}]", nil},
		"a name that is no text":        {"[{secret: {name: null}}, {secret: {name: 12}}, {secret: {name: true}}, {secret: {name: [a]}}, {secret: {name: {a: b}}}]", nil},
		"a key without its colon":       {"[{secret {name: a}}, {\"secret\" {\"name\" \"a\"}}]", nil},
		"a colon without its space":     {"- secret:\n    name:a", nil},
		"no name":                       {"[{secret: {}}, {configMap: }]", nil},
		"an empty name":                 {`[{"secret": {"name": ""}}]`, nil},
		"a text that never ends":        {`[{"secret": {"name": "a}}]`, nil},
		"another case":                  {"[{Secret: {name: a}}, {secret: {Name: a}}, {configmap: {name: a}}]", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if names := named(t, test.text); names != nil {
				t.Fatalf("the driver takes it: %v", names)
			}
			c.checkSources(t, test.text, test.want)
		})
	}
	t.Run("more than the driver takes", func(t *testing.T) {
		c.checkSources(t, "[{secret: {name: a}}]"+strings.Repeat(" ", 64<<10), nil)
	})
	t.Run("as much as the driver takes", func(t *testing.T) {
		text := "[{secret: {name: a}}"
		for i := 0; len(text) < 64<<10-200; i++ {
			if i < 60 {
				text += fmt.Sprintf(`,{"configMap":{"name":"c-%d"}}`, i)
			} else {
				text += strings.Repeat(" ", 100) + "\n"
			}
		}
		text += "]"
		c.checkSources(t, text, named(t, text))
		many := "[{secret: {name: a, items: ["
		for i := 0; len(many) < 64<<10-200 && i < 1000; i++ {
			many += fmt.Sprintf("{key: k%d, path: 'p/%d', mode: 0400, uid: 1, gid: 2}, ", i, i)
		}
		many += "]}}]"
		c.checkSources(t, many, named(t, many))
	})
	// It costs the API server too much to look at all of them.
	t.Run("more words than the policy takes", func(t *testing.T) {
		for _, words := range []int{19_000, 32_000} {
			var want []string
			if words < 20_000 {
				want = []string{"secret/a"}
			}
			c.checkSources(t, "[{secret: {name: a}}"+strings.Repeat(",b", words/2)+"]", want)
		}
	})
}

// spellings are ways to write one list, and some that are hard to read.
func spellings(t *testing.T) map[string]string {
	t.Helper()
	const block = `- secret:
    name: ssh-keys
    items:
    - key: name
      path: secret/name
      mode: 0400
    - {key: secret, path: configMap}
- configMap:
    optional: true
    name: conf.d
- downwardAPI:
    items:
    - path: name
      fieldRef:
        fieldPath: metadata.name
- secret: {name: b}
`
	var decoded any
	if err := yaml.Unmarshal([]byte(block), &decoded); err != nil {
		t.Fatal(err)
	}
	compact, err := json.Marshal(decoded)
	if err != nil {
		t.Fatal(err)
	}
	indented, err := json.MarshalIndent(decoded, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"block":                  block,
		"indented block":         "  " + strings.ReplaceAll(strings.TrimSuffix(block, "\n"), "\n", "\n  "),
		"block with CRLF":        strings.ReplaceAll(block, "\n", "\r\n"),
		"compact JSON":           string(compact),
		"indented JSON":          string(indented),
		"flow":                   "[{secret: {name: a}}, {configMap: {name: b}}]",
		"flow over lines":        "[\n  {secret: {\n    name:\n      a, optional: true}},\n{configMap: {name: b}}\n]",
		"tight JSON":             `[{"secret":{"name":a}},{"configMap":{"name":'b'}}]#x`,
		"tight flow":             "[secret: {name: a},configMap: {name: b}]",
		"single quotes":          "[{'secret': {'name': 'a'}}, {'configMap':{'name':'b'}}]",
		"quotes of all kinds":    `[{"secret": {name: 'a'}}, {configMap: {'name': "b"}}, {'secret' : {"name" : c}}]`,
		"spaces before colons":   "- secret :\n    name : a\n- configMap\t:\n    name\t: b\n",
		"a dash on its own line": "-\n  secret:\n    name: a\n-\n  configMap:\n    name: b",
		"a dash and much space":  "-    secret:\n          name:    a\n\n\n-   configMap:\n      name: b   ",
		"comments":               "# secret: {name: x}\n- secret: # name: y\n    name: a # secret: {name: z}\n# - configMap: {name: w}\n- configMap: {name: b} # '\n- secret: {name: c}",
		"a document's beginning": "---\n- secret: {name: a}\n",
		"the name at the end":    "[{secret: {items: [{key: k, path: k}, {key: name, path: name}], optional: false, name: a}}]",
		"names like keys":        "[{secret: {name: secret}}, {configMap: {name: name}}, {configMap: {name: optional}}]",
		"names like other kinds": "[{secret: {name: 'true'}}, {configMap: {name: \"12\"}}, {configMap: {name: 1.2.3.4a}}, {secret: {name: 'null'}}]",
		"a name with all signs":  "[{secret: {name: a-b.c-0.1}}]",
		"paths that look like it": "- secret:\n    name: a\n    items:\n    - {key: k, path: '{secret,{name,x}}'}\n    - {key: k, path: \"secret \\\" name x\"}\n" +
			"    - {key: k, path: \"it's\"}\n    - {key: k, path: 'it''s, {name}'}\n    - key: k\n      path: secret name it's \"x\n    - key: k\n      path: x # secret\n- configMap: {name: b}",
		"quotes within plain text": "- secret:\n    name: a\n    items:\n    - key: k\n      path: x \"y\n- secret:\n    name: b\n    items: [{key: k, path: 'p\" q'}]\n" +
			"- configMap:\n    items: [{key: k, path: it's 'so}, {key: k, path: so it's}]\n    name: c",
		"colons within plain text": "[{downwardAPI: {items: [{path: a, fieldRef: {fieldPath: \"metadata.labels['x']\"}}]}}, {secret: {name: b}}]",
		"keys that look like it":   "[{secret: {name: a, items: [{key: secret, path: a}, {key: name, path: b}, {key: 'configMap', path: \"name\"}]}}, {configMap: {name: b}}]",
		"one object twice":         "[{secret: {name: a}}, {secret: {name: a}}, {configMap: {name: a}}]",
		"null where one may be":    "[{secret: {name: a, items: null, optional: ~}}]",
		"an annotation of the pod": `[{"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.annotations['name']"}}]}}, {"secret": {"name": "a"}}]`,
		"an indented list":         "- secret:\n    items:\n      - key: k\n        path: p\n    name: a\n",
	}
}

// spelled writes some sources in one of the many ways there are.
func spelled(random *rand.Rand) string {
	pick := func(of ...string) string { return of[random.IntN(len(of))] }
	quoted := func(text string) string { q := pick("", "'", `"`); return q + text + q }
	colon := func() string { return pick(": ", " : ", ":  ", ":\t") }
	name := func() string { return pick("a", "b", "a-b", "c.d-0", "secret", "name", "optional", "key") }
	files := 0
	item := func() string {
		files++
		path := fmt.Sprintf(pick("configMap/%d", "'it''s/%d'", `"a \" b/%d"`, "secret name/%d", "'{name, secret/%d'"), files)
		return "{" + quoted("key") + colon() + quoted(pick("name", "secret", "k")) + pick(",", ", ", " ,\n      ") + quoted("path") + colon() + path + "}"
	}
	var entries []string
	for range 1 + random.IntN(4) {
		block, indent := random.IntN(2) == 0, pick("  ", "      ")
		fields := []string{quoted("name") + colon() + quoted(name())}
		if random.IntN(2) == 0 {
			var items []string
			for range 1 + random.IntN(2) {
				items = append(items, item())
			}
			fields = append(fields, quoted("items")+colon()+"["+strings.Join(items, pick(",", ", "))+"]")
		}
		if random.IntN(2) == 0 {
			fields = append(fields, quoted("optional")+colon()+pick("true", "false"))
		}
		random.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
		kind := quoted(pick("secret", "configMap"))
		if block {
			line := pick("", " # name: z") + "\n" + indent + indent
			entries = append(entries, "- "+kind+":"+line+strings.Join(fields, line))
		} else {
			entries = append(entries, "- "+kind+colon()+"{"+strings.Join(fields, pick(",", ", ", ",\n    "))+"}"+pick("", " ", " # secret: {name: z}"))
		}
	}
	return strings.Join(entries, pick("\n", "\n\n", "\n# name: z\n"))
}

// named returns the objects that the driver finds in sources, once each, Secrets first; nil if it refuses the text.
func named(t *testing.T, text string) []string {
	t.Helper()
	spec, errs := attributes.Parse(map[string]string{"sources": text}, false)
	if len(errs) > 0 {
		return nil
	}
	var secrets, configMaps []string
	for _, s := range spec.Sources {
		switch s.Object.Kind {
		case attributes.Secret:
			secrets = append(secrets, "secret/"+s.Object.Name)
		case attributes.ConfigMap:
			configMaps = append(configMaps, "configMap/"+s.Object.Name)
		}
	}
	var all []string
	for _, name := range append(secrets, configMaps...) {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

func (c *cluster) checkSources(t *testing.T, text string, want []string) {
	t.Helper()
	volumes := []corev1.Volume{driverVolume("v", "sources", text)}
	got, err := c.dryRunPod(t, podWith("p", volumes...))
	if err != nil {
		t.Fatal(err)
	}
	checkDeclared(t, volumes, got, want)
}
