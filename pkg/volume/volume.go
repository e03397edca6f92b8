// SPDX-License-Identifier: Apache-2.0

// Package volume implements the life of a volume: publish, refresh, unpublish, and the recovery after a restart of the
// driver.
//
//	Publish    resolve ─ subscribe ─ payload ─ detached tmpfs ─ write ─ seal ─ record ─ attach
//	refresh    an object changed ─ payload ─ private clone of the mount ─ new generation
//	Unpublish  unsubscribe ─ unmount ─ remove the directory ─ forget
//	Recover    records ─ is the mount still ours? ─ subscribe again
//	collect    forget volumes whose pod directory is gone
//
// The package promises: a failed Publish leaves nothing behind and disturbs no other volume; a failed refresh keeps the
// old content whole; only Unpublish unmounts.
//
// The package does not know gRPC. Its callers turn its errors into codes.
package volume

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// Errors that Publish, Unpublish and Usage wrap, besides the errors of package source and of the kernel.
var (
	// ErrConflict means that the volume is published already, with other attributes.
	ErrConflict = errors.New("volume is published with other attributes")
	// ErrPrecondition means that the object or the target is in a wrong state. A retry succeeds after somebody has
	// corrected it.
	ErrPrecondition = errors.New("precondition failed")
	// ErrInvalid means that the attributes do not match the pod, or that neither attributes nor request bring content.
	ErrInvalid = errors.New("invalid attributes")
	// ErrExhausted means that the volumes of the node have reached a limit.
	ErrExhausted = errors.New("a limit of the node is reached")
	// ErrUnknown means that there is no such volume, or not at this path.
	ErrUnknown = errors.New("no such volume")
	// ErrLocked means that another call for the volume was under way until the context ended.
	ErrLocked = errors.New("another call for this volume is under way")
	// errStalled means that a refresh does not end.
	errStalled = errors.New("a refresh has been running for more than a second; probably a process holds the volume's " +
		"directory, such as one that lists the directory into memory that a slow file system has to fill; end that process")
	// ErrLeftover means that a failed call has left something of the volume. The caller must see to it that kubelet calls
	// Unpublish.
	ErrLeftover = errors.New("something of the volume is left")
)

// Pod identifies the pod of a volume.
type Pod = record.Pod

// Request is a request to publish a volume.
type Request struct {
	// ID is the CSI volume id.
	ID string
	// TargetPath is the path of the mount: absolute, clean, free of symbolic links. Its parent must exist.
	TargetPath string
	Pod        Pod
	Spec       attributes.Spec
	// MountGroup is the pod's fsGroup. It owns the files unless the Spec sets a group. Nil if the pod has no fsGroup.
	MountGroup *uint32
	// Secrets is the content of the volume's nodePublishSecretRef. It is used only if Spec.FromRequest is true. For a
	// published volume it can be empty, if its Secret has lost its data.
	Secrets map[string]string
}

// CheckContent returns an ErrInvalid if a first publish has no content to show.
func (r Request) CheckContent() error {
	if len(r.Secrets) > 0 || !r.Spec.FromRequest() {
		return nil
	}
	return fmt.Errorf("%w: %w; if nodePublishSecretRef is set, "+
		"its Secret has no data: add a key",
		ErrInvalid, attributes.NoObject())
}

// Limits bound each volume, all volumes of the node together, and the share of one pod and of one namespace.
type Limits struct {
	// Bytes is the limit of the content of one version of a volume.
	Bytes int64
	// Files is the limit of the files and directories in one version of a volume.
	Files int
	// Volumes is the limit of the node's volumes.
	Volumes int
	// NodeBytes is the limit of the memory of all volumes: one version of their files in whole pages, with inodes, their
	// records, and the content of their objects, which counts once for each volume.
	NodeBytes int64
	// Objects is the limit of the watched objects.
	Objects int
	// PodShare and NamespaceShare are the percentage of Volumes, NodeBytes and Objects that the volumes of one pod, and of
	// one namespace, may take. With 100, they may take everything.
	PodShare, NamespaceShare int
}

// volume is a published volume. Its attributes never change after the publish. Its lock in the Manager serialises the
// calls for the volume, and the queue serialises the work on its files.
type volume struct {
	id         string
	targetPath string
	pod        Pod
	spec       attributes.Spec
	mountGroup *uint32
	// user owns the files if the spec has no owner. It is the common runAsUser of the pod's containers at the first
	// publish.
	user *uint32
	// allocatable is the node's allocatable at the first publish, by resource; nil if no file shows it.
	allocatable map[string]string
	identity    tmpfs.Identity
	// projections are the origins of the content, one for each source of the spec.
	projections []projection
	// share is the volume's share of the node's limits. A new volume has none.
	share *share
	// unfinished means that the files may show a part of a version, which projector.Finish completes. Only the worker that
	// refreshes the volume uses this field.
	unfinished bool
	// written is the end of the last refresh that wrote to the files; nil if there was none. No lock guards it, because
	// the queue reads it under its own lock, and resume takes the lock of the queue while it holds mu.
	written atomic.Pointer[time.Time]

	// mu guards the fields below. It is never held during work on the files, because status and metrics must not wait for
	// that.
	mu    sync.Mutex
	shown shown
	// requested is the content of the last republish, for a volume with the content of requests.
	requested []projected
	// paused means that the content of the objects exceeds a limit. The volume is not subscribed to its objects until the
	// next republish.
	paused bool
	// refreshing is the start of the refresh that runs now; zero if none runs.
	refreshing time.Time
	// notBefore is the earliest start of the next refresh that writes to the files. took is the duration of the last one.
	notBefore time.Time
	took      time.Duration
}

