// SPDX-License-Identifier: Apache-2.0

// Package kustomize tests kustomize with the output of convert, and with the driver's manifest. It is a module of its
// own, so that kustomize is not in the driver's go.mod.
package kustomize

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/provider"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	corev1 "k8s.io/api/core/v1"

	"github.com/fsuser-csi/fsuser-csi/deploy"
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

// A prefix and the hash of a generator change the names of objects. Kustomize's built-in name references also change
// the names in a converted base.
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

// The kustomizations in the documents, with their components, make the same objects as the chart with values.
func TestKustomizationsOfTheDriver(t *testing.T) {
	const platforms = "../../docs/platforms.md"
	k0s := block(t, platforms)
	component := func(name string) string { return strings.ReplaceAll(k0s, "/k0s", "/"+name) }
	for _, test := range []struct{ kustomization, set string }{
		{block(t, "../../deploy/README.md"), "image.registry=registry.example.com"},
		{k0s, "kubeletRootDir=/var/lib/k0s/kubelet"},
		{component("microk8s"), "kubeletRootDir=/var/snap/microk8s/common/var/lib/kubelet"},
		{component("gke"), "resourceQuota.enabled=true"},
		{component("openshift"), "openshift.securityContextConstraint=true"},
		{strings.ReplaceAll(component("gke"), "[deploy]", "[deploy/fsuser-csi-namespaces.yaml]"),
			"access=namespaces,resourceQuota.enabled=true"},
	} {
		files := filesys.MakeFsInMemory()
		if err := files.WriteFile("kustomization.yaml", []byte(test.kustomization)); err != nil {
			t.Fatal(err)
		}
		copyDeploy(t, files)
		got, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, ".")
		if err != nil {
			t.Errorf("%s: %v", test.kustomization, err)
			continue
		}
		rendered, err := deploy.Template(t.Context(), "../../deploy", "--set", "namespace.create=true,"+test.set)
		if err != nil {
			t.Fatal(err)
		}
		want, err := resmap.NewFactory(provider.NewDefaultDepProvider().GetResourceFactory()).NewResMapFromBytes(rendered)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := names(got), names(want); !slices.Equal(got, want) {
			t.Errorf("%s makes %q, --set %s makes %q", test.kustomization, got, test.set, want)
		}
		if got, want := podSpec(t, got, "DaemonSet"), podSpec(t, want, "DaemonSet"); !reflect.DeepEqual(got, want) {
			t.Errorf("%s makes the pods\n%+v\n--set %s makes\n%+v", test.kustomization, got, test.set, want)
		}
	}
}

// block returns the kustomization of a page.
func block(t *testing.T, page string) string {
	t.Helper()
	content, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(resources: .*?)```").FindAllSubmatch(content, -1)
	if len(blocks) != 1 {
		t.Fatalf("%s has %d kustomizations, want one", page, len(blocks))
	}
	return string(blocks[0][1])
}

// copyDeploy copies the YAML files of the folder deploy, without the chart.
func copyDeploy(t *testing.T, to filesys.FileSystem) {
	t.Helper()
	root := os.DirFS("../..")
	err := fs.WalkDir(root, "deploy", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == "deploy/chart":
			return fs.SkipDir
		case filepath.Ext(path) != ".yaml":
			return nil
		}
		content, err := fs.ReadFile(root, path)
		if err != nil {
			return err
		}
		return to.WriteFile(path, content)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// names returns the kinds and names of objects.
func names(resources resmap.ResMap) (all []string) {
	for _, r := range resources.Resources() {
		all = append(all, r.GetKind()+"/"+r.GetName())
	}
	slices.Sort(all)
	return all
}

// build returns the pod that kustomize makes of a base.
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

// podSpec returns the pod of the first object of this kind.
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
