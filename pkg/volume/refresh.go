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
		return nil // gone, or being published: that can take minutes, and this worker is not its own
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
	point, err := tmpfs.OpenPoint(v.target)
	if err != nil {
		m.stale(v, err)
		return nil
	}
	defer point.Close()
	failpoint.Hit("refresh-begin")
	content, err := m.content(v)
	if v.fromRequest() && m.mayBeBehind(v, content, err) {
		return nil // the next republish brings the content
	}
	if err := m.apply(v, point, content, err); worthRetry(err) {
		return err
	}
	return nil
}

// refreshSafely keeps a bug that one volume brings to light from taking down the others.
func (m *Manager) refreshSafely(ctx context.Context, id string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// What panicked could hold anything; its type must do.
			err = fmt.Errorf("refreshing panicked with a %T", p)
			klog.ErrorS(err, "The driver has a bug", "volume", id, "stack", string(debug.Stack()))
		}
	}()
	return m.refresh(ctx, id)
}

// worthRetry reports whether a refresh that failed may succeed without anything having changed. If the object is the reason, the next
// change of it is the time to try again; if the mount is gone, the next publish.
func worthRetry(err error) bool {
	return err != nil && !errors.Is(err, ErrPrecondition) && !errors.Is(err, tmpfs.ErrNotMounted) && !isSourceError(err)
}

func isSourceError(err error) bool {
	var e *source.Error
	return errors.As(err, &e)
}

// apply makes the files of a published volume show the content, unless they do. A failure leaves them as they are, and is what the
// volume is then stale for.
func (m *Manager) apply(v *volume, point *tmpfs.Point, content []source.Content, err error) error {
	if err == nil && slices.EqualFunc(content, v.applied, source.Content.SameVersion) {
		m.current(v, content, v.size)
		return nil
	}
	defer m.metrics.observe(&err)(opRefresh)
	if err != nil {
		m.stale(v, err)
		return err
	}
	changed, size, err := m.write(v, point, content)
	if err != nil {
		// Not current, even if the new version is visible: the next attempt must get as far as write, which puts the rest right.
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
func (m *Manager) write(v *volume, point *tmpfs.Point, content []source.Content) (changed bool, size int64, err error) {
	payload, err := v.payload(content, m.Limits)
	if err != nil {
		return false, 0, err
	}
	giveBack, err := m.quota.take(v.id, memory(payload))
	if err != nil {
		return false, 0, err
	}
	defer func() {
		if err != nil {
			giveBack()
		}
	}()
	clone, err := point.Clone(v.identity)
	if err != nil {
		return false, 0, err
	}
	// A clone that stayed open would keep the content in memory after the volume is unmounted.
	defer func() { err = errors.Join(err, clone.Close()) }()
	if err := failpoint.Error("refresh-cloned"); err != nil {
		return false, 0, err
	}
	if err := clone.Grow(room(payload), m.Features.NoSwap); err != nil {
		return false, 0, err
	}
	failpoint.Hit("refresh-write")
	changed, err = projector.Write(clone.Dir(), payload)
	if err != nil {
		return changed, 0, fmt.Errorf("refresh volume %s: %w", v.id, classify(err))
	}
	failpoint.Hit("refresh-written")
	return changed, payload.Size(), nil
}
