// SPDX-License-Identifier: Apache-2.0

// Package attributes defines the attributes of a fsuser.csi.io volume: what a pod's author may write under
// csi.volumeAttributes, the meaning and the rules of each value, and the defaults.
//
// Parse turns the strings of a request into a Spec and reports every problem at once. Describe completes a Spec whose
// attribute "volume" names another volume of the pod. Validate applies the same rules to a Spec that was read back from
// a record.
//
// The result depends only on the arguments: the package calls no API server, touches no file and keeps no state. So the
// driver, lint and convert give the same answer.
package attributes

import (
	"maps"
	"slices"

	"k8s.io/utils/ptr"
)

// Driver is the name of the driver, which a volume has in csi.driver.
const Driver = "fsuser.csi.io"

// Kind is the kind of an object that a volume can project.
type Kind string

// The kinds of object, spelled as in the Kubernetes API.
const (
	Secret    Kind = "Secret"
	ConfigMap Kind = "ConfigMap"
	// Pod is the pod itself, whose fields the downward API shows.
	Pod Kind = "Pod"
)

// Object names a projected object. It has no namespace, because the namespace is always the pod's own.
type Object struct {
	Kind Kind
	Name string // a DNS-1123 subdomain; empty for the Pod, which can only be the volume's own
}

// Refresh says whether a volume follows its objects.
type Refresh string

const (
	// RefreshWatch keeps the files current while the pod runs.
	RefreshWatch Refresh = "watch"
	// RefreshOff keeps the content as it was when the volume was published (kubernetes/kubernetes#118566).
	RefreshOff Refresh = "off"
)

// Layout is the arrangement of the files in a volume, and the way in which a change reaches them.
type Layout string

const (
	// LayoutLinks makes each name a symbolic link into one version of all files, as in Kubernetes' own volumes.
	LayoutLinks Layout = "links"
	// LayoutFiles makes plain files. A rename replaces each file that changes.
	LayoutFiles Layout = "files"
	// LayoutInPlace makes plain files. A change overwrites the file, which keeps its inode.
	LayoutInPlace Layout = "in-place"
)

// Item projects one key of an object, or one field of the pod, to one file.
type Item struct {
	// Key is the key of the Secret or ConfigMap. For the Pod, it is the API's fieldPath, such as metadata.labels['app'],
	// or a resource, such as limits.cpu.
	Key string
	// Container is the container of the resource, and Divisor its unit, a quantity; an empty Divisor is 1. Both are empty
	// unless the key is a resource.
	Container, Divisor string
	// Path is the path of the file, clean and relative to the volume's root; see CleanPath.
	Path string
	// Mode (permission bits) and UID (0..2147483647) are those of this file. If they are nil, those of the volume apply.
	Mode, UID *uint32
}

// IsResource reports whether the item of a Pod is a resource of a container, as opposed to a field.
func (i Item) IsResource() bool { return i.Container != "" }

// Source is one object with the projected items.
type Source struct {
	// Object is the zero Object when the content comes with the request (the volume's nodePublishSecretRef).
	Object Object
	// Items are the projected items. If a Secret or ConfigMap has no items, each key is projected to a path of the same
	// name.
	Items []Item
	// Optional means that a missing object, or a missing key among Items, is no error.
	Optional bool
	// Mode is the mode of files without a mode of their own, permission bits only.
	Mode uint32
}

// Permissions are the owner and the mode of one file. Nil means that the attributes do not set them.
type Permissions struct {
	UID, GID, Mode *uint32
}

// Spec is the validated description of a volume, with defaults.
type Spec struct {
	// Volume is the attribute "volume": the name of the volume of the pod that describes this one. It is empty if the
	// attributes name an object themselves.
	Volume string
	// Sources are the sources of the files. If Volume is set, Describe sets them.
	Sources []Source
	// UID and GID own files and directories, 0..2147483647. Nil means that the attributes do not set them.
	UID, GID *uint32
	// Mode is the attribute "mode". The Sources already contain it.
	Mode *uint32
	// DefaultUser is the described volume's defaultUser (KEP-5936); it owns the files if UID is nil.
	DefaultUser *uint32
	// DirMode is the mode of directories, permission bits only.
	DirMode uint32
	Refresh Refresh
	Layout  Layout
	// Paths are the owners and modes of single files, by the path of the file.
	Paths map[string]Permissions
	// Templates make files, by the path of the file. Such a file replaces an object's file with this path.
	Templates map[string]Template
	// MountPoints are directories of the volume on which containers mount other volumes. SubPaths are the paths of the
	// volume that containers mount by subPath. Both are known only if Volume is set.
	MountPoints, SubPaths []string
}

// FromRequest reports whether the content comes with each publish request, as the data of the volume's
// nodePublishSecretRef.
func (s Spec) FromRequest() bool { return len(s.Sources) == 1 && s.Sources[0].Object == Object{} }

// FileMode returns the mode of files without a mode of their own. It is the same in all Sources.
func (s Spec) FileMode() uint32 {
	if len(s.Sources) > 0 {
		return s.Sources[0].Mode
	}
	return ptr.Deref(s.Mode, defaultDescribedMode)
}

// ShowsAllocatable reports whether a file shows a limit that the container may not set. Then kubelet shows the node's
// allocatable (MergeContainerResourceLimits in kubelet).
func (s Spec) ShowsAllocatable() bool {
	return slices.ContainsFunc(s.Sources, func(source Source) bool {
		return slices.ContainsFunc(source.Items, func(item Item) bool {
			return item.IsResource() && slices.Contains(allocatableLimits(), item.Key)
		})
	})
}

func allocatableLimits() []string {
	return []string{"limits.cpu", "limits.memory", "limits.ephemeral-storage"}
}

// SameRequest reports whether s and o come from the same attributes. It ignores the fields that Describe sets, because
// the volumes of a pod never change. The order of Sources and Items matters.
func (s Spec) SameRequest(o Spec) bool {
	return s.Volume == o.Volume && s.DirMode == o.DirMode && s.Refresh == o.Refresh && s.Layout == o.Layout &&
		ptr.Equal(s.UID, o.UID) && ptr.Equal(s.GID, o.GID) && ptr.Equal(s.Mode, o.Mode) &&
		maps.EqualFunc(s.Paths, o.Paths, func(a, b Permissions) bool {
			return ptr.Equal(a.UID, b.UID) && ptr.Equal(a.GID, b.GID) && ptr.Equal(a.Mode, b.Mode)
		}) &&
		maps.Equal(s.Templates, o.Templates) &&
		(s.Volume != "" || slices.EqualFunc(s.Sources, o.Sources, func(a, b Source) bool {
			return a.Object == b.Object && a.Optional == b.Optional && a.Mode == b.Mode // attributes alone name no items
		}))
}
