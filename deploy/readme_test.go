// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestChartReadme(t *testing.T) {
	want, err := ChartReadme(".")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join("chart", ChartReadmeFile))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("chart/%s is not what values.yaml says now; run: make manifests", ChartReadmeFile)
	}
}

func TestChartValues(t *testing.T) {
	const values = `# All.
#
# Two
# lines.
a: null
# A group.
b:
  # In it.
  c: ""
  d:
    # Deeper.
    e: [1]
# Whole.
f: {g: x}
`
	want := []chartValue{
		{"a", "null", "All.<br><br>Two lines."}, {"b", "", "A group."}, {"b.c", `""`, "In it."}, {"b.d.e", "[1]", "Deeper."},
		{"f", `{"g":"x"}`, "Whole."},
	}
	if got, err := chartValues([]byte(values)); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	_, err := chartValues([]byte(values + "h: 1\n"))
	if err == nil || err.Error() != "h has no comment" {
		t.Errorf("a value without a comment: error %v", err)
	}
}

// The schema has the values of values.yaml and the renamed values, and no others.
func TestSchemaHasTheValues(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("chart", "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(content, &values); err != nil {
		t.Fatal(err)
	}
	content, err = os.ReadFile(filepath.Join("chart", "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema property
	if err := json.Unmarshal(content, &schema); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"global", "kubeletRoot", "verbosity", "maxUnavailable"} {
		if _, ok := schema.Properties[name]; !ok {
			t.Errorf("the schema does not allow the value %s, which Helm or the templates handle", name)
		}
		delete(schema.Properties, name)
	}
	schema.compare(t, "", values)
}

// property is a part of a JSON schema. A closed one allows only the properties that it names.
type property struct {
	Properties map[string]property
	Additional any `json:"additionalProperties"`
}

func (p property) compare(t *testing.T, prefix string, values map[string]any) {
	t.Helper()
	got, want := slices.Sorted(maps.Keys(p.Properties)), slices.Sorted(maps.Keys(values))
	if !slices.Equal(got, want) {
		t.Errorf("%q: the schema has %q, values.yaml has %q", prefix, got, want)
	}
	for name, property := range p.Properties {
		if members, ok := values[name].(map[string]any); ok && property.Additional == false {
			property.compare(t, prefix+name+".", members)
		}
	}
}

// The parts of Chart.yaml that Artifact Hub reads are valid, and their links lead to files of this repository.
func TestArtifactHub(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("chart", "Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var chart struct {
		Home        string
		Annotations map[string]string
	}
	if err := yaml.Unmarshal(content, &chart); err != nil {
		t.Fatal(err)
	}
	if got := chart.Annotations["artifacthub.io/category"]; got != "security" {
		t.Errorf("the category is %q", got)
	}
	var links []struct{ Name, URL string }
	err = yaml.UnmarshalStrict([]byte(chart.Annotations["artifacthub.io/links"]), &links)
	if err != nil || len(links) == 0 {
		t.Fatalf("links: %v, %v", links, err)
	}
	for _, link := range links {
		path, ok := strings.CutPrefix(link.URL, chart.Home+"/blob/main/")
		if _, err := os.Stat(filepath.Join("..", path)); !ok || err != nil {
			t.Errorf("%s: %s is not in the repository: %v", link.Name, link.URL, err)
		}
	}
}
