// SPDX-License-Identifier: Apache-2.0

//go:build e2e && linux

package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fsuser-csi/fsuser-csi/test/tree"
)

// comparisons returns the behaviours that docs/compatibility.md lists, by name.
func comparisons(t *testing.T) []comparison {
	t.Helper()
	secretVolume := "- {name: v, secret: {secretName: NAME}}"
	configMapVolume := "- {name: v, configMap: {name: NAME}}"
	large := strings.Repeat("0123456789abcdef", 60_000)
	return []comparison{
		{
			name: "secret-keys", volumes: secretVolume,
			before: []edit{secret("tls.crt", "1", ".dockerconfigjson", "2", "UPPER_case-1", "3", "a..b", "4", "empty", "",
				"binary", "\x00\xff\n")},
			shows: files{"tls.crt": "1", ".dockerconfigjson": "2", "UPPER_case-1": "3", "a..b": "4", "empty": "",
				"binary": "\x00\xff\n"},
			steps: []step{
				{"a value changes", []edit{secret("tls.crt", "1", "other", "2")}, nil, files{"tls.crt": "1", "other": "2"}},
				{"keys come and go", []edit{secret("other", "3", "new", "3")}, nil, files{"other": "3", "new": "3"}},
				{"the last key goes", []edit{secret()}, nil, files{}},
				{"a key comes", []edit{secret("k", "4")}, nil, files{"k": "4"}},
			},
		},
		{
			name: "configmap-keys", volumes: configMapVolume,
			before: []edit{configMap("a", "1", "b", "ä\r\n"), binaryData("bytes", "\x00\xff\n")},
			shows:  files{"a": "1", "b": "ä\r\n", "bytes": "\x00\xff\n"},
			steps: []step{
				{"values change", []edit{configMap("a", "2", "b", "2")}, nil, files{"a": "2", "b": "2"}},
				{"binaryData alone", []edit{configMap(), binaryData("bytes", "\xfe")}, nil, files{"bytes": "\xfe"}},
			},
		},
		{
			name: "secret-items", volumes: `- {name: v, secret: {secretName: NAME, defaultMode: 0440, items: [
    {key: a, path: a, mode: 0400}, {key: a, path: again}, {key: b, path: etc/conf.d/b.conf, mode: 0},
    {key: c, path: etc/c, mode: 0755}, {key: c, path: etc/..x}]}}`,
			before: []edit{secret("a", "1", "b", "1", "c", "1", "d", "not picked")},
			shows:  files{"a": "1", "again": "1", "etc/conf.d/b.conf": "1", "etc/c": "1", "etc/..x": "1"},
			steps: []step{
				{"what lies deep changes", []edit{secret("a", "1", "b", "2", "c", "1")}, nil,
					files{"a": "1", "again": "1", "etc/conf.d/b.conf": "2", "etc/c": "1", "etc/..x": "1"}},
				{"a key that is named goes", []edit{secret("a", "3", "c", "3")}, []string{"b"},
					files{"a": "1", "again": "1", "etc/conf.d/b.conf": "2", "etc/c": "1", "etc/..x": "1"}},
				{"it comes back", []edit{secret("a", "4", "b", "4", "c", "4")}, nil,
					files{"a": "4", "again": "4", "etc/conf.d/b.conf": "4", "etc/c": "4", "etc/..x": "4"}},
			},
		},
		{
			name: "configmap-items", volumes: `- {name: v, configMap: {name: NAME, defaultMode: 0444, items: [
    {key: a, path: d/a}, {key: bytes, path: d/e/bytes, mode: 0600}]}}`,
			before: []edit{configMap("a", "1"), binaryData("bytes", "\x00")},
			shows:  files{"d/a": "1", "d/e/bytes": "\x00"},
			steps: []step{{"a value changes", []edit{configMap("a", "2"), binaryData("bytes", "\x00")}, nil,
				files{"d/a": "2", "d/e/bytes": "\x00"}}},
		},
		{
			// The CA certificates of a registry are in directories such as registry.example.com:5000.
			name: "paths", volumes: `- name: v
    configMap:
      name: NAME
      items:
      - {key: a, path: "example.com:5000/ca.crt"}
      - {key: a, path: 'C:\d'}
      - {key: a, path: "tab\tand\nnewline"}
      - {key: a, path: "a b/é/\"'{}[]&*#"}
      - {key: a, path: ./e//f}`,
			before: []edit{configMap("a", "1")},
			shows: files{
				"example.com:5000/ca.crt": "1", `C:\d`: "1", "tab\tand\nnewline": "1", `a b/é/"'{}[]&*#`: "1", "e/f": "1",
			},
			steps: []step{{"the value changes", []edit{configMap("a", "2")}, nil, files{
				"example.com:5000/ca.crt": "2", `C:\d`: "2", "tab\tand\nnewline": "2", `a b/é/"'{}[]&*#`: "2", "e/f": "2",
			}}},
		},
		{
			name: "same-path-twice", volumes: `- {name: v, secret: {secretName: NAME, items: [
    {key: a, path: x}, {key: b, path: x, mode: 0400}, {key: b, path: d/y}, {key: a, path: d/y}]}}`,
			before: []edit{secret("a", "a", "b", "b")}, shows: files{"x": "b", "d/y": "a"},
			steps: []step{
				{"both values change", []edit{secret("a", "a2", "b", "b2")}, nil, files{"x": "b2", "d/y": "a2"}},
			},
		},
		{
			name: "secret-empty", volumes: secretVolume, before: []edit{secret()}, shows: files{},
			steps: []step{{"keys come", []edit{secret("a", "1")}, nil, files{"a": "1"}},
				{"they go", []edit{secret()}, nil, files{}}},
		},
		{
			name: "configmap-empty", volumes: configMapVolume, before: []edit{configMap()}, shows: files{},
		},
		{
			name: "secret-large", volumes: secretVolume, before: []edit{secret("a", large)}, shows: files{"a": large},
			steps: []step{{"all of it changes", []edit{secret("b", large+"x")}, nil, files{"b": large + "x"}}},
		},
		{
			name: "secret-missing", volumes: secretVolume, waits: []string{"secret-missing", "not found"},
			steps: []step{{"it appears", []edit{secret("k", "1")}, nil, files{"k": "1"}}},
		},
		{
			name: "configmap-missing", volumes: configMapVolume, waits: []string{"configmap-missing", "not found"},
			steps: []step{{"it appears", []edit{configMap("k", "1")}, nil, files{"k": "1"}}},
		},
		{
			name:    "secret-missing-key",
			volumes: "- {name: v, secret: {secretName: NAME, items: [{key: a, path: a}, {key: missing, path: b}]}}",
			before:  []edit{secret("a", "1")}, waits: []string{"key", "missing"},
			steps: []step{{"it appears", []edit{secret("a", "1", "missing", "2")}, nil, files{"a": "1", "b": "2"}}},
		},
		{
			name: "configmap-missing-key", volumes: "- {name: v, configMap: {name: NAME, items: [{key: missing, path: b}]}}",
			before: []edit{configMap("a", "1")}, waits: []string{"key", "missing"},
			steps: []step{{"it appears", []edit{configMap("missing", "2")}, nil, files{"b": "2"}}},
		},
		{
			name: "secret-optional", volumes: "- {name: v, secret: {secretName: NAME, optional: true}}", shows: files{},
			steps: []step{
				{"it appears", []edit{secret("k", "1")}, nil, files{"k": "1"}},
				{"it is deleted", []edit{deleteSecret}, nil, files{}},
				{"it appears again", []edit{secret("k", "2")}, nil, files{"k": "2"}},
			},
		},
		{
			name: "configmap-optional", volumes: "- {name: v, configMap: {name: NAME, optional: true}}", shows: files{},
			steps: []step{
				{"it appears", []edit{configMap("k", "1")}, nil, files{"k": "1"}},
				{"it is deleted", []edit{deleteConfigMap}, nil, files{}},
			},
		},
		{
			name: "secret-optional-key", volumes: "- {name: v, secret: {secretName: NAME, optional: true, items: [{key: a, " +
				"path: a}, {key: b, path: d/b}]}}",
			before: []edit{secret("a", "1")}, shows: files{"a": "1"},
			steps: []step{
				{"the key appears", []edit{secret("a", "1", "b", "1")}, nil, files{"a": "1", "d/b": "1"}},
				{"it goes", []edit{secret("a", "1")}, nil, files{"a": "1"}},
			},
		},
		{
			name:    "configmap-optional-key",
			volumes: "- {name: v, configMap: {name: NAME, optional: true, items: [{key: a, path: a}, {key: b, path: d/b}]}}",
			before:  []edit{configMap("a", "1")}, shows: files{"a": "1"},
			steps: []step{
				{"the key appears", []edit{configMap("a", "1", "b", "1")}, nil, files{"a": "1", "d/b": "1"}},
				{"it goes", []edit{configMap("a", "1")}, nil, files{"a": "1"}},
			},
		},
		{
			name: "secret-deleted", volumes: secretVolume, before: []edit{secret("a", "1", "b", "1")},
			shows: files{"a": "1", "b": "1"},
			steps: []step{
				{"it is deleted", []edit{deleteSecret}, []string{"secret-deleted", "not found"}, files{"a": "1", "b": "1"}},
				{"it is made anew", []edit{secret("a", "2", "c", "2")}, nil, files{"a": "2", "c": "2"}},
			},
		},
		{
			name: "configmap-deleted", volumes: configMapVolume, before: []edit{configMap("a", "1")}, shows: files{"a": "1"},
			steps: []step{
				{"it is deleted", []edit{deleteConfigMap}, []string{"configmap-deleted", "not found"}, files{"a": "1"}},
				{"it is made anew", []edit{configMap("a", "2")}, nil, files{"a": "2"}},
			},
		},
		{
			// The ordinary ConfigMap shows that both have checked the objects since the immutable Secret was created again.
			name:    "secret-immutable",
			volumes: "- {name: v, projected: {sources: [{secret: {name: NAME}}, {configMap: {name: NAME}}]}}",
			before:  []edit{secret("a", "1"), immutable, configMap("b", "1")}, shows: files{"a": "1", "b": "1"},
			steps: []step{{"it is made anew", []edit{deleteSecret, secret("a", "2"), configMap("b", "2")}, nil,
				files{"a": "1", "b": "2"}}},
		},
		{
			// This is the same with the other kind.
			name:    "configmap-immutable",
			volumes: "- {name: v, projected: {sources: [{secret: {name: NAME}}, {configMap: {name: NAME}}]}}",
			before:  []edit{configMap("a", "1"), immutableConfigMap, secret("b", "1")}, shows: files{"a": "1", "b": "1"},
			steps: []step{{"it is made anew", []edit{deleteConfigMap, configMap("a", "2"), secret("b", "2")}, nil,
				files{"a": "1", "b": "2"}}},
		},
		{
			name: "projected", volumes: `- name: v
    projected:
      defaultMode: 0440
      sources:
      - secret: {name: NAME, items: [{key: a, path: d/secret, mode: 0400}]}
      - configMap: {name: NAME, items: [{key: a, path: d/configmap}, {key: b, path: d/e/b}]}
      - downwardAPI:
          items:
          - {path: d/color, fieldRef: {fieldPath: "metadata.labels['color']"}}
          - {path: labels, fieldRef: {fieldPath: metadata.labels}, mode: 0444}`,
			before: []edit{secret("a", "1"), configMap("a", "1", "b", "1")},
			shows:  files{"d/secret": "1", "d/configmap": "1", "d/e/b": "1", "d/color": "red", "labels": `color="red"`},
			steps: []step{
				{"the Secret changes", []edit{secret("a", "2")}, nil,
					files{"d/secret": "2", "d/configmap": "1", "d/e/b": "1", "d/color": "red", "labels": `color="red"`}},
				{"the labels change", []edit{labels(`{"color":"blue","x":"y-z"}`)}, nil,
					files{"d/secret": "2", "d/configmap": "1", "d/e/b": "1", "d/color": "blue",
						"labels": "color=\"blue\"\nx=\"y-z\""}},
				{"the ConfigMap goes", []edit{deleteConfigMap}, []string{"projected", "not found"},
					files{"d/secret": "2", "d/configmap": "1", "d/e/b": "1", "d/color": "blue",
						"labels": "color=\"blue\"\nx=\"y-z\""}},
				{"a label goes, and the ConfigMap is back", []edit{labels(`{"color":null}`), configMap("a", "3", "b", "3")}, nil,
					files{"d/secret": "2", "d/configmap": "3", "d/e/b": "3", "d/color": "", "labels": `x="y-z"`}},
			},
		},
		{
			name: "projected-whole-objects",
			volumes: `- {name: v, projected: {sources: [{secret: {name: NAME}}, {configMap: {name: NAME, optional: true}},
    {secret: {name: nowhere, optional: true}}]}}`,
			before: []edit{secret("a", "1")}, shows: files{"a": "1"},
			steps: []step{
				{"the optional ConfigMap appears", []edit{configMap("b", "1")}, nil, files{"a": "1", "b": "1"}},
				{"it goes", []edit{deleteConfigMap}, nil, files{"a": "1"}},
				{"the Secret goes", []edit{deleteSecret}, []string{"projected-whole-objects", "not found"}, files{"a": "1"}},
			},
		},
		{
			name:    "projected-missing",
			volumes: "- {name: v, projected: {sources: [{secret: {name: NAME}}, {configMap: {name: NAME}}]}}",
			before:  []edit{secret("a", "1")}, waits: []string{"projected-missing", "not found"},
			steps: []step{{"it appears", []edit{configMap("b", "1")}, nil, files{"a": "1", "b": "1"}}},
		},
		{
			name: "projected-missing-key", volumes: "- {name: v, projected: {sources: [{secret: {name: NAME, items: [{key: " +
				"missing, path: d/a}]}}, {configMap: {name: NAME}}]}}",
			before: []edit{secret("a", "1"), configMap("b", "1")}, waits: []string{"key", "missing"},
			steps: []step{{"it appears", []edit{secret("missing", "1")}, nil, files{"d/a": "1", "b": "1"}}},
		},
		{
			name: "downwardapi", volumes: `- name: v
    downwardAPI:
      defaultMode: 0400
      items:
      - {path: name, fieldRef: {fieldPath: metadata.name}}
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}
      - {path: r/cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}, mode: 0444}
      - {path: r/cpus, resourceFieldRef: {containerName: main, resource: limits.cpu}}
      - {path: r/memory, resourceFieldRef: {containerName: main, resource: limits.memory, divisor: 1Mi}}
      - {path: r/request, resourceFieldRef: {containerName: main, resource: requests.memory}}
      - {path: r/unset, resourceFieldRef: {containerName: main, resource: requests.ephemeral-storage}}`,
			spec: func(spec *corev1.PodSpec) {
				spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: resources("1m", "1Mi"),
					Limits: resources("1500m", "100M")}
			},
			shows: files{"name": "downwardapi", "labels": `color="red"`, "note": "", "r/cpu": "1500", "r/cpus": "2",
				"r/memory": "96", "r/request": "1048576", "r/unset": "0"},
			steps: []step{{"labels and annotations change",
				[]edit{labels(`{"color":"blue"}`), annotations(`{"note":"a\nb \"c\" ä"}`)}, nil,
				files{"name": "downwardapi", "labels": `color="blue"`, "note": "a\nb \"c\" ä", "r/cpu": "1500", "r/cpus": "2",
					"r/memory": "96", "r/request": "1048576", "r/unset": "0"}}},
		},
		{
			name: "limits-unset", volumes: `- name: v
    downwardAPI:
      items:
      - {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}}
      - {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory}}
      - {path: storage, resourceFieldRef: {containerName: main, resource: limits.ephemeral-storage, divisor: 1Mi}}`,
			shows: allocatable(t),
		},
		{
			name: "fsgroup", volumes: "- {name: v, secret: {secretName: NAME, defaultMode: 0400, items: [{key: a, path: a}, " +
				"{key: a, path: d/a, mode: 0644}, {key: a, path: x, mode: 0}]}}",
			spec: withFSGroup, before: []edit{secret("a", "1")}, shows: files{"a": "1", "d/a": "1", "x": "1"},
			steps: []step{{"a value changes", []edit{secret("a", "2")}, nil, files{"a": "2", "d/a": "2", "x": "2"}}},
			differs: []difference{{"`fsGroup` widens no mode",
				withoutFSGroupModes(map[string]uint32{"a": 0o400, "d/a": 0o644, "x": 0})}},
		},
		{
			name: "fsgroup-configmap",
			volumes: "- {name: v, configMap: {name: NAME, defaultMode: 0400, items: [{key: a, path: " +
				"a}, {key: a, path: d/a, mode: 0644}]}}",
			spec: withFSGroup, before: []edit{configMap("a", "1")}, shows: files{"a": "1", "d/a": "1"},
			steps: []step{{"a value changes", []edit{configMap("a", "2")}, nil, files{"a": "2", "d/a": "2"}}},
			differs: []difference{{"`fsGroup` widens no mode",
				withoutFSGroupModes(map[string]uint32{"a": 0o400, "d/a": 0o644})}},
		},
		{
			name: "fsgroup-projected", volumes: `- {name: v, projected: {defaultMode: 0400, sources: [
    {secret: {name: NAME}}, {configMap: {name: NAME, items: [{key: a, path: d/a, mode: 0}]}},
    {downwardAPI: {items: [{path: d/name, fieldRef: {fieldPath: metadata.name}, mode: 0444}]}}]}}`,
			spec: withFSGroup, before: []edit{secret("a", "1"), configMap("a", "1")},
			shows: files{"a": "1", "d/a": "1", "d/name": "fsgroup-projected"},
			steps: []step{{"a value changes", []edit{secret("a", "2")}, nil,
				files{"a": "2", "d/a": "1", "d/name": "fsgroup-projected"}}},
			differs: []difference{{"`fsGroup` widens no mode",
				withoutFSGroupModes(map[string]uint32{"a": 0o400, "d/a": 0, "d/name": 0o444})}},
		},
		{
			name:    "subpath",
			volumes: secretVolume + "\n  - {name: w, secret: {secretName: NAME, items: [{key: k, path: etc/k}]}}",
			spec:    withSubPaths, before: []edit{secret("k", "1")}, shows: files{"k": "1"}, also: []string{"/file", "/folder"},
			steps: []step{{"a value changes", []edit{secret("k", "2")}, nil, files{"k": "2"}}},
		},
		{
			name:    "subpath-configmap",
			volumes: configMapVolume + "\n  - {name: w, configMap: {name: NAME, items: [{key: k, path: etc/k}]}}",
			spec:    withSubPaths, before: []edit{configMap("k", "1")}, shows: files{"k": "1"},
			also:  []string{"/file", "/folder"},
			steps: []step{{"a value changes", []edit{configMap("k", "2")}, nil, files{"k": "2"}}},
		},
		{
			name: "subpath-projected",
			volumes: `- {name: v, projected: {sources: [{secret: {name: NAME}}, {configMap: {name: NAME}}]}}
  - {name: w, projected: {sources: [{secret: {name: NAME, items: [{key: k, path: etc/k}]}},
    {configMap: {name: NAME, items: [{key: c, path: etc/c}]}}]}}`,
			spec: withSubPaths, before: []edit{secret("k", "1"), configMap("c", "1")}, shows: files{"k": "1", "c": "1"},
			also:  []string{"/file", "/folder"},
			steps: []step{{"values change", []edit{secret("k", "2"), configMap("c", "2")}, nil, files{"k": "2", "c": "2"}}},
		},
		{
			name: "init-container", volumes: secretVolume,
			spec: func(spec *corev1.PodSpec) {
				init := spec.Containers[0]
				init.Name, init.Command = "init", []string{"/pod", "list", "/v"}
				spec.InitContainers = []corev1.Container{init}
			},
			before: []edit{secret("k", "1")}, shows: files{"k": "1"},
		},
	}
}

