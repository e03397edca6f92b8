// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// volume is a volume of the driver in a pod.
type volume struct {
	pod   manifest.Pod
	name  string
	field string // in the object
	node  manifest.Node
	spec  attributes.Spec // if good
	good  bool
}

func (l *linter) pod(pod manifest.Pod) {
	var (
		ours  []volume
		first = map[string]bool{} // volume names, and whether one of that name is the driver's
	)
	for i, node := range pod.Spec().Get("volumes").Items() {
		name := manifest.Entry{Name: "name", Key: node.Key("name"), Value: node.Get("name")}
		v := volume{pod: pod, name: name.Value.Text(), field: pod.Path(fmt.Sprintf("spec.volumes[%d]", i)), node: node}
		driver := node.Get("csi", "driver")
		isOurs := driver.String() == attributes.Driver
		before, known := first[v.name]
		switch _, isString := name.Value.Scalar().(string); {
		case isOurs && (v.name == "" || name.Value.Scalar() == nil):
			l.report(pod.Object, Error, v.field+".name", "a volume needs a name: give it one", name.Value, node)
		case isOurs && !isString:
			l.report(pod.Object, Error, v.field+".name", notAString(name, asString(name)), name.Value)
		case isString && known && (before || isOurs):
			l.report(pod.Object, Error, v.field+".name", fmt.Sprintf("there is a volume %q already: give each its own name", v.name), name.Value)
		}
		first[v.name] = first[v.name] || isOurs
		if isOurs {
			l.result.Volumes++
			l.seen[node.Target()] = true
			l.volume(&v)
			ours = append(ours, v)
			continue
		}
		l.nativeModes(pod, node, v.field)
		if almost(driver.String()) {
			l.report(pod.Object, Warning, v.field+".csi.driver", fmt.Sprintf("is %q; this driver is called %q", driver.String(), attributes.Driver), driver)
		}
	}
	known := len(ours) == 0 || l.users(pod)
	for _, v := range ours {
		l.mounts(v)
		l.resources(v)
		if known {
			l.owner(v)
		}
	}
}

// users reports whether it can be told whom the containers run as: whether no runAsUser is a string.
func (l *linter) users(pod manifest.Pod) bool {
	known := true
	check := func(n manifest.Node, field string) {
		at := n.Get("securityContext", "runAsUser")
		text, isString := at.Scalar().(string)
		if !isString {
			return
		}
		known = false
		remedy := "give the user's number"
		if _, problem := attributes.ParseID(text); problem == "" {
			remedy = "remove the quotes"
		}
		l.report(pod.Object, Error, pod.Path(field+".securityContext.runAsUser"), "must be a number, and this is a string, which the API server refuses: "+remedy, at)
	}
	check(pod.Spec(), "spec")
	for _, c := range pod.Containers() {
		check(c.Node, c.Field)
	}
	return known
}

// volume looks at a volume by itself.
func (l *linter) volume(v *volume) {
	csi := v.node.Get("csi")
	o := v.pod.Object
	if v.pod.Windows() {
		l.report(o, Error, v.field+".csi", "the pod is for Windows, and this driver for Linux, so the container can't start: use a volume of Kubernetes", v.node.Key("csi"))
	}
	for _, e := range v.node.Entries() {
		if e.Name != "name" && e.Name != "csi" {
			l.report(o, Error, v.field+"."+e.Name, "a volume has one source, and this one has csi: remove one, or make it two volumes", e.Key)
		}
	}
	for _, e := range csi.Entries() {
		if !slices.Contains([]string{"driver", "fsType", "nodePublishSecretRef", "readOnly", "volumeAttributes"}, e.Name) {
			l.report(o, Error, v.field+".csi."+e.Name, "unknown field (known: driver, fsType, nodePublishSecretRef, readOnly, volumeAttributes)", e.Key)
		}
	}
	for _, e := range csi.Repeated() {
		l.report(o, Error, v.field+".csi."+e.Name, "is given twice, and the last one counts: remove one", e.Key)
	}
	switch readOnly := csi.Get("readOnly"); readOnly.Scalar() {
	case true:
	case "true":
		l.report(o, Error, v.field+".csi.readOnly", "must be the boolean true, and this is a string, which the API server refuses: remove the quotes", readOnly)
	default:
		l.report(o, Error, v.field+".csi.readOnly",
			"must be true: files that belong to the container's user could be changed through a writable mount; add readOnly: true below csi", readOnly, v.node.Key("csi"))
	}
	if fsType := csi.Get("fsType"); fsType.Exists() && !slices.Contains([]any{nil, "", "tmpfs"}, fsType.Scalar()) {
		l.report(o, Error, v.field+".csi.fsType", `must be absent or "tmpfs": remove it`, fsType)
	}
	ref := csi.Get("nodePublishSecretRef")
	hasRef := ref.Exists() && !(ref.IsScalar() && ref.Scalar() == nil)
	if hasRef && ref.Get("name").String() == "" {
		l.report(o, Error, v.field+".csi.nodePublishSecretRef.name", "name the Secret, or remove nodePublishSecretRef", ref)
	}
	l.attributes(v, csi, hasRef)
}

