// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"

	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// refresh brings the files of a volume up to its objects. An error means: try again later.
func (m *Manager) refresh(ctx context.Context, id string) error {
	if m.get(id) == nil {
		return nil // unpublished, or being published, which can take minutes: this worker has other volumes to refresh
	}
	unlock, err := m.locks.lock(ctx, id)
	if err != nil {
		return nil // the driver is stopping
	}
	defer unlock()
	v := m.get(id)
	if v == nil || !v.watches() {
		return nil
	}
	target, err := tmpfs.OpenTarget(v.targetPath)
	if err != nil {
		m.stale(v, err)
		return nil
	}
	defer target.Close()
	if err := m.showObjects(v, target); worthRetry(err) {
		return err
	}
	return nil
}

// refreshSafely keeps a panic of one volume's refresh from ending the driver.
func (m *Manager) refreshSafely(ctx context.Context, id string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// The value could hold anything; the log gets its type alone.
			err = fmt.Errorf("refreshing panicked with a %T", p)
			klog.ErrorS(err, "The driver has a bug", "volume", id, "stack", string(debug.Stack()))
		}
	}()
	return m.refresh(ctx, id)
}

// worthRetry reports whether a refresh that failed may succeed without a change of anything. If the object is the
// reason, its next change is the time to try again; if the mount is gone, the next publish.
func worthRetry(err error) bool {
	var unreadable *source.Error
	return err != nil && !errors.Is(err, ErrPrecondition) && !errors.Is(err, tmpfs.ErrNotMounted) && !errors.As(err, &unreadable)
}

// showObjects makes the files of a published volume show what its objects hold now.
func (m *Manager) showObjects(v *volume, target *tmpfs.Target) (err error) {
	content, err := m.content(v)
	if err != nil {
		m.metrics.observe(&err)(opRefresh)
		m.stale(v, err)
		return err
	}
	return m.show(v, target, content)
}

// show makes the files of a published volume show the content, unless they do. A failure leaves the files as they are,
// and the volume is stale because of it.
func (m *Manager) show(v *volume, target *tmpfs.Target, content []projected) (err error) {
	now := v.snapshot()
	if slices.EqualFunc(content, now.versions, projected.sameVersion) && now.versions != nil {
		m.current(v, content, now.size)
		return nil
	}
	defer m.metrics.observe(&err)(opRefresh)
	changed, size, err := m.write(v, target, content)
	if err != nil {
		// Not current, even if the new version is visible: the next attempt must get as far as write, which completes it.
		m.stale(v, err)
		return err
	}
	m.current(v, content, size)
	failpoint.Hit("refresh-done")
	if changed {
		klog.InfoS("Refreshed", v.logFields()...)
	}
	return nil
}

// write puts a new version into the volume, through a private clone of its mount.
func (m *Manager) write(v *volume, target *tmpfs.Target, content []projected) (changed bool, size int64, err error) {
	payload, err := v.payload(content, m.config.Limits)
	if err != nil {
		return false, 0, err
	}
	undo, err := v.share.resize(payload.Memory(), heldBytes(content))
	if err != nil {
		return false, 0, err
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	clone, err := target.Clone(v.identity)
	if err != nil {
		return false, 0, err
	}
	// A clone that stayed open would keep the content in memory after the volume is unmounted.
	defer func() { err = errors.Join(err, clone.Close()) }()
	if err := failpoint.Error("refresh-cloned"); err != nil {
		return false, 0, err
	}
	if err := clone.Grow(limitsOf(payload), m.config.Features.NoSwap); err != nil {
		return false, 0, err
	}
	changed, err = projector.Write(clone.Dir(), payload)
	if err != nil {
		return changed, 0, fmt.Errorf("refresh volume %s: %w", v.id, classify(err))
	}
	return changed, payload.Size(), nil
}
