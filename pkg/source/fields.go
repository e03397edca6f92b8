// SPDX-License-Identifier: Apache-2.0

package source

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// fieldsOf returns the values of the downward API by field path, and the resources of containers by ResourceKey. The
// fields are those that the API allows in a volume. The format is kubelet's (pkg/fieldpath): a map becomes sorted lines
// of key="value".
func fieldsOf(pod *corev1.Pod) map[string][]byte {
	fields := map[string][]byte{}
	set := func(path, value string) { fields[path] = []byte(value) }
	set("metadata.name", pod.Name)
	set("metadata.namespace", pod.Namespace)
	set("metadata.uid", string(pod.UID))
	for path, entries := range map[string]map[string]string{
		"metadata.labels": pod.Labels, "metadata.annotations": pod.Annotations,
	} {
		var lines []string
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			lines = append(lines, fmt.Sprintf("%s=%q", key, entries[key]))
			set(fmt.Sprintf("%s['%s']", path, key), entries[key])
		}
		set(path, strings.Join(lines, "\n"))
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			name, resources := containers[i].Name, containers[i].Resources
			for resource, quantity := range resources.Limits {
				set(ResourceKey(name, "limits."+string(resource)), quantity.String())
			}
			for resource, quantity := range resources.Requests {
				set(ResourceKey(name, "requests."+string(resource)), quantity.String())
			}
			set(ResourceKey(name, ""), "") // distinguishes a container without resources from a missing one
		}
	}
	return fields
}

// ResourceKey returns the key, in the Data of a pod, of the quantity of a container's resource such as limits.cpu. Data
// has no key for a resource that the container does not set. Data has a key of the empty resource for each container.
func ResourceKey(container, resource string) string { return container + "/" + resource }

// digest returns a hash of data.
func digest(data map[string][]byte) string {
	hash := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(data)) {
		fmt.Fprintf(hash, "%q=%q\n", key, data[key])
	}
	return hex.EncodeToString(hash.Sum(nil))
}
