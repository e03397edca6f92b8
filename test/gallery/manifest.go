// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/template"

	corev1 "k8s.io/api/core/v1"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// user runs the programs, and owns the keys of all programs but one.
const user = int64(1000)

// values are the differences between the pod of the gallery and the pod of examples/.
type values struct {
	Name, Image, Secret string
	Command             []string
	// Keys are the keys of the Secret. A key with -- becomes a file in a directory.
	Keys []string
}

// Paths returns the path of each key, if a key becomes a file in a directory.
func (v values) Paths() map[string]string {
	paths := map[string]string{}
	if slices.ContainsFunc(v.Keys, func(key string) bool { return key != pathOf(key) }) {
		for _, key := range v.Keys {
			paths[key] = pathOf(key)
		}
	}
	return paths
}

func pathOf(key string) string { return strings.ReplaceAll(key, "--", "/") }

// The template uses the values of Driver, User, Mounts, Environment and Attributes.
func (podManifest) Driver() string                   { return attributes.Driver }
func (podManifest) User() int64                      { return user }
func (m podManifest) Environment() map[string]string { return m.program.environment }
func (m podManifest) Mounts() []corev1.VolumeMount {
	return mountsOf(m.program.mount, m.Keys, m.program.subPath)
}

// mountsOf returns a mount of the volume's directory, or with subPath a mount of each of its files.
func mountsOf(directory string, keys []string, subPath bool) (mounts []corev1.VolumeMount) {
	if !subPath {
		return []corev1.VolumeMount{{Name: volumeName, MountPath: directory}}
	}
	for _, key := range keys {
		file := pathOf(key)
		mounts = append(mounts, corev1.VolumeMount{Name: volumeName, MountPath: path.Join(directory, file), SubPath: file})
	}
	return mounts
}

// volumeName is the name of the volume in each pod.
const volumeName = "keys"

// Attributes returns the attributes, including uid.
func (m podManifest) Attributes() map[string]string {
	all := map[string]string{"uid": fmt.Sprint(user)}
	maps.Copy(all, m.program.attributes)
	return all
}

// podManifest is the manifest of a program's pod.
type podManifest struct {
	program program
	values
}

var functions = template.FuncMap{"scalar": scalar, "lines": lines}

var podTemplate = template.Must(template.New("pod").Funcs(functions).Parse(`apiVersion: v1
kind: Pod
metadata:
  name: {{.Name}}
spec:
  securityContext:
    runAsUser: {{.User}}
    runAsGroup: {{.User}}
    runAsNonRoot: true
  containers:
  - name: program
    image: {{.Image}}
    command:
{{- range .Command}}
    - {{lines 6 .}}
{{- end}}
{{- with .Environment}}
    env:
{{- range $name, $value := .}}
    - name: {{$name}}
      value: {{scalar $value}}
{{- end}}
{{- end}}
    volumeMounts:
{{- range .Mounts}}
    - name: {{.Name}}
      mountPath: {{.MountPath}}
{{- with .SubPath}}
      subPath: {{.}}
{{- end}}
{{- end}}
  volumes:
{{- with .Paths}}
  - name: keys-of-secret # the volume keys shows these files
    secret:
      secretName: {{$.Secret}}
      items:
{{- range $key, $path := .}}
      - key: {{scalar $key}}
        path: {{scalar $path}}
{{- end}}
{{- end}}
  - name: keys
    csi:
      driver: {{.Driver}}
      volumeAttributes:
{{- if .Paths}}
        volume: keys-of-secret
{{- else}}
        secretName: {{.Secret}}
{{- end}}
{{- range $key, $value := .Attributes}}
        {{$key}}: "{{$value}}"
{{- end}}
`))

// pod renders the manifest of the program's pod.
func (p program) pod(v values) string {
	var text bytes.Buffer
	if err := podTemplate.Execute(&text, podManifest{p, v}); err != nil {
		panic(err) // a mistake in this package's template
	}
	return text.String()
}

var exampleTemplate = template.Must(template.New("example").Funcs(functions).Parse(`
{{- range .Comment}}# {{.}}
{{end -}}
apiVersion: v1
kind: Secret
metadata:
  name: {{.Name}}
stringData:
{{- range $key, $value := .Content}}
  {{scalar $key}}: {{lines 4 $value}}
{{- end}}
---
{{.Pod}}`))

// manifest returns the file of the program in examples/.
func (p program) manifest() string {
	name := p.example.name
	pod := p.pod(values{
		Name: name, Image: "example.com/" + name, Secret: name, Command: p.example.command,
		Keys: slices.Sorted(maps.Keys(p.example.content)),
	})
	const replace = "Replace the image and the content of the Secret."
	var text bytes.Buffer
	err := exampleTemplate.Execute(&text, map[string]any{
		"Comment": append(wrap(p.name+". "+p.checks, 98), replace),
		"Name":    name, "Content": p.example.content, "Pod": pod,
	})
	if err != nil {
		panic(err) // a mistake in this package's template
	}
	return text.String()
}

// WriteExamples writes the file of each program to a directory.
func WriteExamples(dir string) error {
	for _, p := range programs {
		if err := os.WriteFile(filepath.Join(dir, p.example.name+".yaml"), []byte(p.manifest()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// plain matches texts that YAML reads as the same string without quotes.
var plain = regexp.MustCompile(`^[A-Za-z/.-][\w./=@-]*$`)

// scalar returns a string as YAML, in one line.
func scalar(s string) string {
	if plain.MatchString(s) {
		return s
	}
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(s); err != nil {
		panic(err) // This can't fail for a string.
	}
	return strings.TrimSpace(text.String())
}

// lines returns a string as YAML. A string of several lines becomes a block with this indentation.
func lines(indent int, s string) string {
	if !strings.Contains(s, "\n") {
		return scalar(s)
	}
	start := "\n" + strings.Repeat(" ", indent)
	return "|" + start + strings.ReplaceAll(strings.TrimSpace(s), "\n", start)
}

// wrap breaks a text into lines of at most width bytes.
func wrap(text string, width int) (wrapped []string) {
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			wrapped = append(wrapped, line)
			line = ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	return append(wrapped, line)
}
