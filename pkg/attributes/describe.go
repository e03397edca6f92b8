// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"
)

// Describe completes a Spec with the description of the volume s.Volume of the pod: objects, items, paths, modes,
// optional, and the users of KEP-5936. csiVolume is the name of the volume of s. The containers that mount csiVolume
// determine its mount points and subPaths.
//
// The API server has validated the described volume, and kubelet's rules apply: a later source has precedence, and a
// path may be any path inside of the volume. Either the list of problems is empty, or the Spec is zero. Describe
// returns a Spec without a Volume unchanged.
func (s Spec) Describe(pod *corev1.PodSpec, csiVolume string) (Spec, field.ErrorList) {
	if s.Volume == "" {
		return s, nil
	}
	at := attribute("volume")
	i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == s.Volume })
	switch {
	case s.Volume == csiVolume:
		return Spec{}, field.ErrorList{field.Invalid(at, s.Volume, volumeItselfRule)}
	case i < 0:
		return Spec{}, field.ErrorList{field.Invalid(at, s.Volume, volumeMissingRule)}
	}
	d := description{at: at, spec: s}
	volume := pod.Volumes[i]
	switch {
	case volume.Secret != nil:
		v := volume.Secret
		d.defaults(v.DefaultMode, v.DefaultUser)
		d.object(Object{Secret, v.SecretName}, v.Items, v.Optional)
	case volume.ConfigMap != nil:
		v := volume.ConfigMap
		d.defaults(v.DefaultMode, v.DefaultUser)
		d.object(Object{ConfigMap, v.Name}, v.Items, v.Optional)
	case volume.DownwardAPI != nil:
		v := volume.DownwardAPI
		d.defaults(v.DefaultMode, v.DefaultUser)
		d.downward(v.Items)
	case volume.Projected != nil:
		v := volume.Projected
		d.defaults(v.DefaultMode, v.DefaultUser)
		for _, source := range v.Sources {
			d.projected(source)
		}
	default:
		d.refuse(volumeTypeRule)
	}
	d.mounts(pod, csiVolume)
	if len(d.errs) > 0 {
		return Spec{}, present(d.errs)
	}
	return d.spec, nil
}

// description is a Spec that a volume of the pod describes.
type description struct {
	at   *field.Path
	spec Spec
	mode uint32 // of files without a mode of their own
	errs field.ErrorList
}

func (d *description) refuse(format string, args ...any) {
	d.errs = append(d.errs, field.Invalid(d.at, d.spec.Volume, fmt.Sprintf(format, args...)))
}

// defaults reads the mode and the user of files without their own. The attribute mode has precedence over the described
// volume's defaultMode.
func (d *description) defaults(mode *int32, user *int64) {
	d.mode = defaultDescribedMode
	if m := d.number("defaultMode", int32Pointer(mode), modeProblem); m != nil {
		d.mode = *m
	}
	d.mode = ptr.Deref(d.spec.Mode, d.mode)
	d.spec.DefaultUser = d.number("defaultUser", user, idProblem)
}

func (d *description) projected(s corev1.VolumeProjection) {
	switch {
	case s.Secret != nil:
		d.object(Object{Secret, s.Secret.Name}, s.Secret.Items, s.Secret.Optional)
	case s.ConfigMap != nil:
		d.object(Object{ConfigMap, s.ConfigMap.Name}, s.ConfigMap.Items, s.ConfigMap.Optional)
	case s.DownwardAPI != nil:
		d.downward(s.DownwardAPI.Items)
	default:
		d.refuse(projectedRule)
	}
}

func (d *description) object(object Object, items []corev1.KeyToPath, optional *bool) {
	if problem := objectNameProblem(object.Name); problem != "" {
		d.refuse("it names the %s %q: %s", object.Kind, short(object.Name), problem)
	}
	source := Source{Object: object, Optional: ptr.Deref(optional, false), Mode: d.mode}
	for _, item := range items {
		source.Items = append(source.Items, d.item(Item{Key: item.Key, Path: item.Path}, item.Mode, item.User))
	}
	d.spec.Sources = append(d.spec.Sources, source)
}

func (d *description) downward(files []corev1.DownwardAPIVolumeFile) {
	source := Source{Object: Object{Kind: Pod}, Mode: d.mode}
	for _, file := range files {
		item := Item{Path: file.Path}
		switch {
		case file.ResourceFieldRef != nil:
			ref := file.ResourceFieldRef
			item.Key, item.Container = ref.Resource, ref.ContainerName
			if !ref.Divisor.IsZero() {
				item.Divisor = ref.Divisor.String()
			}
		case file.FieldRef != nil:
			item.Key = file.FieldRef.FieldPath
		}
		source.Items = append(source.Items, d.item(item, file.Mode, file.User))
	}
	d.spec.Sources = append(d.spec.Sources, source)
}

