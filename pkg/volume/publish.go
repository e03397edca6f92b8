// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"time"

	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// Publish makes the volume appear at its target, or, if it is there already, makes sure that it is current. The same request may
// come any number of times.
//
// If a first publish fails, nothing of it is left, or the error wraps ErrLeftover. If a later one fails to refresh a volume whose files
// are whole, that is no error here: the pod runs on with what it has, and kubelet must not be led to take it down.
func (m *Manager) Publish(ctx context.Context, req Request) (err error) {
	unlock, err := m.locks.lock(ctx, req.ID)
	if err != nil {
		return err
	}
	defer unlock()
	op, observed := opPublish, m.metrics.observe(&err)
	defer func() { observed(op) }()

	point, err := openTarget(req.Target)
	if err != nil {
		return err
	}
	defer point.Close()
	there, err := inspect(point)
	if err != nil {
		return err
	}

	v := m.get(req.ID)
	switch {
	case v != nil && v.target != req.Target:
		return fmt.Errorf("%w: volume %s is published at %s, not at %s", ErrPrecondition, req.ID, v.target, req.Target)
	case v != nil && there.Mounted && there.Identity == v.identity:
		op = opRepublish
		return m.republish(v, point, req)
	case there.Mounted:
		if err := checkOurs(req.Target, there); err != nil {
			return err
		}
		if v != nil {
			m.forget(v) // it may have watched another object
		}
		op = opRepublish
		return m.adopt(point, req, there)
	case v != nil:
		klog.InfoS("The mount of a published volume is gone; publishing it anew", "volume", v.id, "target", v.target)
		m.forget(v)
	}
	return m.publish(ctx, point, req)
}

// publish is the first publish of a volume: nothing is mounted at point.
func (m *Manager) publish(ctx context.Context, point *tmpfs.Point, req Request) (err error) {
	if err := req.CheckContent(); err != nil {
		return err
	}
	v := newVolume(req)
	var done undo
	attached := false
	defer func() {
		// Also after a panic, which goes on.
		if !attached {
			failpoint.Hit("publish-undo")
			err = done.all(err)
		}
	}()

	doubt, err := m.askPod(ctx, v)
	if err != nil {
		return err
	}
	if v.hasObjects() {
		before, now := m.watch(v)
		done.add(func() error { m.unwatch(v); return nil })
		// With a lower limit after a restart there can be too many, but not because of who brings none.
		if now > before && now > m.Limits.Objects {
			return fmt.Errorf("%w: %d objects would be watched, more than the %d that may (--max-watched-objects)", ErrExhausted, now, m.Limits.Objects)
		}
	}
	if err := failpoint.Error("publish-watching"); err != nil {
		return err
	}
	content := []source.Content{source.FromRequest(req.Secrets)}
	if v.fromRequest() {
		v.servedNow()
	} else {
		for _, object := range v.objects {
			m.Source.Wait(ctx, object)
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("wait for %s: %w", object, err)
			}
		}
		if content, err = m.content(v); err != nil {
			return err
		}
	}
	payload, err := v.payload(content, m.Limits)
	if err != nil {
		return err
	}
	giveBack, err := m.quota.take(v.id, memory(payload))
	if err != nil {
		return err
	}
	done.add(func() error { giveBack(); return nil })

	if err := point.Make(); err != nil {
		return classify(err)
	}
	done.add(point.Remove)
	mount, err := m.build(payload)
	if err != nil {
		return err
	}
	defer mount.Close()
	if err := failpoint.Error("publish-built"); err != nil {
		return err
	}
	if v.identity, err = mount.Identity(); err != nil {
		return err
	}
	v.size = payload.Size()
	// The record comes before the mount: a mount that nobody remembers would not be refreshed after a crash, a record of a mount that
	// never came is simply dropped.
	if err := m.Records.Save(v.toRecord()); err != nil {
		return err
	}
	done.add(func() error { return m.Records.Remove(v.id) })
	if err := failpoint.Error("publish-recorded"); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("publish volume %s: %w", v.id, err)
	}
	// The last step that can fail, and the first that anybody can see.
	if err := mount.Attach(point); err != nil {
		return err
	}
	attached = true
	m.current(v, content, v.size)
	m.put(v)
	// Only now: kubelet tries again after a failure, and the pod may tell then.
	if doubt != "" {
		m.tell(v, event.Warning, reasonOwnerUnknown,
			"the files of volume %q belong to root: uid is not set, and the pod does not tell (%s); set uid in volumeAttributes, or runAsUser in the pod", v.name(), doubt)
	}
	// No worker waited for this volume, so whatever came since the content was read is looked for now.
	if v.watches() {
		m.queue.Add(v.id)
	} else {
		m.unwatch(v)
	}
	failpoint.Hit("publish-done")
	klog.InfoS("Published", v.logFields("files", len(payload.Files))...)
	return nil
}

