// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	texttemplate "text/template"

	"go.yaml.in/yaml/v3"
)

// ChartReadmeFile is the name of the page about the chart's values, in the chart's directory.
const ChartReadmeFile = "README.md"

//go:embed chart-readme.md.tmpl
var chartReadme string

// chartValue is a row in the table of values. Default is empty for a group of values.
type chartValue struct{ Name, Default, Description string }

// ChartReadme returns the page for the chart in dir, with the comments of values.yaml.
func ChartReadme(dir string) ([]byte, error) {
	page := struct {
		Repository  string `yaml:"home"`
		KubeVersion string `yaml:"kubeVersion"`
		Values      []chartValue
	}{}
	metadata, err := os.ReadFile(filepath.Join(dir, "chart", "Chart.yaml"))
	if err != nil {
		return nil, err
	}
	if err := yaml.Unmarshal(metadata, &page); err != nil {
		return nil, fmt.Errorf("Chart.yaml: %w", err)
	}
	oldest, _ := strings.CutPrefix(page.KubeVersion, ">=")
	page.KubeVersion = strings.TrimSuffix(oldest, ".0-0") + " or later"
	values, err := os.ReadFile(filepath.Join(dir, "chart", "values.yaml"))
	if err != nil {
		return nil, err
	}
	if page.Values, err = chartValues(values); err != nil {
		return nil, fmt.Errorf("values.yaml: %w", err)
	}
	var out bytes.Buffer
	err = texttemplate.Must(texttemplate.New("").Parse(chartReadme)).Execute(&out, page)
	return out.Bytes(), err
}

// chartValues returns a row for each key with a comment. A key without a comment, outside a value that has a comment,
// is an error.
func chartValues(content []byte) ([]chartValue, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil {
		return nil, err
	}
	return rows("", document.Content[0])
}

func rows(prefix string, mapping *yaml.Node) (values []chartValue, err error) {
	for i := 0; i < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		v := chartValue{Name: prefix + key.Value, Description: description(key.HeadComment)}
		group := value.Kind == yaml.MappingNode && hasComments(value)
		if !group {
			if v.Description == "" {
				return nil, fmt.Errorf("%s has no comment", v.Name)
			}
			if v.Default, err = compact(value); err != nil {
				return nil, fmt.Errorf("%s: %w", v.Name, err)
			}
		}
		if v.Description != "" {
			values = append(values, v)
		}
		if group {
			members, err := rows(v.Name+".", value)
			if err != nil {
				return nil, err
			}
			values = append(values, members...)
		}
	}
	return values, nil
}

// hasComments reports whether a key of the mapping, or of a mapping in it, has a comment.
func hasComments(mapping *yaml.Node) bool {
	for _, node := range mapping.Content {
		if node.HeadComment != "" || node.Kind == yaml.MappingNode && hasComments(node) {
			return true
		}
	}
	return false
}

// description makes one line of a comment. It keeps paragraphs apart.
func description(comment string) string {
	var paragraphs []string
	for paragraph := range strings.SplitSeq(comment, "\n#\n") {
		var lines []string
		for line := range strings.Lines(paragraph) {
			lines = append(lines, strings.TrimSpace(strings.TrimPrefix(line, "#")))
		}
		paragraphs = append(paragraphs, strings.Join(lines, " "))
	}
	return strings.Join(paragraphs, "<br><br>")
}

// compact returns a default value in one line. Strings have no quotes, unless they are empty.
func compact(node *yaml.Node) (string, error) {
	var value any
	if err := node.Decode(&value); err != nil {
		return "", err
	}
	if text, ok := value.(string); ok && text != "" {
		return text, nil
	}
	text, err := json.Marshal(value)
	return string(text), err
}
