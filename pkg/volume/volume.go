// SPDX-License-Identifier: Apache-2.0

// Package volume is the life of a volume: publish, refresh, unpublish, and what happens after a restart of the driver.
//
//	Publish    resolve ─ subscribe ─ payload ─ detached tmpfs ─ write ─ seal ─ record ─ attach
//	refresh    an object changed ─ payload ─ private clone of the mount ─ new generation
//	Unpublish  unsubscribe ─ unmount ─ remove the directory ─ forget
//	Recover    records ─ is the mount still ours? ─ subscribe again
//	collect    forget volumes whose pod directory is gone
//
// What it promises: a failed Publish leaves nothing behind and disturbs no other volume; a failed refresh keeps the old
// content whole; nothing but Unpublish ever unmounts.
//
// It knows nothing of gRPC: its callers turn its errors into codes.
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

// Errors that Publish, Unpublish and Usage wrap, besides those of package source and the kernel's error numbers.
var (
	// ErrConflict: the volume is published already, with other attributes.
	ErrConflict = errors.New("volume is published with other attributes")
	// ErrPrecondition: the object or the target is not as it must be. A retry helps once somebody has changed that.
	ErrPrecondition = errors.New("precondition failed")
	// ErrInvalid: the attributes do not fit the pod, or name no content where the request brings none.
	ErrInvalid = errors.New("invalid attributes")
	// ErrExhausted: the volumes of the node have reached one of their limits.
	ErrExhausted = errors.New("a limit of the node is reached")
	// ErrUnknown: no such volume, or not at this path.
	ErrUnknown = errors.New("no such volume")
	// ErrLocked: another call for the volume was under way until the context ended.
	ErrLocked = errors.New("another call for this volume is under way")
	// errStalled: a refresh does not end.
	errStalled = errors.New("a refresh has been running for more than a second; probably a process holds the volume's " +
		"directory, such as one that lists the directory into memory that a slow file system has to fill; end that process")
	// ErrLeftover: a failed call leaves something of the volume. The caller must see to it that Unpublish is called.
	ErrLeftover = errors.New("something of the volume is left")
)

// Pod names the pod that a volume belongs to.
type Pod = record.Pod

// Request is what a volume is published with.
type Request struct {
	// ID is the CSI volume id.
	ID string
	// TargetPath is the path of the mount: absolute, clean, free of symbolic links. Its parent must exist.
	TargetPath string
	Pod        Pod
	Spec       attributes.Spec
	// MountGroup is the pod's fsGroup, which owns the files unless the Spec names a group. Nil: the pod has none.
	MountGroup *uint32
	// Secrets is the content of the volume's nodePublishSecretRef. It counts only if the Spec says so. It can be empty for
	// a volume that is published: its Secret lost its data.
	Secrets map[string]string
}

// CheckContent reports, as an ErrInvalid, that a first publish has nothing to show.
func (r Request) CheckContent() error {
	if len(r.Secrets) > 0 || !r.Spec.FromRequest() {
		return nil
	}
	return fmt.Errorf("%w: %w; if nodePublishSecretRef is set, its Secret has no data, "+
		"which looks the same: give it a key",
		ErrInvalid, attributes.NoObject())
}

// Limits bound one volume, all volumes of the node together, and the part of one pod and of one namespace.
type Limits struct {
	// Bytes of content in one version of a volume.
	Bytes int64
	// Files in one version of a volume, together with its directories.
	Files int
	// Volumes of the node.
	Volumes int
	// NodeBytes is the memory that all volumes take: one version of their files, with whole pages and inodes, their
	// records, and the content of their objects, once for each volume.
	NodeBytes int64
	// Objects that are watched.
	Objects int
	// PodShare and NamespaceShare are the percent of Volumes, NodeBytes and Objects that the volumes of one pod, and of
	// one namespace, may take. 100: as much as all.
	PodShare, NamespaceShare int
}

