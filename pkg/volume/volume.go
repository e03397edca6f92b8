// SPDX-License-Identifier: Apache-2.0

// Package volume is the life of a volume: publish, refresh, unpublish, and what happens when the driver was away.
//
//	Publish    content ─ payload ─ detached tmpfs ─ write ─ seal ─ record ─ attach ─ watch
//	refresh    a change ─ content ─ payload ─ private clone of the mount ─ new generation
//	Unpublish  stop watching ─ unmount ─ remove the directory ─ forget
//	Recover    records ─ is the mount still ours? ─ watch again
//	collect    forget what has no pod directory any more
//
// What it promises: a failed Publish leaves nothing behind and disturbs no other volume; a failed refresh keeps the old
// content whole; nothing but Unpublish ever unmounts.
//
// It is the only package with locks and workers. It knows nothing of gRPC: its callers turn its errors into codes.
package volume

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// Errors that Publish, Unpublish and Usage wrap, besides those of package source and the kernel's error numbers.
var (
	// ErrConflict: the volume is published already, with other attributes.
	ErrConflict = errors.New("volume is published with other attributes")
	// ErrPrecondition: the object or the target is not as it must be. Trying again helps once somebody has changed that.
	ErrPrecondition = errors.New("precondition failed")
	// ErrNoContent: a first publish names no object and brings no content.
	ErrNoContent = errors.New(attributes.NoObject().Error())
	// ErrExhausted: the node's volumes have reached one of their limits together.
	ErrExhausted = errors.New("a limit of the node is reached")
	// ErrUnknown: no such volume, or not at this path.
	ErrUnknown = errors.New("no such volume")
	// ErrLocked: another call for the volume was under way until the context ended.
	ErrLocked = errors.New("another call for this volume is under way")
	// ErrLeftover: a failed call could not undo all that it did. The caller must see to it that Unpublish is called.
	ErrLeftover = errors.New("a failed call could not be undone")
)

// Pod names the pod whose volume it is.
type Pod struct {
	Namespace string
	Name      string
	UID       string
}

// Request is what a volume is published with.
type Request struct {
	// ID is the CSI volume id.
	ID string
	// Target is the path of the mount: absolute, clean, free of symbolic links. Its parent must exist.
	Target string
	Pod    Pod
	Spec   attributes.Spec
	// MountGroup is the pod's fsGroup, which owns the files unless the Spec names a group. nil: it has none.
	MountGroup *uint32
	// Secrets is the content of the volume's nodePublishSecretRef. It counts only if the Spec says so. It can be empty for a volume that is
	// published: its Secret lost its data.
	Secrets map[string]string
}

// CheckContent reports, as an ErrNoContent, that a first publish has nothing to show.
func (r Request) CheckContent() error {
	if len(r.Secrets) > 0 || !r.Spec.FromRequest() {
		return nil
	}
	return fmt.Errorf("%w; if that is set, its Secret has no data, which looks the same: give it a key", ErrNoContent)
}

// Limits bound one volume, and all volumes of the node together.
type Limits struct {
	// Bytes of content in one version of a volume, after items are applied.
	Bytes int64
	// Files in one version of a volume, together with the directories above them.
	Files int
	// Volumes of the node.
	Volumes int
	// NodeBytes is the memory that one version of all volumes takes: content in whole pages, and each inode.
	NodeBytes int64
	// Objects that are watched.
	Objects int
}

// volume is a published volume. Its lock in the Manager guards it.
type volume struct {
	id         string
	target     string
	pod        Pod
	spec       attributes.Spec
	mountGroup *uint32
	// objects are where the content comes from, one for each source of the spec. A name is empty if the content comes with each
	// request only.
	objects []source.Ref
	// user owns the files if the spec does not say who: the pod's common runAsUser when it was published.
	user     *uint32
	identity tmpfs.Identity
	// applied are the versions that the files show, without their data, one for each source. It is nil if they are not known; one
	// that has no version is zero.
	applied []source.Content
	// size is how many bytes the files hold.
	size int64
	// refreshed is when the files were last written or found current by this process.
	refreshed time.Time
	// served is when kubelet last sent along what the files show, or are newer than; nil if that was never, or before this process.
	served atomic.Pointer[time.Time]
	// stale is why the files are not known to be current, since staleSince; nil if they are.
	stale      error
	staleSince time.Time
	// told: an Event says that the volume is stale.
	told bool
}

func newVolume(req Request) *volume {
	v := &volume{id: req.ID, target: req.Target, pod: req.Pod, spec: req.Spec, mountGroup: req.MountGroup}
	v.findObjects("")
	return v
}

// findObjects sets the objects: those that the spec names, the pod itself, or the Secret of the volume's nodePublishSecretRef, whose
// name is empty if it is not known.
func (v *volume) findObjects(secretRef string) {
	v.objects = nil
	for _, s := range v.spec.Sources {
		// What does not follow the object must not begin with a version that is outdated, nor may one replace what kubelet sent along.
		newest := v.spec.Refresh == attributes.RefreshOff || v.fromRequest()
		ref := source.Ref{Kind: source.Kind(s.Object.Kind), Namespace: v.pod.Namespace, Name: s.Object.Name, Newest: newest}
		switch {
		case s.Object.Kind == attributes.Pod:
			ref.Name = v.pod.Name
		case v.fromRequest():
			ref.Kind, ref.Name = source.Secret, secretRef
		}
		v.objects = append(v.objects, ref)
	}
}

// secretRef is the name of the volume's nodePublishSecretRef, if it has one and the name is known.
func (v *volume) secretRef() string {
	if v.fromRequest() {
		return v.objects[0].Name
	}
	return ""
}

// name is what the pod calls the volume: kubelet makes it the directory of the target.
func (v *volume) name() string { return filepath.Base(filepath.Dir(v.target)) }

// fromRequest reports whether kubelet sends the content along, as the data of a nodePublishSecretRef.
func (v *volume) fromRequest() bool { return v.spec.FromRequest() }

// hasObjects reports whether there are objects that can be read.
func (v *volume) hasObjects() bool { return !v.fromRequest() || v.secretRef() != "" }

// watches reports whether the volume follows its objects.
func (v *volume) watches() bool {
	return v.hasObjects() && v.spec.Refresh == attributes.RefreshWatch
}

func (v *volume) servedNow() {
	now := time.Now()
	v.served.Store(&now)
}

// owner is who owns directories, links, and files without an owner of their own.
func (v *volume) owner() (uid, gid uint32) {
	switch {
	case v.spec.UID != nil:
		uid = *v.spec.UID
	case v.user != nil:
		uid = *v.user
	}
	switch {
	case v.spec.GID != nil:
		gid = *v.spec.GID
	case v.mountGroup != nil:
		gid = *v.mountGroup
	}
	return uid, gid
}