// attributes has the driver's own rules judge a volume's attributes.
func (l *linter) attributes(v *volume, csi manifest.Node, hasRef bool) {
	attrs, o, at := csi.Get("volumeAttributes"), v.pod.Object, v.field+".csi.volumeAttributes"
	if attrs.Exists() && !attrs.IsMapping() && !(attrs.IsScalar() && attrs.Scalar() == nil) {
		l.report(o, Error, at, "must be a mapping of strings", attrs)
		return
	}
	for _, e := range attrs.Repeated() {
		l.report(o, Error, at+"["+e.Name+"]", "is given twice, and the last one counts: remove one", e.Key)
	}
	values := map[string]string{}
	allStrings := true
	for _, e := range attrs.Entries() {
		text, isString := e.Value.Scalar().(string)
		if strings.Contains(text, "{{") {
			l.report(o, Error, at+"["+e.Name+"]", `is a template ("{{ }}"): give lint the output of "helm template" instead`, e.Value)
			return
		}
		if strings.HasPrefix(e.Name, "csi.storage.k8s.io/") {
			l.report(o, Warning, at+"["+e.Name+"]", "is kubelet's to set, and has no effect here: remove it", e.Key)
		}
		if !isString && (e.Value.Scalar() != nil || !e.Value.IsScalar()) {
			suggestion := meant(e, func(text string) bool { return acceptable(e.Name, text) })
			l.report(o, Error, at+"["+e.Name+"]", notAString(e, suggestion), e.Value)
			allStrings = false
			text = cmp.Or(suggestion, asString(e))
		}
		values[e.Name] = text
	}
	for _, name := range []string{"items", "sources"} {
		l.listModes(v, attrs.Get(name), at+"["+name+"]")
	}
	spec, errs := attributes.Parse(values, hasRef)
	for _, err := range errs {
		l.report(o, Error, v.field+".csi."+err.Field, err.ErrorBody(), place(attrs, err), attrs, v.node.Key("csi"))
	}
	v.spec, v.good = spec, len(errs) == 0 && allStrings
}

// listModes finds decimal modes in the text of a list. Above 0777 they are refused anyway.
func (l *linter) listModes(v *volume, list manifest.Node, at string) {
	root := list // written as a list, which is a problem of its own
	inside, hasLines := list.Inside()
	if hasLines {
		root = inside.Root
	} else if text := list.String(); text != "" {
		root = manifest.Parse("", text).Documents[0].Root
	}
	for _, mode := range root.DecimalModes() {
		place := mode.Node
		if !hasLines && list.IsScalar() {
			place = list
		}
		if mode.Node.Scalar().(int) <= 0o777 {
			l.report(v.pod.Object, Warning, at+mode.Field, fmt.Sprintf("%s; write %q, or %d", mode, mode.Octal, mode.Value), place)
		}
	}
}

// nativeModes finds decimal modes in one of Kubernetes' own volumes.
func (l *linter) nativeModes(pod manifest.Pod, volume manifest.Node, at string) {
	for _, source := range []string{"secret", "configMap", "downwardAPI", "projected"} {
		for _, mode := range volume.Get(source).DecimalModes() {
			remedy := fmt.Sprintf("%s; write %s, or %d", mode, mode.Octal, mode.Value)
			if mode.Node.Document().JSON {
				remedy = fmt.Sprintf("%s; write %d", mode, mode.Value)
			}
			l.report(pod.Object, Warning, at+"."+source+"."+mode.Field, remedy, mode.Node)
		}
	}
}

// mounts looks at how containers mount the volume.
func (l *linter) mounts(v volume) {
	o := v.pod.Object
	for _, c := range v.pod.Containers() {
		for _, m := range c.Mounts {
			for _, name := range []string{"subPath", "subPathExpr"} {
				if sub := m.Node.Get(name); m.Volume == v.name && sub.String() != "" {
					l.report(o, Warning, v.pod.Path(m.Field+"."+name), fmt.Sprintf(
						"what is mounted by %s stays as it was when the container started, whatever becomes of the object: mount the volume %q as a directory", name, v.name), sub)
				}
			}
		}
	}
	for _, n := range v.pod.MountedBeneath(v.name) {
		switch supplied, sure := supplies(v, n); {
		case supplied:
		case sure:
			l.report(o, Error, v.pod.Path(n.Field+".mountPath"), fmt.Sprintf(
				"lies within the volume %q, which is read-only and has nothing at %q to mount on, so the container can't start: mount it elsewhere, or let items have a path below it",
				v.name, n.Relative), n.Node.Get("mountPath"))
		default:
			l.report(o, Warning, v.pod.Path(n.Field+".mountPath"), fmt.Sprintf(
				"lies within the volume %q, which is read-only: the container can't start unless the object has a key %q; mount it elsewhere", v.name, n.Relative), n.Node.Get("mountPath"))
		}
	}
}