// build returns a detached, sealed mount that holds the payload.
func (m *Manager) build(payload projector.Payload) (*tmpfs.Detached, error) {
	mount, err := tmpfs.Create(tmpfs.Options{Limits: room(payload), NoSwap: m.Features.NoSwap, SELinuxContext: m.SELinuxContext})
	if err != nil {
		return nil, err
	}
	built := false
	defer func() {
		// Also after a panic: a descriptor that nobody closes would keep the content in memory.
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

// republish brings a published volume up to date. It never unmounts, and reports only that the request is for something else.
func (m *Manager) republish(v *volume, point *tmpfs.Point, req Request) error {
	if !v.spec.Equal(req.Spec) || v.pod.UID != req.Pod.UID {
		return fmt.Errorf("%w: volume %s at %s; delete the pod to publish it anew", ErrConflict, v.id, v.target)
	}
	if v.spec.Refresh == attributes.RefreshOff {
		return nil
	}
	failpoint.Hit("publish-again")
	content, err := m.content(v)
	if v.fromRequest() {
		v.servedNow()
		if sent := source.FromRequest(req.Secrets); m.mayBeBehind(v, content, err) && !sameData(content, sent) {
			content, err = []source.Content{sent}, nil
		}
	}
	m.apply(v, point, content, err)
	return nil
}

// halfway is how long what kubelet has read may be on its way here.
const halfway = 10 * time.Second

// mayBeBehind reports whether kubelet, which read the Secret from the API server before it sent it along, may know more of it than the driver:
// there is no word of the object, or what there is was old by then. A watch can be behind, and an immutable object is not watched.
func (m *Manager) mayBeBehind(v *volume, content []source.Content, err error) bool {
	if _, away := m.away(v); err != nil || away != nil {
		return true
	}
	served := v.served.Load()
	return served != nil && content[0].Seen.Before(served.Add(-halfway))
}

func sameData(content []source.Content, sent source.Content) bool {
	return len(content) == 1 && maps.EqualFunc(content[0].Data, sent.Data, bytes.Equal)
}

// adopt takes over a mount that this driver made but has no record of. What it holds is whole: it was when it was attached, and
// refresh replaces it whole.
func (m *Manager) adopt(point *tmpfs.Point, req Request, there tmpfs.State) error {
	v := newVolume(req)
	v.identity = there.Identity
	// Who owned the volume when it was published owns it still: the pod may not be readable now.
	v.user = &there.UID
	failpoint.Hit("publish-adopt")
	if err := m.Records.Save(v.toRecord()); err != nil {
		klog.ErrorS(err, "An adopted volume has no record; it will be adopted again after a restart", "volume", v.id)
	}
	m.put(v)
	m.quota.keep(v.id, heldBy(there))
	failpoint.Hit("publish-adopted")
	klog.InfoS("Adopted a mount without a record", v.logFields()...)
	if v.watches() {
		m.watch(v)
	}
	return m.republish(v, point, req)
}

// openTarget opens the place of the mount. Its parent is kubelet's to make, before it calls: where it is missing, kubelet and driver
// mean different directories, and one made here would be a volume that no pod sees.
func openTarget(target string) (*tmpfs.Point, error) {
	point, err := tmpfs.OpenPoint(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: the directory that is to hold %s does not exist; is --kubelet-root kubelet's root directory, mounted at the same path?", ErrPrecondition, target)
	}
	return point, classify(err)
}

func inspect(point *tmpfs.Point) (tmpfs.State, error) {
	state, err := point.Inspect()
	return state, classify(err)
}

// classify makes a target, or an object, that is not as it must be a precondition.
func classify(err error) error {
	for _, reason := range []error{tmpfs.ErrSymlink, tmpfs.ErrNotDirectory, tmpfs.ErrNotEmpty, projector.ErrBadPayload} {
		if errors.Is(err, reason) {
			return fmt.Errorf("%w: %w", ErrPrecondition, err)
		}
	}
	return err
}

// checkOurs is for a mount that is not known: is it one of this driver's at all?
func checkOurs(target string, state tmpfs.State) error {
	if ours, err := state.Ours(); ours || err != nil {
		return err
	}
	return fmt.Errorf("%w: something that is not this driver's is mounted at %s; unmount it", ErrPrecondition, target)
}

// undo is what a call did so far and how to take it back.
type undo []func() error

func (u *undo) add(step func() error) { *u = append(*u, step) }

// all takes everything back, the last first, and returns cause, with ErrLeftover if a step failed.
func (u undo) all(cause error) error {
	for i := len(u) - 1; i >= 0; i-- {
		if err := u[i](); err != nil {
			cause = fmt.Errorf("%w; %w: %w", cause, ErrLeftover, err)
		}
	}
	return cause
}

// askPod asks the API server for what the request leaves to the pod: who owns the files, if the attributes do not say, and the name
// behind a nodePublishSecretRef, so that it can be watched. If nobody says who owns them, root does, and doubt tells why.
//
// That the pod may not be read is an answer only where the driver needs no right, since kubelet brings the content. For all other volumes it
// can pass, like an API server that has just started and refuses everything (docs/decisions/0007-refused.md), and an owner stays.
func (m *Manager) askPod(ctx context.Context, v *volume) (doubt string, err error) {
	if v.spec.UID != nil && !v.fromRequest() {
		return "", nil
	}
	pod, err := m.Source.Pod(ctx, v.pod.Namespace, v.pod.Name, v.pod.UID)
	switch {
	case err == nil:
	case v.spec.UID == nil && !(v.fromRequest() && errors.Is(err, source.ErrForbidden)):
		return "", fmt.Errorf("find out who owns the files, since uid is not set: %w", err)
	default:
		klog.V(2).InfoS("The pod can't be read; its volume goes without what it would tell", "volume", v.id, "reason", err)
	}
	v.user = pod.User
	if name := pod.SecretRefs[v.name()]; v.fromRequest() && name != "" {
		v.findObjects(name)
	}
	switch {
	case v.spec.UID != nil || v.user != nil:
		return "", nil
	case err != nil:
		return err.Error(), nil
	}
	return "its containers do not all have the same runAsUser", nil
}