// volume is a published volume. What it is never changes once it is published. Its lock in the Manager serialises
// calls, and the queue serialises work on its files.
type volume struct {
	id         string
	targetPath string
	pod        Pod
	spec       attributes.Spec
	mountGroup *uint32
	// user owns the files if the spec does not say who: the pod's common runAsUser when the volume was published.
	user *uint32
	// allocatable is what the node gave to pods when the volume was published, by resource; nil if no file shows it.
	allocatable map[string]string
	identity    tmpfs.Identity
	// projections are where the content comes from, one for each source of the spec.
	projections []projection
	// share is what the volume takes of the node's limits. A new volume has none.
	share *share
	// unfinished: the files may show a part of a version, which projector.Finish completes. Only the worker that refreshes
	// the volume uses it.
	unfinished bool
	// written is when the last refresh that wrote to the files ended; nil if none did. Guarded by no lock: the queue reads
	// it with its own lock, which a subscription takes while mu is held.
	written atomic.Pointer[time.Time]

	// mu guards what follows. It is never held during work on the files, for which status and metrics must not wait.
	mu    sync.Mutex
	shown shown
	// requested is the content of the last republish, if the volume shows the content of requests.
	requested []projected
	// paused: the content of the objects exceeds a limit, and the volume is not subscribed to them until the next
	// republish.
	paused bool
	// refreshing is when the refresh that runs now began; zero if none runs.
	refreshing time.Time
	// notBefore is when the next refresh that writes to the files may begin, and took how long the last one took.
	notBefore time.Time
	took      time.Duration
}

// projection is a source of the spec and the object that it projects. Without an object, the content comes with
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

// sameVersion reports whether both are known to show one state of one object.
func (p projected) sameVersion(other projected) bool { return p.content.SameVersion(other.content) }

// shown is what the files of a volume show.
type shown struct {
	// versions are the projections with what the files show, without data; nil if that is not known.
	versions []projected
	// size is how many bytes the files hold.
	size int64
	// refreshed is when this process last wrote the files or found them current.
	refreshed time.Time
	// stale is why the files are not known to be current, since staleSince; nil if they are.
	stale      error
	staleSince time.Time
	// staleEventSent: an Event says that the volume is stale.
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

// setSpec sets the spec and the projections that follow from it.
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

// contentOf returns the content of a request, for a volume that shows it.
func (v *volume) contentOf(req Request) []projected {
	return []projected{{v.projections[0], source.FromRequest(req.Secrets)}}
}

// request makes the content of a request the content that the volume has to show.
func (v *volume) request(req Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.requested = v.contentOf(req)
}

// setRefreshing records when the refresh that runs now began; a zero time means that none runs.
func (v *volume) setRefreshing(since time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.refreshing = since
}

// wrote records that a refresh wrote to the files, how long it took, and of how many volumes of the same object. The
// shorter of the last two refreshes counts: one that was slow by chance must not delay the next.
func (v *volume) wrote(took time.Duration, volumes int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	v.written.Store(&now)
	v.notBefore = now.Add(refreshInterval(min(took, v.took), volumes))
	v.took = took
}

// untilRefresh is how long the next refresh has to wait; zero or less if it need not.
func (v *volume) untilRefresh() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	return time.Until(v.notBefore)
}

// lastWritten is when the last refresh that wrote to the files ended; zero if none did.
func (v *volume) lastWritten() time.Time { return ptr.Deref(v.written.Load(), time.Time{}) }

// refreshingFor is how long the refresh that runs now has been running; 0 if none runs.
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

// name is what the pod calls the volume: kubelet makes it the directory of the target.
func (v *volume) name() string { return filepath.Base(filepath.Dir(v.targetPath)) }

// fromRequest reports whether kubelet sends the content along, as the data of a nodePublishSecretRef.
func (v *volume) fromRequest() bool { return v.spec.FromRequest() }

// watched returns the objects that the volume follows, each once.
func (v *volume) watched() []source.Ref {
	distinct := map[source.Ref]bool{}
	for _, p := range v.projections {
		if v.watches() {
			distinct[p.ref] = true
		}
	}
	return slices.Collect(maps.Keys(distinct))
}

// heldBytes is the length of the keys and values of content that the driver holds: of watched objects, and of the last
// request.
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

// owner is who owns directories, links, and files without an owner of their own.
func (v *volume) owner() (uid, gid uint32) {
	return firstOf(v.spec.UID, v.spec.DefaultUser, v.user), firstOf(v.spec.GID, v.mountGroup)
}

// firstOf is the first number that is given, else 0.
func firstOf(numbers ...*uint32) uint32 { return ptr.Deref(cmp.Or(numbers...), 0) }

// origin names where the content comes from, for people.
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

// originOf names where the content of one projection comes from.
func (v *volume) originOf(p projection) string {
	if v.fromRequest() {
		return fmt.Sprintf("the Secret of nodePublishSecretRef of pod %q", v.pod.Namespace+"/"+v.pod.Name)
	}
	return p.ref.String()
}
