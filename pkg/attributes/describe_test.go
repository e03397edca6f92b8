// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// podSpec decodes the spec of a pod as a manifest has it.
func podSpec(t *testing.T, manifest string) *corev1.PodSpec {
	t.Helper()
	var spec corev1.PodSpec
	if err := yaml.UnmarshalStrict([]byte(manifest), &spec); err != nil {
		t.Fatal(err)
	}
	return &spec
}

// describe parses the attributes and completes them with the pod's volume.
func describe(t *testing.T, pod string, attributes map[string]string) (Spec, string) {
	t.Helper()
	spec, errs := Parse(attributes, false)
	if len(errs) > 0 {
		t.Fatal(messages(errs))
	}
	described, errs := spec.Describe(podSpec(t, pod), "csi")
	if bad := !reflect.DeepEqual(described, Spec{}); bad != (len(errs) == 0) {
		t.Errorf("%d errors and %+v", len(errs), described)
	}
	return described, messages(errs)
}

func TestDescribe(t *testing.T) {
	secret, configMap, pod := Object{Secret, "s"}, Object{ConfigMap, "c"}, Object{Kind: Pod}
	for _, tc := range []struct {
		name, volume string
		attributes   []string
		want         Spec
	}{
		{"a secret has the API's default mode", "secret: {secretName: s}", nil,
			Spec{Sources: []Source{{Object: secret, Mode: 0o644}}}},
		{"a secret with everything",
			"secret: {secretName: s, optional: true, defaultMode: 0600, defaultUser: 7, items: [{key: k, path: a//b, mode: " +
				"0400, user: 8}]}", nil,
			Spec{DefaultUser: number(7), Sources: []Source{{Object: secret, Optional: true, Mode: 0o600,
				Items: []Item{{Key: "k", Path: "a/b", Mode: number(0o400), UID: number(8)}}}}}},
		{"the attribute mode is stronger than defaultMode", "secret: {secretName: s, defaultMode: 0600}",
			[]string{"mode", "0440"},
			Spec{Mode: number(0o440), Sources: []Source{{Object: secret, Mode: 0o440}}}},
		{"a configMap", "configMap: {name: c, items: [{key: k, path: 'certs.d/host:5000/ca'}]}", nil,
			Spec{Sources: []Source{{Object: configMap, Mode: 0o644, Items: []Item{{Key: "k", Path: "certs.d/host:5000/ca"}}}}}},
		{"the downward API", `downwardAPI: {items: [{path: l, fieldRef: {fieldPath: metadata.labels}}, {path: m, mode: 0, ` +
			`resourceFieldRef: {containerName: a, resource: limits.memory, divisor: 1Mi}}]}`, nil,
			Spec{Sources: []Source{{Object: pod, Mode: 0o644, Items: []Item{
				{Key: "metadata.labels", Path: "l"},
				{Key: "limits.memory", Container: "a", Divisor: "1Mi", Path: "m", Mode: number(0)}}}}}},
		{"a projected volume",
			"projected: {defaultMode: 0440, sources: [{secret: {name: s}}, {configMap: {name: c, optional: true}}, " +
				"{downwardAPI: {items: []}}]}", nil,
			Spec{Sources: []Source{{Object: secret, Mode: 0o440}, {Object: configMap, Optional: true, Mode: 0o440},
				{Object: pod, Mode: 0o440}}}},
		{"a projected volume without content", "projected: {sources: []}", nil, Spec{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			attributes := map[string]string{"volume": "v"}
			for i := 0; i < len(tc.attributes); i += 2 {
				attributes[tc.attributes[i]] = tc.attributes[i+1]
			}
			got, errs := describe(t, "volumes: [{name: v, "+tc.volume+"}]", attributes)
			tc.want.Volume, tc.want.DirMode, tc.want.Refresh, tc.want.Layout = "v", 0o755, RefreshWatch, LayoutLinks
			if errs != "" || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v %s\nwant %+v", got, errs, tc.want)
			}
			if errs := Validate(got); len(errs) > 0 {
				t.Errorf("Validate refuses what Describe accepted: %s", messages(errs))
			}
		})
	}
}

func TestDescribeRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, volumes string
		want          []string
	}{
		{"no volume of this name", "[{name: w, secret: {secretName: s}}]",
			[]string{`volumeAttributes[volume]: Invalid value: "v": ` + volumeMissingRule}},
		{"a volume of another type", "[{name: v, emptyDir: {}}]", []string{volumeTypeRule}},
		{"a volume without a type", "[{name: v}]", []string{volumeTypeRule}},
		{"another csi volume", "[{name: v, csi: {driver: fsuser.csi.io}}]", []string{volumeTypeRule}},
		{"a token", "[{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]", []string{projectedRule}},
		{"everything at once",
			"[{name: v, secret: {secretName: A/b, defaultMode: 01000, items: [{key: k, path: ../x, mode: -1, user: " +
				"2147483648}, {key: l, path: /y}]}}]",
			[]string{`Secret "A/b": give the name alone`, "defaultMode 512", "element '..'", "mode -1 must be octal",
				"user 2147483648 must be a number", "must be relative"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, errs := describe(t, "volumes: "+tc.volumes, map[string]string{"volume": "v"})
			for _, want := range tc.want {
				if !strings.Contains(errs, want) {
					t.Errorf("message lacks %q:\n%s", want, errs)
				}
			}
		})
	}
	if _, errs := describe(t, "volumes: [{name: csi}]", map[string]string{"volume": "csi"}); !strings.Contains(errs,
		volumeItselfRule) {
		t.Errorf("the volume itself: %s", errs)
	}
}

