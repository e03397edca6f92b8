// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gallery

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestExamplesAreOfTheGallery checks that examples/ has the file of each program, as rendered from the gallery's table.
func TestExamplesAreOfTheGallery(t *testing.T) {
	for _, p := range programs {
		content, err := os.ReadFile(filepath.Join("..", "..", "examples", p.example.name+".yaml"))
		if err != nil {
			t.Error(err)
		} else if string(content) != p.manifest() {
			t.Errorf("examples/%s.yaml differs from what the gallery renders; write it with: make examples", p.example.name)
		}
	}
}

// TestExamplesAreComplete checks that each file has a Secret and a Pod whose volume shows each key of the Secret.
func TestExamplesAreComplete(t *testing.T) {
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			first, second, _ := strings.Cut(p.manifest(), "\n---\n")
			var secret corev1.Secret
			var pod corev1.Pod
			if err := yaml.UnmarshalStrict([]byte(first), &secret); err != nil {
				t.Fatal(err)
			}
			if err := yaml.UnmarshalStrict([]byte(second), &pod); err != nil {
				t.Fatal(err)
			}
			if len(secret.StringData) == 0 || secret.Kind != "Secret" || pod.Kind != "Pod" {
				t.Errorf("a %s with %d keys and a %s", secret.Kind, len(secret.StringData), pod.Kind)
			}
			for key, value := range p.example.content {
				if got := secret.StringData[key]; strings.TrimSuffix(got, "\n") != strings.TrimSuffix(value, "\n") {
					t.Errorf("key %s holds %q, want %q", key, got, value)
				}
			}
			for i, word := range p.example.command {
				if got := pod.Spec.Containers[0].Command[i]; strings.TrimSpace(got) != strings.TrimSpace(word) {
					t.Errorf("word %d of the command is %q, want %q", i, got, word)
				}
			}
			source := pod.Spec.Volumes[0].Secret
			csi := pod.Spec.Volumes[len(pod.Spec.Volumes)-1].CSI
			switch {
			case source == nil && csi.VolumeAttributes["secretName"] != secret.Name:
				t.Errorf("the volume has the attributes %v", csi.VolumeAttributes)
			case source != nil && (csi.VolumeAttributes["volume"] != pod.Spec.Volumes[0].Name ||
				source.SecretName != secret.Name || len(source.Items) != len(secret.StringData)):
				t.Errorf("the volume has the attributes %v and is described by %v", csi.VolumeAttributes, source)
			}
		})
	}
}