// allocatable returns the limits that kubelet shows for a container without limits.
func allocatable(t *testing.T) files {
	t.Helper()
	node, err := client.CoreV1().Nodes().Get(suite, nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	has := node.Status.Allocatable
	const mebibyte = 1 << 20
	return files{
		"cpu":     fmt.Sprint(has.Cpu().MilliValue()),
		"memory":  fmt.Sprint(has.Memory().Value()),
		"storage": fmt.Sprint((has.StorageEphemeral().Value() + mebibyte - 1) / mebibyte),
	}
}

// differencesOfAll returns the differences in every volume.
func differencesOfAll() []difference {
	return []difference{{"The mode of the volume's root is `0755`", func(e tree.Entry) tree.Entry {
		// The mode of kubelet's volume is 1777 for a tmpfs and 0777 for a directory on the disk.
		if e.Path == "." && e.Type == "d" && (e.Mode == 0o1777 || e.Mode == 0o777) {
			e.Mode = 0o755
		}
		return e
	}}}
}

func withFSGroup(spec *corev1.PodSpec) {
	group := int64(3000)
	spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &group}
}

// withSubPaths mounts the file k of volume v, and the directory etc of volume w.
func withSubPaths(spec *corev1.PodSpec) {
	spec.Containers[0].VolumeMounts = append(spec.Containers[0].VolumeMounts,
		corev1.VolumeMount{Name: "v", MountPath: "/file", SubPath: "k"},
		corev1.VolumeMount{Name: "w", MountPath: "/folder", SubPath: "etc"})
}