// item completes an item with its clean path, its mode and its user.
func (d *description) item(item Item, mode *int32, user *int64) Item {
	clean, problem := CleanPath(item.Path)
	if problem != "" {
		d.refuse("its path %q %s", short(item.Path), problem)
	}
	item.Path = clean
	item.Mode = d.number("mode", int32Pointer(mode), modeProblem)
	item.UID = d.number("user", user, idProblem)
	return item
}

// number converts a number of the API. The API server refuses numbers that break the rule, but a manifest may have
// them.
func (d *description) number(name string, value *int64, problem func(uint64) string) *uint32 {
	if value == nil {
		return nil
	}
	if p := problem(uint64(*value)); p != "" {
		d.refuse("its %s %d %s", name, *value, p)
		return nil
	}
	return ptr.To(uint32(*value))
}

func int32Pointer(value *int32) *int64 {
	if value == nil {
		return nil
	}
	return ptr.To(int64(*value))
}

// mounts finds the directories that kubelet would make in a volume of its own. Mount points are those of
// getNestedMountpoints (pkg/volume/util/nested_volumes.go in Kubernetes): the mounts of a container beneath this
// volume, except mounts beneath such a mount. Kubelet makes a missing subPath when it starts a container.
func (d *description) mounts(pod *corev1.PodSpec, csiVolume string) {
	for _, container := range containers(pod) {
		var all []string
		for _, m := range container.VolumeMounts {
			all = append(all, path.Clean(m.MountPath))
		}
		for i, m := range container.VolumeMounts {
			if m.Name != csiVolume {
				continue
			}
			if m.SubPath == "" {
				d.spec.MountPoints = append(d.spec.MountPoints, beneath(all[i], all)...)
			} else if clean, problem := CleanPath(m.SubPath); problem == "" {
				d.spec.SubPaths = append(d.spec.SubPaths, clean)
			}
		}
	}
	for _, list := range []*[]string{&d.spec.MountPoints, &d.spec.SubPaths} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	for _, p := range d.spec.MountPoints {
		if _, problem := CleanPath(p); problem != "" {
			d.refuse("a container mounts another volume beneath this one at %q: the path %s", short(p), problem)
		}
	}
}

// beneath returns those mount paths that are beneath the mount path of a volume and beneath none of the others,
// relative to the volume.
func beneath(mountPath string, all []string) (relative []string) {
	prefix := strings.TrimSuffix(mountPath, "/") + "/"
	for _, p := range slices.Sorted(slices.Values(all)) {
		rest, nested := strings.CutPrefix(p, prefix)
		isBeneath := func(other string) bool { return strings.HasPrefix(rest, other+"/") }
		if nested && rest != "" && !slices.ContainsFunc(relative, isBeneath) {
			relative = append(relative, rest)
		}
	}
	return relative
}

// containers returns the init containers, including restartable ones, and the containers of a pod. Ephemeral containers
// do not count: kubectl debug adds them later, and the owner of the files must not depend on debugging.
func containers(pod *corev1.PodSpec) []corev1.Container {
	return slices.Concat(pod.InitContainers, pod.Containers)
}

// PodUser returns the common effective runAsUser of the containers that mount a volume. This user owns the volume's
// files if neither the attributes nor a described volume set an owner. PodUser returns nil if the containers have
// different users, or if no container mounts the volume. It ignores the user of an image.
func PodUser(pod *corev1.PodSpec, volume string) *uint32 {
	var common *int64
	for _, c := range containers(pod) {
		if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == volume }) {
			continue
		}
		user := runAsUser(pod.SecurityContext, c.SecurityContext)
		if user == nil || common != nil && *common != *user {
			return nil
		}
		common = user
	}
	if common == nil || idProblem(uint64(*common)) != "" {
		return nil
	}
	return ptr.To(uint32(*common))
}

// runAsUser returns the user of a container: its own runAsUser, or else the pod's.
func runAsUser(pod *corev1.PodSecurityContext, container *corev1.SecurityContext) *int64 {
	if container != nil && container.RunAsUser != nil {
		return container.RunAsUser
	}
	if pod != nil {
		return pod.RunAsUser
	}
	return nil
}
