// SPDX-License-Identifier: Apache-2.0

// Package kustomize tests that kustomize works with what convert writes, and with the driver's manifest. It is a module
// of its own, so that kustomize is not in the driver's go.mod.
package kustomize

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	corev1 "k8s.io/api/core/v1"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/convert"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

const (
	base = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsUser: 1000}
      containers:
      - name: web
        image: example.com/web
        volumeMounts:
        - {name: conf, mountPath: /etc/web}
        - {name: key, mountPath: /keys}
        - {name: all, mountPath: /all}
      volumes:
      - name: conf
        configMap: {name: web-conf}
      - name: key
        secret: {secretName: web-key, defaultMode: 0400}
      - name: all
        projected:
          sources:
          - secret: {name: web-key}
          - configMap: {name: web-conf}
`
	kustomization = `apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namePrefix: prod-
resources: [deployment.yaml]
configMapGenerator:
- name: web-conf
  literals: [a=1]
secretGenerator:
- name: web-key
  literals: [k=secret]
`
)

// A prefix and the hash of a generator change the names of objects. The names in a converted base follow with
// kustomize's built-in name references.
func TestNamesFollow(t *testing.T) {
	converted := convert.File(manifest.Parse("deployment.yaml", base), convert.Options{})
	if converted.Converted != 3 || len(converted.Left) > 0 {
		t.Fatalf("%d volumes converted, left %v", converted.Converted, converted.Left)
	}
	spec := build(t, converted.Text)
	want := map[string]string{ // the objects of each mounted volume
		"/etc/web": "ConfigMap/prod-web-conf-", "/keys": "Secret/prod-web-key-",
		"/all": "Secret/prod-web-key- ConfigMap/prod-web-conf-",
	}
	for _, mount := range spec.Containers[0].VolumeMounts {
		var values map[string]string
		for _, v := range spec.Volumes {
			if v.Name == mount.Name && v.CSI != nil {
				values = v.CSI.VolumeAttributes
			}
		}
		s, errs := attributes.Parse(values, false)
		if len(errs) == 0 {
			s, errs = s.Describe(spec, mount.Name)
		}
		if len(errs) > 0 {
			t.Errorf("%s: %v", mount.MountPath, errs)
		}
		var objects []string
		for _, source := range s.Sources {
			// The hash of a generator has ten characters.
			name := source.Object.Name
			objects = append(objects, string(source.Object.Kind)+"/"+name[:max(0, len(name)-10)])
		}
		if got := strings.Join(objects, " "); got != want[mount.MountPath] {
			t.Errorf("%s shows %q, want %q", mount.MountPath, got, want[mount.MountPath])
		}
	}
}

// The kustomization in deploy/README.md gives the driver another image.
func TestImageOfTheDriver(t *testing.T) {
	readme, err := os.ReadFile("../../deploy/README.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```yaml\n(resources: .*?)```").FindSubmatch(readme)
	if block == nil {
		t.Fatal("deploy/README.md has no kustomization")
	}
	manifest, err := os.ReadFile("../../deploy/fsuser-csi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	fs := filesys.MakeFsInMemory()
	for name, content := range map[string][]byte{"fsuser-csi.yaml": manifest, "kustomization.yaml": block[1]} {
		if err := fs.WriteFile(name, content); err != nil {
			t.Fatal(err)
		}
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, ".")
	if err != nil {
		t.Fatal(err)
	}
	image := podSpec(t, resources, "DaemonSet").Containers[0].Image
	if !strings.HasPrefix(image, "registry.example.com/fsuser-csi:") {
		t.Errorf("the image is %s", image)
	}
}

// build is the pod that kustomize makes of a base.
func build(t *testing.T, deployment string) *corev1.PodSpec {
	t.Helper()
	fs := filesys.MakeFsInMemory()
	for name, text := range map[string]string{"base/deployment.yaml": deployment,
		"base/kustomization.yaml": kustomization} {
		if err := fs.WriteFile(name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, "base")
	if err != nil {
		t.Fatal(err)
	}
	return podSpec(t, resources, "Deployment")
}

// podSpec is the pod of the first object of this kind.
func podSpec(t *testing.T, resources resmap.ResMap, kind string) *corev1.PodSpec {
	t.Helper()
	for _, r := range resources.Resources() {
		if r.GetKind() != kind {
			continue
		}
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		var built struct {
			Spec struct {
				Template struct{ Spec corev1.PodSpec }
			}
		}
		if err := yaml.Unmarshal(text, &built); err != nil {
			t.Fatal(err)
		}
		return &built.Spec.Template.Spec
	}
	t.Fatalf("kustomize built no %s", kind)
	return nil
}
