// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// planner finds the changes of a document.
type planner struct {
	options Options
	changes []change
	left    []Left
	notes   []Left
}

// plan finds the changes of the pods in a document.
func plan(d *manifest.Document, o Options) *planner {
	p := &planner{options: o}
	for _, object := range d.Objects() {
		for _, pod := range object.Pods() {
			p.pod(pod)
		}
	}
	return p
}

// pod is a pod with volumes to convert.
type pod struct {
	manifest.Pod
	volumes []*manifest.Node
	mounts  []manifest.Mount
	names   []string // of all volumes, with those that the changes add
}

func (p *planner) pod(of manifest.Pod) {
	pod := &pod{Pod: of, volumes: of.Volumes().Items, mounts: of.Mounts()}
	for _, v := range pod.volumes {
		pod.names = append(pod.names, v.Get("name").Text)
	}
	for i, v := range pod.volumes {
		switch isOurs := v.Get("csi", "driver").String() == attributes.Driver; {
		case p.options.Back && isOurs:
			p.toNative(pod, i)
		case !p.options.Back && isNative(v) && !pod.isDeclaration(v):
			p.toDriver(pod, i)
		}
	}
}

// nativeType returns the type of a Kubernetes volume that the driver can replace, or "" for other types.
func nativeType(v *manifest.Node) string {
	for _, name := range []string{"secret", "configMap", "downwardAPI", "projected"} {
		if !v.Get(name).IsNull() {
			return name
		}
	}
	return ""
}

func isNative(v *manifest.Node) bool { return nativeType(v) != "" }

// isMounted reports whether a container mounts the volume of this name.
func (p *pod) isMounted(name string) bool {
	return slices.ContainsFunc(p.mounts, func(m manifest.Mount) bool { return m.Node.Get("name").Text == name })
}

// isDeclaration reports whether a volume exists only for the driver: no container mounts it, and a volume of the driver
// names it, or names its object, whose reference it declares to the Node authorizer.
func (p *pod) isDeclaration(v *manifest.Node) bool {
	name := v.Get("name").Text
	return !p.isMounted(name) && slices.ContainsFunc(p.volumes, func(other *manifest.Node) bool {
		csi := other.Get("csi")
		names := func(attribute string, object *manifest.Node) bool {
			return object.String() != "" && csi.Get("volumeAttributes", attribute).String() == object.String()
		}
		return csi.Get("driver").String() == attributes.Driver && (names("volume", v.Get("name")) ||
			names("secretName", v.Get("secret", "secretName")) || names("configMapName", v.Get("configMap", "name")))
	})
}

// leave records that a volume stays, with the reason.
func (p *planner) leave(l Left, reason string) {
	l.Reason = reason
	p.left = append(p.left, l)
}

// toDriver plans the volume of the driver that replaces the i-th volume of a pod in its mounts.
func (p *planner) toDriver(pod *pod, i int) {
	v := pod.volumes[i]
	name := v.Get("name").Text
	left := Left{Line: v.Line(), Object: pod.Object.Name(), Volume: name}
	if reason := p.obstacle(pod, i); reason != "" {
		p.leave(left, reason)
		return
	}
	added := p.csiVolume(pod, i)
	p.modes(left, v)
	after := repointed(&pod.Spec, name, added.Name)
	spec, reason := describe(after, added)
	if reason == "" && onlyFSGroupReads(after, spec, added.Name) {
		reason = "the pod's fsGroup lets its group read these files now; the driver widens no mode, and without an " +
			"owner only root could read them: set --uid"
	}
	if reason != "" {
		p.leave(left, reason)
		return
	}
	pod.names = append(pod.names, added.Name)
	c := p.repoint(pod, left, name, added.Name)
	c.added = added
	c.addEdits(insert(pod.Volumes(), added))
	p.changes = append(p.changes, c)
}