// The cases include those of Kubernetes' own test of getNestedMountpoints.
func TestMountPointsAndSubPathsAreThoseOfKubelet(t *testing.T) {
	for _, tc := range []struct {
		name, mounts          string
		mountPoints, subPaths []string
	}{
		{"nothing beneath", "{name: csi, mountPath: /a}, {name: x, mountPath: /b}", nil, nil},
		{"one beneath", "{name: csi, mountPath: /a}, {name: x, mountPath: /a/b}", []string{"b"}, nil},
		{"deep beneath", "{name: csi, mountPath: /a/}, {name: x, mountPath: /a//b/c/}", []string{"b/c"}, nil},
		{"beneath what is beneath",
			"{name: x, mountPath: /dir/nested}, {name: y, mountPath: /dir/nested/double}, {name: z, mountPath: " +
				"/dir/nested-vol}, {name: z, mountPath: /dir/nested.vol}, {name: csi, mountPath: /dir}",
			[]string{"nested", "nested-vol", "nested.vol"}, nil},
		{"a name that only begins alike", "{name: csi, mountPath: /a}, {name: x, mountPath: /ab}", nil, nil},
		{"the root", "{name: csi, mountPath: /}, {name: x, mountPath: /b}", []string{"b"}, nil},
		{"beneath another volume", "{name: x, mountPath: /a}, {name: csi, mountPath: /a/b}", nil, nil},
		{"the volume beneath itself", "{name: csi, mountPath: /a}, {name: csi, mountPath: /a/b}", []string{"b"}, nil},
		{"two mounts",
			"{name: csi, mountPath: /a}, {name: csi, mountPath: /b}, {name: x, mountPath: /a/c}, {name: x, mountPath: /b/c}",
			[]string{"c"}, nil},
		{"a subPath", "{name: csi, mountPath: /a, subPath: c//d}, {name: x, mountPath: /a/b}", nil, []string{"c/d"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, containers := range []string{"containers", "initContainers"} {
				got, errs := describe(t, containers+": [{name: c, volumeMounts: ["+tc.mounts+
					"]}]\nvolumes: [{name: v, secret: {secretName: s}}]", map[string]string{"volume": "v"})
				if errs != "" || !reflect.DeepEqual(got.MountPoints, tc.mountPoints) ||
					!reflect.DeepEqual(got.SubPaths, tc.subPaths) {
					t.Errorf("%s: got %q and %q %s, want %q and %q", containers, got.MountPoints, got.SubPaths, errs, tc.mountPoints,
						tc.subPaths)
				}
			}
		})
	}
	_, errs := describe(t,
		"containers: [{name: c, volumeMounts: [{name: csi, mountPath: /a}, {name: x, mountPath: /a/..data}]}]\nvolumes: "+
			"[{name: v, secret: {secretName: s}}]",
		map[string]string{"volume": "v"})
	if !strings.Contains(errs, "must not start with '..'") {
		t.Errorf("a mount point among the AtomicWriter's own names: %s", errs)
	}
}

func TestPodUserIsThatOfTheContainersThatMountTheVolume(t *testing.T) {
	const mounts = "volumeMounts: [{name: v, mountPath: /v}]"
	for _, tc := range []struct {
		name, pod string
		want      *uint32
	}{
		{"the pod's", "{securityContext: {runAsUser: 1000}, containers: [{name: a, " + mounts + "}]}", number(1000)},
		{"the container's", "{securityContext: {runAsUser: 1}, containers: [{name: a, securityContext: {runAsUser: 1000}, " +
			mounts + "}]}", number(1000)},
		{"root", "{containers: [{name: a, securityContext: {runAsUser: 0}, " + mounts + "}]}", number(0)},
		{"nobody says", "{containers: [{name: a, " + mounts + "}]}", nil},
		{"two users", "{containers: [{name: a, securityContext: {runAsUser: 1}, " + mounts +
			"}, {name: b, securityContext: {runAsUser: 2}, " + mounts + "}]}", nil},
		{"one says, the other does not", "{containers: [{name: a, securityContext: {runAsUser: 1}, " + mounts +
			"}, {name: b, " + mounts + "}]}", nil},
		{"a sidecar with another user that does not mount the volume",
			"{securityContext: {runAsUser: 1000}, containers: [{name: a, " + mounts + "}]," +
				" initContainers: [{name: proxy, restartPolicy: Always, securityContext: {runAsUser: 1337}}]}", number(1000)},
		{"an init container with another user that mounts the volume",
			"{securityContext: {runAsUser: 1000}, containers: [{name: a, " + mounts + "}]," +
				" initContainers: [{name: b, securityContext: {runAsUser: 0}, " + mounts + "}]}", nil},
		{"no container mounts the volume", "{securityContext: {runAsUser: 1000}, containers: [{name: a}]}", nil},
		{"a user that the API does not take", "{securityContext: {runAsUser: 2147483648}, containers: [{name: a, " + mounts +
			"}]}", nil},
		{"an ephemeral container plays no part", "{securityContext: {runAsUser: 5}, containers: [{name: a, " + mounts +
			"}], ephemeralContainers: [{name: d, securityContext: {runAsUser: 0}, " + mounts + "}]}", number(5)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := PodUser(podSpec(t, tc.pod), "v"); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
