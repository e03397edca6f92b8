// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// volume is a volume of the driver in a pod.
type volume struct {
	pod   manifest.Pod
	name  string
	field string // its path in the object
	node  *manifest.Node
	// spec is the description of the volume by the attributes and by the volume that they name, if all of it is valid.
	spec  attributes.Spec
	valid bool
}

func (l *linter) pod(pod manifest.Pod) {
	l.types(pod)
	var (
		ours  []volume
		named = map[string]bool{} // volume names, and whether one of that name is the driver's
	)
	for i, node := range pod.Volumes().Items {
		v := volume{pod: pod, name: node.Get("name").Text, field: pod.Path(fmt.Sprintf("spec.volumes[%d]", i)),
			node: node}
		driver := node.Get("csi", "driver").String()
		isOurs := driver == attributes.Driver
		before, known := named[v.name]
		switch {
		case isOurs && v.name == "":
			l.report(pod.Object, Error, v.field+".name", "a volume needs a name: give it one", node.Get("name"), node)
		case known && (before || isOurs):
			l.report(pod.Object, Error, v.field+".name",
				fmt.Sprintf("there is a volume %q already: give each its own name", v.name), node.Get("name"))
		}
		named[v.name] = before || isOurs
		if isOurs {
			l.result.Volumes++
			l.volume(&v)
			ours = append(ours, v)
			continue
		}
		l.modes(v)
		if almost(driver) {
			l.report(pod.Object, Warning, v.field+".csi.driver",
				fmt.Sprintf("is %q; this driver is called %q", driver, attributes.Driver), node.Get("csi", "driver"))
		}
	}
	for _, v := range ours {
		if isMounted := l.mounts(v); isMounted && v.valid {
			l.owner(v)
		} else if v.valid && v.name != "" {
			l.report(pod.Object, Warning, v.field, "no container mounts it", v.node.Get("name"))
		}
	}
}

// relevant matches the fields of a pod whose type matters to this driver. Attributes have a message of their own.
var relevant = regexp.MustCompile(`^volumes\[\d+\](\.(name|secret|configMap|downwardAPI|projected|csi)\b|$)` +
	`|\.volumeMounts\[|(^|\.)securityContext\.(runAsUser|fsGroup)$`)

// types reports values whose type is not the type of their field, which the API server refuses.
func (l *linter) types(p manifest.Pod) {
	for _, m := range p.Wrong {
		text := m.Node.String()
		if !relevant.MatchString(m.Path) || strings.Contains(m.Path, ".volumeAttributes") || strings.Contains(text,
			"{{") {
			continue
		}
		remedy := ""
		switch _, err := strconv.ParseUint(text, 8, 31); {
		case err != nil && manifest.IsMode(m.Path):
		case manifest.IsMode(m.Path) && m.Node.Document.JSON:
			value, _ := strconv.ParseUint(text, 8, 31)
			remedy = fmt.Sprintf(": write %d, which is octal %s", value, text)
		case text != "" && strings.Trim(text, "0123456789") == "", text == "true", text == "false":
			remedy = ": remove the quotes"
		case m.Node.Value != nil && strings.Contains(m.Message, "must be a string"):
			remedy = fmt.Sprintf(": write %q", m.Node.Text)
		}
		l.report(p.Object, Error, p.Path("spec."+m.Path), m.Message+remedy, m.Node)
	}
}

// volume checks a volume on its own.
func (l *linter) volume(v *volume) {
	csi, o := v.node.Get("csi"), v.pod.Object
	if v.pod.IsWindows() {
		l.report(o, Error, v.field+".csi",
			"the pod is for Windows, and this driver for Linux, so the container cannot start: use a volume of "+
				"Kubernetes", v.node.Key("csi"))
	}
	if v.pod.IsKnative() {
		l.report(o, Warning, v.field+".csi",
			"Knative Serving takes csi volumes only with its feature flag kubernetes.podspec-volumes-csi, and no "+
				"volume that no container mounts: "+
				"set the flag in the ConfigMap config-features, and use secretName or configMapName", v.node.Key("csi"))
	}
	for _, e := range v.node.Entries {
		if e.Name != "name" && e.Name != "csi" && !e.Value.IsNull() {
			l.report(o, Error, v.field+"."+e.Name,
				"a volume has one source, and this one has csi: remove one, or make it two volumes", e.Key)
		}
	}
	known := []string{"driver", "readOnly", "fsType", "volumeAttributes", "nodePublishSecretRef"}
	for _, e := range csi.Entries {
		if !slices.Contains(known, e.Name) {
			l.report(o, Error, v.field+".csi."+e.Name, "there is no such field: csi has "+strings.Join(known, ", "),
				e.Key)
		}
	}
	if readOnly := csi.Get("readOnly"); readOnly.Value == false {
		l.report(o, Error, v.field+".csi.readOnly",
			"must be true: files that belong to the container's user could be changed through a writable "+
				"mount", readOnly)
	}
	if fsType := csi.Get("fsType"); !slices.Contains([]string{"", "tmpfs"}, fsType.String()) {
		l.report(o, Error, v.field+".csi.fsType", `must be absent or "tmpfs": remove it`, fsType)
	}
	ref := csi.Get("nodePublishSecretRef")
	if !ref.IsNull() && ref.Get("name").String() == "" {
		l.report(o, Error, v.field+".csi.nodePublishSecretRef.name",
			"name the Secret, or remove nodePublishSecretRef", ref)
	}
	l.attributes(v, !ref.IsNull())
}