// modes notes each mode of a volume that looks octal and is decimal.
func (p *planner) modes(left Left, v *manifest.Node) {
	v.Get(nativeType(v)).Walk(func(path string, n *manifest.Node) bool {
		if hint, _ := manifest.Mode(path, n); hint != "" {
			left.Line, left.Reason = n.Line(), path+": "+hint
			p.notes = append(p.notes, left)
		}
		return true
	})
}

// csiVolume returns the volume of the driver for the i-th volume of a pod.
func (p *planner) csiVolume(pod *pod, i int) *corev1.Volume {
	name, described := pod.names[i], pod.volumes[i]
	attrs := map[string]string{"volume": name}
	if p.options.UID != nil && described.Get(nativeType(described), "defaultUser").IsNull() {
		attrs["uid"] = fmt.Sprint(*p.options.UID)
	}
	if p.options.GID != nil {
		attrs["gid"] = fmt.Sprint(*p.options.GID)
	}
	csi := &corev1.CSIVolumeSource{Driver: attributes.Driver, ReadOnly: ptr.To(true), VolumeAttributes: attrs}
	return &corev1.Volume{Name: freeName(name, pod.names), VolumeSource: corev1.VolumeSource{CSI: csi}}
}

// obstacle returns the reason why a volume must stay, or "" if there is none. describe finds the reasons that are in
// the description of the volume.
func (p *planner) obstacle(pod *pod, i int) string {
	v := pod.volumes[i]
	name, path := pod.names[i], fmt.Sprintf("volumes[%d]", i)
	isHere := func(m manifest.Mismatch) bool { return m.Path == path || strings.HasPrefix(m.Path, path+".") }
	switch {
	case slices.ContainsFunc(pod.Wrong, isHere):
		m := pod.Wrong[slices.IndexFunc(pod.Wrong, isHere)]
		return fmt.Sprintf("%s %s", strings.TrimPrefix(m.Path, path+"."), m.Message)
	case slices.Index(pod.names, name) != i || slices.Contains(pod.names[i+1:], name):
		return "there is another volume of this name"
	case pod.IsWindows():
		return "the pod is for Windows, and the driver for Linux"
	case pod.IsKnative():
		return "Knative Serving refuses a volume that no container mounts: write a csi volume with secretName or " +
			"configMapName, for which Knative needs the feature flag kubernetes.podspec-volumes-csi"
	case !pod.isMounted(name):
		return "no container here mounts it: convert the manifest that has the containers"
	}
	for _, other := range v.Entries {
		if other.Name != "name" && other.Name != nativeType(v) && !other.Value.IsNull() {
			return fmt.Sprintf("it has two sources, %s and %s", nativeType(v), other.Name)
		}
	}
	return ""
}

// freeName returns an unused name for the csi volume of the volume called name.
func freeName(name string, taken []string) string {
	for i := 1; ; i++ {
		suffix := "-fsuser"
		if i > 1 {
			suffix += fmt.Sprint("-", i)
		}
		free := strings.TrimRight(name[:min(len(name), validation.DNS1123LabelMaxLength-len(suffix))], "-") + suffix
		if !slices.Contains(taken, free) {
			return free
		}
	}
}

// describe applies the driver's rules to the volume and returns the description of its files, or the reason why the
// driver refuses the volume. The pod's mounts already point to the volume.
func describe(pod *corev1.PodSpec, added *corev1.Volume) (spec attributes.Spec, reason string) {
	spec, errs := attributes.Parse(added.CSI.VolumeAttributes, false)
	if len(errs) == 0 {
		spec, errs = spec.Describe(pod, added.Name)
	}
	if len(errs) > 0 {
		return spec, errs[0].Detail
	}
	return spec, ""
}

// repointed returns a copy of a pod whose mounts of the volume from point to the volume to.
func repointed(spec *corev1.PodSpec, from, to string) *corev1.PodSpec {
	spec = spec.DeepCopy()
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			for j := range containers[i].VolumeMounts {
				if m := &containers[i].VolumeMounts[j]; m.Name == from {
					m.Name = to
				}
			}
		}
	}
	return spec
}

