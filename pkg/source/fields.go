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

// fieldsOf returns what the downward API shows of a pod, by field path; resources of containers by ResourceKey. The texts are those
// of kubelet (pkg/fieldpath): lists are joined by commas, maps are lines of key="value", sorted.
func fieldsOf(pod *corev1.Pod) map[string][]byte {
	fields := map[string][]byte{}
	set := func(path, value string) { fields[path] = []byte(value) }
	set("metadata.name", pod.Name)
	set("metadata.namespace", pod.Namespace)
	set("metadata.uid", string(pod.UID))
	set("spec.nodeName", pod.Spec.NodeName)
	set("spec.serviceAccountName", pod.Spec.ServiceAccountName)
	set("status.hostIP", pod.Status.HostIP)
	set("status.podIP", pod.Status.PodIP)
	var hostIPs, podIPs []string
	for _, ip := range pod.Status.HostIPs {
		hostIPs = append(hostIPs, ip.IP)
	}
	for _, ip := range pod.Status.PodIPs {
		podIPs = append(podIPs, ip.IP)
	}
	set("status.hostIPs", strings.Join(hostIPs, ","))
	set("status.podIPs", strings.Join(podIPs, ","))
	for path, entries := range map[string]map[string]string{"metadata.labels": pod.Labels, "metadata.annotations": pod.Annotations} {
		var lines []string
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			lines = append(lines, fmt.Sprintf("%s=%q", key, entries[key]))
			set(fmt.Sprintf("%s['%s']", path, key), entries[key])
		}
		set(path, strings.Join(lines, "\n"))
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			for kind, list := range map[string]corev1.ResourceList{"limits": containers[i].Resources.Limits, "requests": containers[i].Resources.Requests} {
				for name, quantity := range list {
					set(ResourceKey(containers[i].Name, kind+"."+string(name)), quantity.String())
				}
			}
			// So that a container without resources can be told from one that is not there.
			set(ResourceKey(containers[i].Name, ""), "")
		}
	}
	return fields
}

// ResourceKey is the key, in the Data of a pod, of a resource that a container asks for, such as limits.cpu: a quantity. One that
// it does not ask for is not there. The key of the empty resource is there for each container.
func ResourceKey(container, resource string) string { return container + "/" + resource }

// digest of data tells one content from another.
func digest(data map[string][]byte) string {
	hash := sha256.New()
	for _, key := range slices.Sorted(maps.Keys(data)) {
		fmt.Fprintf(hash, "%q=%q\n", key, data[key])
	}
	return hex.EncodeToString(hash.Sum(nil))
}
