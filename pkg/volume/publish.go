// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// Publish publishes the volume at its target path. If the volume is published already, Publish queues a refresh of it.
// The same request may come any number of times.
//
// If a first publish fails, nothing of the volume is left, or the error wraps ErrLeftover. A failed refresh is no error
// of Publish: the pod keeps its files, and kubelet must not unmount them.
func (m *Manager) Publish(ctx context.Context, req Request) (err error) {
	unlock, err := m.locks.lock(ctx, req.ID)
	if err != nil {
		return err
	}
	defer unlock()
	ctx = withVolume(ctx, req.ID)
	op, observed := opPublish, m.metrics.observe(&err)
	defer func() { observed(op) }()

	target, err := openTarget(req.TargetPath)
	if err != nil {
		return err
	}
	defer target.Close()
	state, err := inspect(target)
	if err != nil {
		return err
	}

	v := m.get(req.ID)
	switch {
	case v != nil && v.targetPath != req.TargetPath:
		return fmt.Errorf("%w: volume %s is published at %s, not at %s",
			ErrPrecondition, req.ID, v.targetPath, req.TargetPath)
	case v != nil && state.Mounted && state.Identity == v.identity:
		op = opRepublish
		return m.republish(v, req)
	case state.Mounted:
		if err := checkOurs(req.TargetPath, state); err != nil {
			return err
		}
		if v != nil {
			m.forget(v) // it may have subscribed to another object
		}
		op = opRepublish
		return m.adopt(ctx, req, state)
	case v != nil:
		klog.FromContext(ctx).Info("The mount of a published volume is gone; publishing it anew", "target", v.targetPath)
		m.forget(v)
	}
	// A directory that exists is left from a mount that is gone, for example after a reboot.
	return m.publish(ctx, target, req, v != nil || state.Exists)
}

// publish publishes a volume at a target without a mount. shown: the pod may have seen content of the volume.
func (m *Manager) publish(ctx context.Context, target *tmpfs.Target, req Request, shown bool) (err error) {
	if err := req.CheckContent(); err != nil {
		return err
	}
	v := newVolume(req)
	var done undo
	attached := false
	defer func() {
		// This also runs after a panic, which continues afterwards.
		if !attached {
			err = done.all(err)
		}
	}()

	ownerUnknown, err := m.resolve(ctx, v)
	if err != nil {
		return err
	}
	if v.share, err = m.quota.reserve(v); err != nil {
		return err
	}
	done.add(func() error { v.share.release(); return nil })
	content, err := m.firstContent(ctx, v, req, shown, &done)
	if err != nil {
		return err
	}
	payload, err := v.payload(content, m.config.Limits)
	if err != nil {
		return err
	}
	if err := v.checkPaths(content, payload); err != nil {
		return err
	}
	if _, err := v.share.resize(payload.Memory(), v.heldBytes(content)); err != nil {
		return err
	}
	if err := m.attach(ctx, v, target, payload, &done); err != nil {
		return err
	}
	attached = true
	m.current(ctx, v, content, payload.Size())
	m.put(v)
	// The Event comes only now: kubelet repeats a failed publish, and by then the pod may set the user.
	if ownerUnknown != "" {
		m.tell(v, event.Warning, reasonOwnerUnknown,
			"the files of volume %q belong to root: %s; set uid in volumeAttributes", v.name(), ownerUnknown)
	}
	if v.watches() {
		m.queueIfChanged(v)
	}
	failpoint.Hit("publish-done")
	klog.FromContext(ctx).Info("Published", v.logFields("files", len(payload.Files))...)
	return nil
}

// resolve completes the description of the volume with information that is not in the request: the volume of the pod
// that the attribute "volume" names, the owner of the files if the attributes do not set it, and the node's allocatable
// if a file shows it. If neither the attributes nor the pod set the owner, the owner is root, and ownerUnknown is the
// reason.
//
// The driver reads nothing for a volume with nodePublishSecretRef, because such a volume requires no access to the API
// server. For all other volumes, an error fails the publish: a refusal may be temporary, for example just after the
// start of the API server (docs/decisions/0007-refused.md), but the owner of a published volume is permanent.
func (m *Manager) resolve(ctx context.Context, v *volume) (ownerUnknown string, err error) {
	ownerKnown := v.spec.UID != nil || v.user != nil
	switch {
	case v.fromRequest() && !ownerKnown:
		return "uid is not set, and for a volume with nodePublishSecretRef the driver does not read the pod", nil
	case v.spec.Volume == "" && ownerKnown:
		return "", nil
	}
	pod, err := m.config.Source.Pod(ctx, v.pod.Namespace, v.pod.Name, v.pod.UID)
	if err != nil {
		return "", fmt.Errorf("read the pod, which describes volume %q: %w", v.name(), err)
	}
	spec, errs := v.spec.Describe(&pod.Spec, v.name())
	if len(errs) > 0 {
		return "", fmt.Errorf("%w: %w", ErrInvalid, errs.ToAggregate())
	}
	v.setSpec(spec)
	if spec.ShowsAllocatable() {
		if err := m.readAllocatable(ctx, v); err != nil {
			return "", err
		}
	}
	if ownerKnown || spec.DefaultUser != nil {
		return "", nil
	}
	if v.user = attributes.PodUser(&pod.Spec, v.name()); v.user == nil {
		ownerUnknown = "uid is not set, and the containers that mount the volume do not have one runAsUser in common"
	}
	return ownerUnknown, nil
}