// onlyFSGroupReads reports whether a file of the volume would belong to root, and Kubernetes' own volume widens its
// mode for the pod's fsGroup.
func onlyFSGroupReads(pod *corev1.PodSpec, spec attributes.Spec, added string) bool {
	const groupReads = 0o040
	hasFSGroup := pod.SecurityContext != nil && pod.SecurityContext.FSGroup != nil
	if !hasFSGroup || cmp.Or(spec.UID, spec.DefaultUser, attributes.PodUser(pod, added)) != nil {
		return false
	}
	for _, s := range spec.Sources {
		if len(s.Items) == 0 && s.Mode&groupReads == 0 {
			return true
		}
		for _, item := range s.Items {
			if item.UID == nil && ptr.Deref(item.Mode, s.Mode)&groupReads == 0 {
				return true
			}
		}
	}
	return false
}

// toNative plans to remove the i-th volume of a pod, and to mount the volume that it names.
func (p *planner) toNative(pod *pod, i int) {
	v := pod.volumes[i]
	name, target := v.Get("name").Text, v.Get("csi", "volumeAttributes", "volume").String()
	left := Left{Line: v.Line(), Object: pod.Object.Name(), Volume: name}
	at := slices.Index(pod.names, target)
	switch {
	case name == "":
		p.leave(left, "it has no name")
	case target == "":
		p.leave(left, "it names no other volume of the pod that could take its place")
	case at < 0 || target == name || !isNative(pod.volumes[at]):
		p.leave(left, fmt.Sprintf("the pod has no secret, configMap, downwardAPI or projected volume %q that could "+
			"take its place", target))
	case slices.Contains(pod.names[:i], name) || slices.Contains(pod.names[i+1:], name):
		p.leave(left, "there is another volume of this name")
	default:
		c := p.repoint(pod, left, name, target)
		c.removed = v
		c.addEdits(remove(pod.Volumes(), i, slices.IndexFunc(pod.volumes, isNative)))
		p.changes = append(p.changes, c)
	}
}

// repoint plans to point the mounts of the volume from to the volume to.
func (p *planner) repoint(pod *pod, left Left, from, to string) change {
	c := change{left: left, volumes: pod.Path("spec.volumes"), edits: []edit{}, mounts: map[string]string{}}
	for _, m := range pod.mounts {
		if m.Node.Get("name").Text == from {
			c.mounts[pod.Path(m.Field)] = to
			c.addEdits(rename(m.Node.Get("name"), to))
		}
	}
	return c
}

// addEdits adds edits to the change. If there are no edits, the change is impossible.
func (c *change) addEdits(edits []edit) {
	if c.edits == nil || edits == nil {
		c.edits = nil
		return
	}
	c.edits = append(c.edits, edits...)
}

// elsewhere lists volumes that are in no pod with containers, such as those of a patch. Nobody has checked them, and
// the result must not suggest otherwise.
func (p *planner) elsewhere(o manifest.Object, _ string, n *manifest.Node) {
	left := Left{Line: n.Line(), Object: o.Name()}
	list := func(_ string, n *manifest.Node) bool {
		if looksLikeVolume(n) {
			left.Volume = n.Get("name").Text
			p.leave(left, "it is in no pod, and in no pod template with containers: convert the complete manifest, "+
				"such as the output of kustomize build")
		}
		return true
	}
	list("", n)
	if o.Kind() == "Kustomization" && strings.Contains(n.String(), "\n") { // The value may be a patch.
		for _, patch := range manifest.Parse("", n.String()).Documents {
			patch.Root.Walk(list)
		}
	}
}

// looksLikeVolume reports whether a value is a volume with a source that the driver can replace.
func looksLikeVolume(n *manifest.Node) bool {
	if n.Get("name").String() == "" {
		return false
	}
	is := func(path ...string) bool { return !n.Get(path...).IsNull() }
	return is("secret", "secretName") || is("configMap", "name") || is("downwardAPI", "items") || is("projected",
		"sources")
}