// projection is a source of the spec with the object that it projects. Without an object, the content comes with
// requests.
type projection struct {
	attributes.Source
	ref source.Ref
}

// projected is a projection with the content of its object. An optional object that is missing has no content.
type projected struct {
	projection
	content source.Content
}

// sameVersion reports whether both are known to be the same version of the same object.
func (p projected) sameVersion(other projected) bool { return p.content.SameVersion(other.content) }

// shown describes what the files of a volume show.
type shown struct {
	// versions are the projections that the files show, without their data; nil if they are unknown.
	versions []projected
	// size is the number of bytes in the files.
	size int64
	// refreshed is the time when this process last wrote the files or found them current.
	refreshed time.Time
	// stale is the reason why the files may be outdated, since staleSince; nil if they are current.
	stale      error
	staleSince time.Time
	// staleEventSent means that an Event has reported that the volume is stale.
	staleEventSent bool
}

// shows reports whether the files are known to show content.
func (s shown) shows(content []projected) bool {
	return s.versions != nil && slices.EqualFunc(content, s.versions, projected.sameVersion)
}

func newVolume(req Request) *volume {
	v := &volume{id: req.ID, targetPath: req.TargetPath, pod: req.Pod, mountGroup: req.MountGroup}
	v.setSpec(req.Spec)
	return v
}

// setSpec sets the spec and the projections that result from it.
func (v *volume) setSpec(spec attributes.Spec) {
	v.spec, v.projections = spec, nil
	for _, s := range spec.Sources {
		p := projection{Source: s}
		if !spec.FromRequest() {
			p.ref = source.Ref{Kind: s.Object.Kind, Namespace: v.pod.Namespace, Name: s.Object.Name}
		}
		if s.Object.Kind == attributes.Pod {
			p.ref.Name = v.pod.Name
		}
		v.projections = append(v.projections, p)
	}
}

// contentOf returns the content of a request, for a volume with the content of requests.
func (v *volume) contentOf(req Request) []projected {
	return []projected{{v.projections[0], source.FromRequest(req.Secrets)}}
}

// request makes the content of a request the content that the volume must show.
func (v *volume) request(req Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.requested = v.contentOf(req)
}

// setRefreshing records the start of the refresh that runs now. A zero time means that no refresh runs.
func (v *volume) setRefreshing(since time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.refreshing = since
}

// wrote records that a refresh wrote to the files, its duration, and the number of volumes of the same object. The
// shorter duration of the last two refreshes counts: a refresh that was slow by chance must not delay the next one.
func (v *volume) wrote(took time.Duration, volumes int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	v.written.Store(&now)
	v.notBefore = now.Add(refreshInterval(min(took, v.took), volumes))
	v.took = took
}

// untilRefresh returns the time until the next refresh may write; zero or less if it may write now.
func (v *volume) untilRefresh() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	return time.Until(v.notBefore)
}

// lastWritten returns the end of the last refresh that wrote to the files; zero if there was none.
func (v *volume) lastWritten() time.Time { return ptr.Deref(v.written.Load(), time.Time{}) }

// refreshingFor returns the duration of the refresh that runs now; 0 if none runs.
func (v *volume) refreshingFor() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.refreshing.IsZero() {
		return 0
	}
	return time.Since(v.refreshing)
}

// isPaused reports whether the volume waits for the next republish.
func (v *volume) isPaused() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.paused
}

// name returns the pod's name of the volume, which is the name of a directory in the target path.
func (v *volume) name() string { return filepath.Base(filepath.Dir(v.targetPath)) }

// fromRequest reports whether the content comes with requests, as the data of a nodePublishSecretRef.
func (v *volume) fromRequest() bool { return v.spec.FromRequest() }

// watched returns the objects that the volume follows, without duplicates.
func (v *volume) watched() []source.Ref {
	distinct := map[source.Ref]bool{}
	for _, p := range v.projections {
		if v.watches() {
			distinct[p.ref] = true
		}
	}
	return slices.Collect(maps.Keys(distinct))
}

// heldBytes returns the length of the keys and values that the driver holds in memory for the volume: the content of
// watched objects, and of the last request.
func (v *volume) heldBytes(content []projected) (sum int64) {
	seen := map[source.Ref]bool{}
	for _, p := range content {
		if v.spec.Refresh == attributes.RefreshOff || seen[p.ref] {
			continue
		}
		seen[p.ref] = true
		for key, value := range p.content.Data {
			sum += int64(len(key) + len(value))
		}
	}
	return sum
}

// watches reports whether the volume follows its objects.
func (v *volume) watches() bool {
	return !v.fromRequest() && v.spec.Refresh == attributes.RefreshWatch
}

// owner returns the owner of directories, of links, and of files without an owner of their own.
func (v *volume) owner() (uid, gid uint32) {
	return firstOf(v.spec.UID, v.spec.DefaultUser, v.user), firstOf(v.spec.GID, v.mountGroup)
}

// firstOf returns the first number that is not nil, or 0.
func firstOf(numbers ...*uint32) uint32 { return ptr.Deref(cmp.Or(numbers...), 0) }

// origin describes the origin of the content, for messages.
func (v *volume) origin() string {
	var all []string
	seen := map[string]bool{}
	for _, p := range v.projections {
		if name := v.originOf(p); !seen[name] {
			seen[name] = true
			all = append(all, name)
		}
	}
	return strings.Join(all, ", ")
}

// originOf describes the origin of the content of one projection, for messages.
func (v *volume) originOf(p projection) string {
	if v.fromRequest() {
		return fmt.Sprintf("the Secret of nodePublishSecretRef of pod %q", v.pod.Namespace+"/"+v.pod.Name)
	}
	return p.ref.String()
}