// supplies reports whether a volume has something to mount on at the place of n, and whether that can be told.
func supplies(v volume, n manifest.Nested) (supplied, sure bool) {
	var files []string
	sure = true
	for _, s := range v.spec.Sources {
		for _, item := range s.Items {
			files = append(files, item.Path)
		}
		if len(s.Items) == 0 && !strings.Contains(n.Relative, "/") {
			sure = false // a key may be called so
		}
	}
	supplied = n.SuppliedBy(files)
	return supplied, (supplied || sure) && v.good
}

// resources looks at the containers whose requests and limits the volume shows.
func (l *linter) resources(v volume) {
	o, attrs := v.pod.Object, v.node.Get("csi", "volumeAttributes")
	for i, s := range v.spec.Sources {
		for j, item := range s.Items {
			if s.Object.Kind != attributes.Pod || !item.IsResource() {
				continue
			}
			at := field.NewPath("volumeAttributes").Key("sources").Index(i).Child("downwardAPI", "items").Index(j).Child("resourceFieldRef")
			switch known, sets := v.pod.Sets(item.Container, item.Key); {
			case !known:
				err := field.Invalid(at.Child("containerName"), item.Container, "the pod has no init or main container of this name, so the driver refuses the volume: name one that it has")
				l.report(o, Error, v.field+".csi."+err.Field, err.ErrorBody(), place(attrs, err), attrs)
			case !sets && strings.HasPrefix(item.Key, "limits."):
				err := field.Invalid(at.Child("resource"), item.Key, "")
				l.report(o, Warning, v.field+".csi."+err.Field, fmt.Sprintf(
					"container %q sets no %s, and the driver refuses the volume unless a LimitRange sets it: set the limit, or use a downwardAPI volume of Kubernetes, which shows the node's",
					item.Container, item.Key), place(attrs, err), attrs)
			}
		}
	}
}

// owner looks at whether those who mount the volume can read it.
func (l *linter) owner(v volume) {
	if !v.good {
		return
	}
	var (
		o     = v.pod.Object
		runAs = v.pod.RunAs()
		csi   = v.node.Get("csi")
		uidAt = csi.Get("volumeAttributes", "uid")
		owner = v.spec.UID
	)
	if owner == nil {
		owner = source.CommonUser(runAs)
	}
	if owner == nil && slices.ContainsFunc(files(v.spec), func(f file) bool { return f.uid == nil }) {
		l.report(o, Warning, v.field+".csi.volumeAttributes",
			"no uid is given, and the pod's containers have no runAsUser in common, so the files belong to root: set uid, or runAsUser in the pod's securityContext",
			csi.Get("volumeAttributes"), csi)
	}
	if hostUsers := v.pod.Spec().Get("hostUsers"); hostUsers.Scalar() == false && v.spec.UID != nil && *v.spec.UID > maxMappedID {
		l.report(o, Warning, v.field+".csi.volumeAttributes[uid]",
			"with hostUsers: false a pod has the uids 0 to 65535 unless the node is set up for more: nobody in it would own the files; choose a smaller uid", uidAt)
	}
	for i, c := range v.pod.Containers() {
		if !slices.ContainsFunc(c.Mounts, func(m manifest.Mount) bool { return m.Volume == v.name }) {
			continue
		}
		if f, user := unreadable(v, owner, effectiveUser(runAs, i)); f != nil {
			l.report(o, Warning, v.field+".csi.volumeAttributes", fmt.Sprintf(
				"container %q runs as uid %d, but files belong to uid %d and their mode %04o lets nobody else read them: set uid to %d, or a mode such as 0440 with a gid that the container has",
				c.Node.Get("name").String(), user, *f.uid, f.mode, user), uidAt, csi.Get("volumeAttributes"))
		}
	}
}

// maxMappedID is the largest id in a user namespace of kubelet's default length.
const maxMappedID = 65535

// file is a kind of file in a volume.
type file struct {
	mode uint32
	uid  *uint32 // nil: the volume's
}

func files(spec attributes.Spec) []file {
	var all []file
	for _, s := range spec.Sources {
		if len(s.Items) == 0 {
			all = append(all, file{mode: s.Mode})
		}
		for _, item := range s.Items {
			f := file{mode: s.Mode, uid: item.UID}
			if item.Mode != nil {
				f.mode = *item.Mode
			}
			all = append(all, f)
		}
	}
	return all
}

// unreadable returns a file that user can't read, if there is one for sure. A user that is not known, and root, read all.
func unreadable(v volume, owner *uint32, user *int64) (*file, int64) {
	if user == nil || *user == 0 {
		return nil, 0
	}
	for _, f := range files(v.spec) {
		if f.uid == nil {
			f.uid = owner
		}
		if f.uid != nil && int64(*f.uid) != *user && f.mode&0o044 == 0 {
			return &f, *user
		}
	}
	return nil, 0
}

// effectiveUser is whom the i-th container runs as; nil if the pod does not say.
func effectiveUser(runAs *corev1.PodSpec, i int) *int64 {
	if n := len(runAs.Containers); i >= n {
		return source.EffectiveUser(runAs.SecurityContext, runAs.EphemeralContainers[i-n].SecurityContext)
	}
	return source.EffectiveUser(runAs.SecurityContext, runAs.Containers[i].SecurityContext)
}