// withoutFSGroupModes removes the bits that kubelet adds for the group: 0440 from the modes of the given files, and
// 02550 from the modes of directories.
func withoutFSGroupModes(modes map[string]uint32) func(tree.Entry) tree.Entry {
	return func(e tree.Entry) tree.Entry {
		mode, known := modes[strings.TrimPrefix(e.Path, tree.Generation+"/")]
		switch {
		case e.Type == "-" && known && e.Mode == mode|0o440:
			e.Mode = mode
		case e.Type == "d" && e.Path == "." && (e.Mode == 0o3777 || e.Mode == 0o2777), e.Type == "d" && e.Mode == 0o2755:
			e.Mode = 0o755
		}
		return e
	}
}

// secret creates the Secret, or replaces its content.
func secret(keysAndValues ...string) edit {
	return func(n namespace, name string) {
		n.t.Helper()
		api := client.CoreV1().Secrets(n.name)
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{}}
		for key, value := range pairs(keysAndValues) {
			s.Data[key] = []byte(value)
		}
		_, err := api.Create(suite, s, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = api.Update(suite, s, metav1.UpdateOptions{})
		}
		if err != nil {
			n.t.Fatal(err)
		}
	}
}

// configMap creates the ConfigMap, or replaces its content.
func configMap(keysAndValues ...string) edit {
	return func(n namespace, name string) {
		n.t.Helper()
		api := client.CoreV1().ConfigMaps(n.name)
		c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: pairs(keysAndValues)}
		_, err := api.Create(suite, c, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = api.Update(suite, c, metav1.UpdateOptions{})
		}
		if err != nil {
			n.t.Fatal(err)
		}
	}
}