func (m *Manager) readAllocatable(ctx context.Context, v *volume) error {
	list, err := m.config.Source.Allocatable(ctx)
	if err != nil {
		return fmt.Errorf("read the node's allocatable, which a file of volume %q shows where a container sets no limit: %w",
			v.name(), err)
	}
	v.allocatable = map[string]string{}
	for name, quantity := range list {
		v.allocatable[string(name)] = quantity.String()
	}
	return nil
}

// firstContent returns the content of a publish: the content of the request, or the content of the objects. It
// subscribes the volume to its objects if the volume follows them. shown: the pod may have seen content of the objects
// already.
func (m *Manager) firstContent(
	ctx context.Context, v *volume, req Request, shown bool, done *undo,
) ([]projected, error) {
	switch {
	case v.fromRequest():
		return v.contentOf(req), nil
	case !v.watches():
		return v.contentFrom(func(ref source.Ref) (source.Content, error) { return m.config.Source.Read(ctx, ref) })
	}
	m.subscribe(v, shown)
	done.add(func() error { m.unsubscribe(v); return nil })
	if err := failpoint.Error("publish-watching"); err != nil {
		return nil, err
	}
	for _, p := range v.projections {
		if err := m.wait(ctx, p.ref); err != nil {
			return nil, err
		}
	}
	content, err := m.content(v)
	if refused := undeclared(err); refused != nil {
		return m.contentOfNewPod(ctx, v, refused)
	}
	return content, err
}

// contentOfNewPod returns the content of a volume after the Node authorizer has refused one of its objects. The Node
// authorizer learns of a pod a moment later than kubelet, and of all objects that the pod declares at the same time as
// of the pod. Therefore the volume waits once, until the driver may read the pod. Then the driver reads each refused
// object again, and a second refusal is final.
func (m *Manager) contentOfNewPod(ctx context.Context, v *volume, refused *source.Error) ([]projected, error) {
	if _, err := m.config.Source.Pod(ctx, v.pod.Namespace, v.pod.Name, v.pod.UID); err != nil {
		return nil, fmt.Errorf("read the pod, which declares %s: %w", refused.Ref, err)
	}
	for {
		again := refused.Ref
		m.config.Source.Retry(again)
		if err := m.wait(ctx, again); err != nil {
			return nil, err
		}
		content, err := m.content(v)
		if refused = undeclared(err); refused == nil || refused.Ref == again {
			return content, err
		}
	}
}

// wait waits until the source has an answer about an object.
func (m *Manager) wait(ctx context.Context, ref source.Ref) error {
	m.config.Source.Wait(ctx, ref)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("wait for %s: %w", ref, err)
	}
	return nil
}

// undeclared returns the Node authorizer's refusal that err wraps, or nil.
func undeclared(err error) *source.Error {
	var refused *source.Error
	if errors.As(err, &refused) && refused.Undeclared {
		return refused
	}
	return nil
}

// attach makes the mount, records the volume, and attaches the mount at target.
func (m *Manager) attach(
	ctx context.Context, v *volume, target *tmpfs.Target, payload projector.Payload, done *undo,
) error {
	if err := target.Mkdir(); err != nil {
		return classify(err)
	}
	done.add(target.Remove)
	mount, err := m.build(payload)
	if err != nil {
		return err
	}
	defer mount.Close()
	if v.identity, err = mount.Identity(); err != nil {
		return err
	}
	v.shown.size = payload.Size()
	// The record comes before the mount: a mount without a record would not be refreshed after a crash, whereas Recover
	// drops a record without a mount.
	if err := m.config.Records.Save(v.toRecord()); err != nil {
		return err
	}
	done.add(func() error { return m.config.Records.Remove(v.id) })
	if err := failpoint.Error("publish-recorded"); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("publish volume %s: %w", v.id, err)
	}
	// This is the last step that can fail, and the first that others can see.
	return mount.Attach(target)
}

