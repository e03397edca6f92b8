// SPDX-License-Identifier: Apache-2.0

// Package record keeps what the driver must know of a volume after a restart, one small file per volume.
//
// The files belong on the host's /run: a reboot takes them away together with the tmpfs that they describe. A record
// holds no content, no token and no map of a request (CVE-2023-2878 and its kin): only named fields. Whoever reads one
// back treats it as input: the package checks its form, the caller its meaning.
package record

import (
	"errors"
	"fmt"
)

// version is written to each record. A reader takes its own version only.
const version = 3

// Errors that Store.Load puts around the name of a file.
var (
	// ErrCorrupt says that a file is not a record: truncated, garbage, or for another volume than its name says.
	ErrCorrupt = errors.New("corrupt volume record")
	// ErrVersion says that another version of the driver wrote the record.
	ErrVersion = errors.New("volume record of another version")
)

// Volume is the record of one volume.
type Volume struct {
	Version int `json:"version"`
	// VolumeID is the CSI volume id.
	VolumeID string `json:"volumeID"`
	// TargetPath is where kubelet wants the volume.
	TargetPath string `json:"targetPath"`
	// Pod is whose volume it is.
	Pod Pod `json:"pod"`
	// Spec is what the volume asks for.
	Spec Spec `json:"spec"`
	// MountGroup is the pod's fsGroup (CSI's volume_mount_group); absent if it has none.
	MountGroup *uint32 `json:"mountGroup,omitempty"`
	// SecretRef is the name of the volume's nodePublishSecretRef, if the content comes from it and the pod told.
	SecretRef string `json:"secretRef,omitempty"`
	// User is who owns the files if the spec does not say: the pod's common runAsUser; absent if it had none.
	User *uint32 `json:"user,omitempty"`
	// Size is how many bytes the files held when they were first written; absent if none, or if that is not known.
	Size int64 `json:"size,omitempty"`
	// Device and FSID identify the tmpfs. A mount with another identity at TargetPath is not the volume.
	Device uint64 `json:"device"`
	FSID   uint64 `json:"fsid"`
}

// Pod names a pod.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// Spec is the volume's attributes, in a form of its own: the files outlive the code that wrote them.
type Spec struct {
	Sources []Source `json:"sources"`
	UID     *uint32  `json:"uid,omitempty"`
	GID     *uint32  `json:"gid,omitempty"`
	DirMode uint32   `json:"dirMode"`
	Refresh string   `json:"refresh"`
}

// Source is one object and what of it is projected.
type Source struct {
	// Kind and Name of an object in the pod's namespace. Both are empty if the content comes with each request.
	Kind     string `json:"kind,omitempty"`
	Name     string `json:"name,omitempty"`
	Items    []Item `json:"items,omitempty"`
	Optional bool   `json:"optional,omitempty"`
	Mode     uint32 `json:"mode"`
}

// Item is one entry of the attribute items, or of the items of a source.
type Item struct {
	Key       string  `json:"key"`
	Container string  `json:"container,omitempty"`
	Divisor   string  `json:"divisor,omitempty"`
	Path      string  `json:"path"`
	Mode      *uint32 `json:"mode,omitempty"`
	UID       *uint32 `json:"uid,omitempty"`
	GID       *uint32 `json:"gid,omitempty"`
}

// check tells whether v can be a record at all.
func (v *Volume) check() error {
	if v.Version != version {
		return fmt.Errorf("%w: it has version %d, this driver writes %d", ErrVersion, v.Version, version)
	}
	if v.VolumeID == "" || v.TargetPath == "" || v.Pod.UID == "" {
		return fmt.Errorf("%w: volumeID, targetPath or pod.uid is empty", ErrCorrupt)
	}
	if v.Size < 0 {
		return fmt.Errorf("%w: size is less than zero", ErrCorrupt)
	}
	return nil
}
