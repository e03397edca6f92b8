// SPDX-License-Identifier: Apache-2.0

// Package record keeps the data about volumes that the driver requires after a restart, in one small file per volume.
//
// The files belong on the host's /run: a reboot removes them together with the tmpfs that they describe. A record has
// only named fields. It has no content, no token and no map of a request (as in CVE-2023-2878). A record is untrusted
// input: the package checks its form, and the caller its meaning.
package record

import (
	"errors"
	"fmt"
)

// The versions of the form that this driver reads. Version 5 added layout and templates. A record gets the oldest
// version that has all its fields, so that an older driver can read it after a rollback.
const (
	oldestVersion = 4
	newestVersion = 5
)

// Errors of Store.Load. Their text contains the name of the file.
var (
	// ErrCorrupt means that a file is no record: it is truncated, it is garbage, or its name belongs to another volume.
	ErrCorrupt = errors.New("corrupt volume record")
	// ErrVersion means that a driver of another version wrote the record in a form that this driver does not read.
	ErrVersion = errors.New("volume record of another version")
)

// Volume is the record of one volume.
type Volume struct {
	Version int `json:"version"`
	// VolumeID is the CSI volume id.
	VolumeID string `json:"volumeID"`
	// TargetPath is the path at which kubelet expects the volume.
	TargetPath string `json:"targetPath"`
	// Pod is the pod of the volume.
	Pod Pod `json:"pod"`
	// Spec is the description of the volume.
	Spec Spec `json:"spec"`
	// MountGroup is the pod's fsGroup (CSI's volume_mount_group); absent if the pod has none.
	MountGroup *uint32 `json:"mountGroup,omitempty"`
	// User owns the files if the spec has no owner: the pod's common runAsUser; absent if the pod had none.
	User *uint32 `json:"user,omitempty"`
	// Allocatable is the node's allocatable by resource; absent if no file shows it.
	Allocatable map[string]string `json:"allocatable,omitempty"`
	// Size is the number of bytes in the files when they were first written; absent if it is 0 or unknown.
	Size int64 `json:"size,omitempty"`
	// Device and FSID identify the tmpfs. A mount with another identity at TargetPath is not the volume.
	Device uint64 `json:"device"`
	FSID   uint64 `json:"fsid"`
}

// Pod identifies a pod.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// Spec is the description of a volume. It has a form of its own, because the files outlive the code that wrote them.
type Spec struct {
	// Volume is the name of the volume of the pod that describes this one; absent if the attributes name an object.
	Volume      string   `json:"volume,omitempty"`
	Sources     []Source `json:"objects"`
	UID         *uint32  `json:"uid,omitempty"`
	GID         *uint32  `json:"gid,omitempty"`
	Mode        *uint32  `json:"mode,omitempty"`
	DefaultUser *uint32  `json:"defaultUser,omitempty"`
	DirMode     uint32   `json:"dirMode"`
	Refresh     string   `json:"refresh"`
	// Layout is absent if the names are links.
	Layout      string                 `json:"layout,omitempty"`
	Paths       map[string]Permissions `json:"paths,omitempty"`
	Templates   map[string]string      `json:"templates,omitempty"`
	MountPoints []string               `json:"mountPoints,omitempty"`
	SubPaths    []string               `json:"subPaths,omitempty"`
}

// Source is one object and its projected items.
type Source struct {
	// Kind and Name are those of an object in the pod's namespace. Both are empty if the content comes with each request.
	Kind     string `json:"kind,omitempty"`
	Name     string `json:"name,omitempty"`
	Items    []Item `json:"items,omitempty"`
	Optional bool   `json:"optional,omitempty"`
	Mode     uint32 `json:"mode"`
}

// Item is one key of an object, or one field of the pod, with its file.
type Item struct {
	Key       string  `json:"key"`
	Container string  `json:"container,omitempty"`
	Divisor   string  `json:"divisor,omitempty"`
	Path      string  `json:"path"`
	Mode      *uint32 `json:"mode,omitempty"`
	UID       *uint32 `json:"uid,omitempty"`
}

// Permissions are the owner and the mode of one file. For an absent field, the volume's own value applies.
type Permissions struct {
	UID  *uint32 `json:"uid,omitempty"`
	GID  *uint32 `json:"gid,omitempty"`
	Mode *uint32 `json:"mode,omitempty"`
}

// version returns the oldest version of the form that has all fields of v.
func (v *Volume) version() int {
	if v.Spec.Layout != "" || len(v.Spec.Templates) > 0 {
		return 5
	}
	return 4
}

// check returns an error if v can't be a record.
func (v *Volume) check() error {
	if v.Version < oldestVersion || v.Version > newestVersion {
		return fmt.Errorf("%w: it has version %d, this driver reads %d to %d",
			ErrVersion, v.Version, oldestVersion, newestVersion)
	}
	if want := v.version(); v.Version != want {
		return fmt.Errorf("%w: it has version %d and the fields of version %d", ErrCorrupt, v.Version, want)
	}
	if v.VolumeID == "" || v.TargetPath == "" || v.Pod.UID == "" {
		return fmt.Errorf("%w: volumeID, targetPath or pod.uid is empty", ErrCorrupt)
	}
	if v.Size < 0 {
		return fmt.Errorf("%w: size is less than zero", ErrCorrupt)
	}
	return nil
}