// attributes applies the driver's own rules to a volume's attributes.
func (l *linter) attributes(v *volume, hasRef bool) {
	attrs, o, at := v.node.Get("csi", "volumeAttributes"), v.pod.Object, v.field+".csi.volumeAttributes"
	if !attrs.IsNull() && attrs.Kind != manifest.Mapping {
		l.report(o, Error, at, "must be a mapping of strings", attrs)
		return
	}
	for _, e := range attrs.Repeated {
		l.report(o, Error, at+"["+e.Name+"]", "is given twice, and the last one counts: remove one", e.Key)
	}
	values := map[string]string{}
	allStrings := true
	for _, e := range attrs.Entries {
		key := at + "[" + e.Name + "]"
		if !strings.HasPrefix(e.Name, "template/") && strings.Contains(e.Value.String(), "{{") {
			l.report(o, Error, key, `is a template ("{{ }}"): give lint the output of "helm template" instead`, e.Value)
			return
		}
		if strings.HasPrefix(e.Name, "csi.storage.k8s.io/") {
			l.report(o, Warning, key, "is kubelet's to set, and has no effect here: remove it", e.Key)
		}
		text, isString := l.text(o, key, e, func(text string) bool { return acceptable(e.Name, text) })
		values[e.Name] = text
		allStrings = allStrings && isString
	}
	spec, errs := attributes.Parse(values, hasRef)
	if len(errs) == 0 {
		spec, errs = spec.Describe(&v.pod.Spec, v.name)
	}
	for _, err := range errs {
		l.report(o, Error, v.field+".csi."+err.Field, err.ErrorBody(), place(attrs, err), attrs, v.node.Key("csi"))
	}
	v.spec, v.valid = spec, len(errs) == 0 && allStrings
	if v.valid {
		l.templates(*v, at, attrs)
	}
}