// build returns a detached, sealed mount that holds the payload.
func (m *Manager) build(payload projector.Payload) (*tmpfs.DetachedMount, error) {
	mount, err := tmpfs.Create(tmpfs.Options{
		Limits: m.limitsOf(payload), NoSwap: m.config.Features.NoSwap, SELinuxContext: m.config.SELinuxContext,
	})
	if err != nil {
		return nil, err
	}
	built := false
	defer func() {
		// This also runs after a panic: a descriptor that stays open would keep the content in memory.
		if !built {
			mount.Close()
		}
	}()
	if _, err := projector.Write(mount.Dir(), payload); err != nil {
		return nil, classify(err)
	}
	if err := mount.Seal(); err != nil {
		return nil, err
	}
	built = true
	return mount, nil
}

// limitsOf returns the limits of a tmpfs for the payload.
func (m *Manager) limitsOf(payload projector.Payload) tmpfs.Limits {
	bytes, inodes := payload.Room()
	if m.config.Features.SELinux && m.config.SELinuxContext == "" {
		// Without context=, each file has a label of its own. Since Linux 6.6, tmpfs counts the labels as inodes, too: about
		// ten as one (simple_xattr_space in fs/xattr.c, BOGO_INODE_SIZE in mm/shmem.c).
		inodes += inodes / 4
	}
	return tmpfs.Limits{Bytes: bytes, Inodes: inodes}
}

// republish queues a refresh of a published volume. It never unmounts, and it does not wait for work on the files. Its
// only error is that the request has other attributes.
func (m *Manager) republish(v *volume, req Request) error {
	if !v.spec.SameRequest(req.Spec) || v.pod.UID != req.Pod.UID {
		return fmt.Errorf("%w: volume %s at %s; delete the pod to publish it anew", ErrConflict, v.id, v.targetPath)
	}
	if v.spec.Refresh == attributes.RefreshOff {
		return nil
	}
	if v.fromRequest() {
		v.request(req)
	}
	// After a resume, the first answer to the new subscription queues the volume.
	if !m.resume(v) {
		m.queue.Add(v)
	}
	return nil
}

// adopt takes over a mount that this driver made and has no record of.
func (m *Manager) adopt(ctx context.Context, req Request, state tmpfs.State) error {
	v := newVolume(req)
	v.identity = state.Identity
	// The owner of a published volume never changes.
	v.user = &state.UID
	if _, err := m.resolve(ctx, v); err != nil {
		// Kubelet has to unpublish the volume even if no later publish succeeds.
		return fmt.Errorf("%w; %w: the mount", err, ErrLeftover)
	}
	if err := m.config.Records.Save(v.toRecord()); err != nil {
		klog.FromContext(ctx).Error(err, "An adopted volume has no record; it will be adopted again after a restart")
	}
	v.share = m.quota.restore(v, state)
	v.unfinished = v.spec.Layout != attributes.LayoutLinks
	m.put(v)
	klog.FromContext(ctx).Info("Adopted a mount without a record", v.logFields()...)
	if v.watches() {
		m.subscribe(v, true)
	}
	return m.republish(v, req)
}

// openTarget opens the target path. Kubelet makes the parent directory before the call. If the parent is missing,
// kubelet
// and the driver use different root directories, and a volume in a directory made here would be in no pod.
func openTarget(path string) (*tmpfs.Target, error) {
	target, err := tmpfs.OpenTarget(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the directory that is to hold %s does not exist; "+
			"is --kubelet-root kubelet's root directory, mounted at the same path?", ErrPrecondition, path)
	}
	return target, classify(err)
}

func inspect(target *tmpfs.Target) (tmpfs.State, error) {
	state, err := target.Inspect()
	return state, classify(err)
}

// classify turns the error of a target or an object in a wrong state into an ErrPrecondition.
func classify(err error) error {
	for _, reason := range []error{tmpfs.ErrSymlink, tmpfs.ErrNotDirectory, tmpfs.ErrNotEmpty, projector.ErrBadPayload} {
		if errors.Is(err, reason) {
			return fmt.Errorf("%w: %w", ErrPrecondition, err)
		}
	}
	return err
}

// checkOurs returns an error unless the mount at a target without a known volume was made by this driver.
func checkOurs(targetPath string, state tmpfs.State) error {
	if ours, err := state.Ours(); ours || err != nil {
		return err
	}
	return fmt.Errorf("%w: something that is not this driver's is mounted at %s; unmount it", ErrPrecondition, targetPath)
}

// undo is the list of functions that revert the steps of a call so far.
type undo []func() error

func (u *undo) add(step func() error) { *u = append(*u, step) }

// all reverts the steps, the last one first. It returns cause, joined with ErrLeftover if reverting a step failed.
func (u undo) all(cause error) error {
	for _, step := range slices.Backward(u) {
		if err := step(); err != nil {
			cause = fmt.Errorf("%w; %w: %w", cause, ErrLeftover, err)
		}
	}
	return cause
}
