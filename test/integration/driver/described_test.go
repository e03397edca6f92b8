// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

// described is the name of the volume of a pod that the attribute volume names.
const described = "described"

// describe creates a pod with the volume "described", and with the volume ssh with these attributes, which "described"
// describes. No node runs the pod; the test acts as kubelet.
func (c *cluster) describe(
	t *testing.T, source corev1.VolumeSource, attributes ...string,
) (kubelet.Pod, kubelet.Volume) {
	t.Helper()
	return c.describeIn(t, source, func(*corev1.PodSpec) {}, attributes...)
}

// describeIn is describe with a change of the pod's spec before the creation.
func (c *cluster) describeIn(
	t *testing.T, source corev1.VolumeSource, change func(*corev1.PodSpec), attributes ...string,
) (kubelet.Pod, kubelet.Volume) {
	t.Helper()
	v := ssh(append(attributes, "volume", described)...)
	pod := nodeaccess.Pod("", v, corev1.Volume{Name: described, VolumeSource: source})
	pod.GenerateName = "described-"
	change(&pod.Spec)
	return c.create(t, pod), v
}

// create creates a pod. The pod is deleted when t ends.
func (c *cluster) create(t *testing.T, pod *corev1.Pod) kubelet.Pod {
	t.Helper()
	p, err := nodeaccess.CreatePod(deadline(t), c, c.namespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.deletePod(p.Name) })
	return p
}

// items returns items of a volume from pairs of key and path.
func items(keysAndPaths ...string) (all []corev1.KeyToPath) {
	for i := 0; i < len(keysAndPaths); i += 2 {
		all = append(all, corev1.KeyToPath{Key: keysAndPaths[i], Path: keysAndPaths[i+1]})
	}
	return all
}

// secretVolume returns a volume of a Secret. Its defaultMode is that of the driver's own Secret volumes.
func secretVolume(name string, optional bool, items ...corev1.KeyToPath) corev1.VolumeSource {
	return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
		SecretName: name, Optional: &optional, Items: items, DefaultMode: ptr.To[int32](0o400),
	}}
}

// configMapVolume returns a volume of a ConfigMap.
func configMapVolume(name string, optional bool, items ...corev1.KeyToPath) corev1.VolumeSource {
	return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: name}, Optional: &optional, Items: items,
	}}
}

// projectedVolume returns a volume of several sources.
func projectedVolume(sources ...corev1.VolumeProjection) corev1.VolumeSource {
	return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}}
}

// secretSource returns a Secret of a projected volume.
func secretSource(name string, items ...corev1.KeyToPath) corev1.VolumeProjection {
	return corev1.VolumeProjection{Secret: &corev1.SecretProjection{
		LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items,
	}}
}

// configMapSource returns a ConfigMap of a projected volume.
func configMapSource(name string, optional bool, items ...corev1.KeyToPath) corev1.VolumeProjection {
	return corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{
		LocalObjectReference: corev1.LocalObjectReference{Name: name}, Optional: &optional, Items: items,
	}}
}

// fieldsSource returns the downward API of a projected volume, from pairs of path and field.
func fieldsSource(pathsAndFields ...string) corev1.VolumeProjection {
	return corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{Items: fieldFiles(pathsAndFields...)}}
}

func fieldFiles(pathsAndFields ...string) (all []corev1.DownwardAPIVolumeFile) {
	for i := 0; i < len(pathsAndFields); i += 2 {
		all = append(all, corev1.DownwardAPIVolumeFile{
			Path: pathsAndFields[i], FieldRef: &corev1.ObjectFieldSelector{FieldPath: pathsAndFields[i+1]},
		})
	}
	return all
}

// addScratch adds an emptyDir named "scratch" to a pod.
func addScratch(spec *corev1.PodSpec) {
	scratch := corev1.Volume{Name: "scratch"}
	scratch.EmptyDir = &corev1.EmptyDirVolumeSource{}
	spec.Volumes = append(spec.Volumes, scratch)
}

// resourceFile returns a file that shows a resource of the container c.
func resourceFile(path, name, divisor string) corev1.DownwardAPIVolumeFile {
	ref := &corev1.ResourceFieldSelector{ContainerName: "c", Resource: name}
	if divisor != "" {
		ref.Divisor = resource.MustParse(divisor)
	}
	return corev1.DownwardAPIVolumeFile{Path: path, ResourceFieldRef: ref}
}