// templates checks the files that templates show, if the manifest lists all files of the volume's objects.
func (l *linter) templates(v volume, at string, attrs *manifest.Node) {
	var paths []string
	for _, s := range v.spec.Sources {
		if len(s.Items) == 0 {
			return // The object makes a file of each key.
		}
		for _, item := range s.Items {
			paths = append(paths, item.Path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(v.spec.Templates)) {
		for _, file := range v.spec.Templates[path].Files() {
			if !slices.Contains(paths, file) {
				name := "template/" + path
				l.report(v.pod.Object, Error, at+"["+name+"]", fmt.Sprintf("shows the file %q, which no item of the volume %q "+
					"makes: correct the name, or write $$( for the text $(", file, v.spec.Volume), attrs.Get(name))
			}
		}
	}
}

// modes checks the modes in one of Kubernetes' own volumes: the API server refuses modes above 0777, and a decimal
// number that looks octal is probably a mistake.
func (l *linter) modes(v volume) {
	v.node.Walk(func(path string, n *manifest.Node) bool {
		hint, isValid := manifest.Mode(path, n)
		severity := Warning
		if !isValid {
			severity = Error
			hint = strings.TrimPrefix(hint+"; the API server refuses a mode that is not from 0 to 0777", "; ")
		}
		if hint != "" {
			l.report(v.pod.Object, severity, v.field+"."+path, hint, n)
		}
		return true
	})
}

// mounts checks the mounts of the volume. It reports whether a container mounts the volume.
func (l *linter) mounts(v volume) (isMounted bool) {
	for _, m := range v.pod.Mounts() {
		if m.Node.Get("name").Text != v.name {
			continue
		}
		isMounted = true
		for _, name := range []string{"subPath", "subPathExpr"} {
			if sub := m.Node.Get(name); sub.String() != "" && v.spec.Layout != attributes.LayoutInPlace {
				l.report(v.pod.Object, Warning, v.pod.Path(m.Field+"."+name), fmt.Sprintf(
					"a file that is mounted by %s does not change while the container runs, even if the object "+
						"changes: mount the volume %q as a directory, or set layout to in-place", name, v.name), sub)
			}
		}
		l.beneath(v, m)
	}
	return isMounted
}

// beneath checks the mounts of a container beneath the volume. The driver makes directories for them if another volume
// of the pod describes the volume. With secretName and configMapName, the volume has only the object's keys.
func (l *linter) beneath(v volume, outer manifest.Mount) {
	if v.spec.Volume != "" || outer.Node.Get("subPath").String()+outer.Node.Get("subPathExpr").String() != "" {
		return
	}
	root := strings.TrimSuffix(mountPath(outer), "/") + "/"
	for _, inner := range v.pod.Mounts() {
		relative, isBeneath := strings.CutPrefix(mountPath(inner), root)
		if !isBeneath || relative == "" || inner.Container != outer.Container {
			continue
		}
		severity, unless := Warning, fmt.Sprintf(" unless the object has a key %q", relative)
		if strings.Contains(relative, "/") {
			severity, unless = Error, ""
		}
		l.report(v.pod.Object, severity, v.pod.Path(inner.Field+".mountPath"), fmt.Sprintf(
			"lies within the volume %q, which is read-only, so the container cannot start%s: mount it elsewhere, "+
				"or describe the volume by another one with the attribute volume",
			v.name, unless), inner.Node.Get("mountPath"))
	}
}

func mountPath(m manifest.Mount) string { return path.Clean("/" + m.Node.Get("mountPath").String()) }

// maxMappedID is the largest id in a user namespace of kubelet's default length.
const maxMappedID = 65535

// owner checks whether the containers that mount the volume can read it.
func (l *linter) owner(v volume) {
	o, csi := v.pod.Object, v.node.Get("csi")
	attrs := csi.Get("volumeAttributes")
	at, field := attrs.Get("uid"), v.field+".csi.volumeAttributes"
	owner := cmp.Or(v.spec.UID, v.spec.DefaultUser)
	if owner == nil && !v.spec.FromRequest() {
		owner = attributes.PodUser(&v.pod.Spec, v.name)
	}
	files := filesOf(v.spec, owner)
	if slices.ContainsFunc(files, func(f file) bool { return f.uid == nil }) {
		reason := "the containers that mount the volume have no runAsUser in common, so the files belong to root: " +
			"set uid, or runAsUser in the pod's securityContext"
		if v.spec.FromRequest() {
			reason = "with nodePublishSecretRef the driver does not read the pod, so the files belong to root: set uid"
		}
		l.report(o, Warning, field, "no uid is given, and "+reason, attrs, csi)
	}
	if !ptr.Deref(v.pod.Spec.HostUsers, true) && ptr.Deref(v.spec.UID, 0) > maxMappedID {
		l.report(o, Warning, field+"[uid]",
			"with hostUsers: false a pod has the uids 0 to 65535 unless the node is set up for more: no user of the "+
				"pod would own the files; choose a smaller uid", at)
	}
	for _, c := range slices.Concat(v.pod.Spec.InitContainers, v.pod.Spec.Containers) {
		user := attributes.PodUser(&corev1.PodSpec{SecurityContext: v.pod.Spec.SecurityContext,
			Containers: []corev1.Container{c}}, v.name)
		for _, f := range files {
			if user == nil || *user == 0 || f.uid == nil || *f.uid == *user || f.mode&0o044 != 0 {
				continue
			}
			l.report(o, Warning, field, fmt.Sprintf(
				"container %q runs as uid %d, but files belong to uid %d and their mode %04o lets nobody else read "+
					"them: set uid to %d, or a mode such as 0440 with a gid that the container has",
				c.Name, *user, *f.uid, f.mode, *user), at, attrs)
			break
		}
	}
}

// file describes files of a volume that have the same owner and mode.
type file struct {
	mode uint32
	uid  *uint32 // nil if the owner is unknown
}

// filesOf lists the different files of a volume. owner owns the files without an owner of their own.
func filesOf(spec attributes.Spec, owner *uint32) (all []file) {
	for _, s := range spec.Sources {
		if len(s.Items) == 0 {
			all = append(all, file{s.Mode, owner})
		}
		for _, item := range s.Items {
			own := spec.Paths[item.Path]
			all = append(all, file{*cmp.Or(own.Mode, item.Mode, &s.Mode), cmp.Or(own.UID, item.UID, owner)})
		}
	}
	mode := spec.FileMode()
	for path := range spec.Templates {
		own := spec.Paths[path]
		all = append(all, file{*cmp.Or(own.Mode, &mode), cmp.Or(own.UID, owner)})
	}
	return all
}