// binaryData adds bytes to the ConfigMap.
func binaryData(keysAndValues ...string) edit {
	return func(n namespace, name string) {
		n.t.Helper()
		api := client.CoreV1().ConfigMaps(n.name)
		c, err := api.Get(suite, name, metav1.GetOptions{})
		if err != nil {
			n.t.Fatal(err)
		}
		c.BinaryData = map[string][]byte{}
		for key, value := range pairs(keysAndValues) {
			c.BinaryData[key] = []byte(value)
		}
		if _, err := api.Update(suite, c, metav1.UpdateOptions{}); err != nil {
			n.t.Fatal(err)
		}
	}
}

func deleteSecret(n namespace, name string) {
	n.t.Helper()
	if err := client.CoreV1().Secrets(n.name).Delete(suite, name, metav1.DeleteOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

func deleteConfigMap(n namespace, name string) {
	n.t.Helper()
	if err := client.CoreV1().ConfigMaps(n.name).Delete(suite, name, metav1.DeleteOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// immutable makes the Secret immutable.
func immutable(n namespace, name string) {
	n.t.Helper()
	if _, err := client.CoreV1().Secrets(n.name).Patch(suite, name, types.MergePatchType, []byte(`{"immutable":true}`),
		metav1.PatchOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

func immutableConfigMap(n namespace, name string) {
	n.t.Helper()
	if _, err := client.CoreV1().ConfigMaps(n.name).Patch(suite, name, types.MergePatchType, []byte(`{"immutable":true}`),
		metav1.PatchOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

// labels merges labels, as JSON, into the labels of the pod.
func labels(patch string) edit { return metadata("labels", patch) }

func annotations(patch string) edit { return metadata("annotations", patch) }

func metadata(field, patch string) edit {
	return func(n namespace, name string) {
		n.t.Helper()
		patch := []byte(`{"metadata":{"` + field + `":` + patch + `}}`)
		if _, err := client.CoreV1().Pods(n.name).Patch(suite, name, types.MergePatchType, patch,
			metav1.PatchOptions{}); err != nil {
			n.t.Fatal(err)
		}
	}
}
