// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// refresh brings the files of a volume up to its object. An error means: try again later.
func (m *Manager) refresh(ctx context.Context, id string) error {
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
		m.setStale(v, err)
		return nil
	}
	defer point.Close()
	if err := m.apply(v, point, func() (source.Content, error) { return m.content(v) }); worthRetry(err) {
		return err
	}
	return nil
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
func (m *Manager) apply(v *volume, point *tmpfs.Point, get func() (source.Content, error)) (err error) {
	content, err := get()
	if err == nil && content.SameVersion(v.applied) {
		m.setStale(v, nil)
		return nil
	}
	defer m.metrics.observe(opRefresh, &err)()
	changed := false
	if err == nil {
		changed, err = m.write(v, point, content)
	}
	// Not after an error, even if the new version is visible: the next attempt must get as far as write, which puts the rest right.
	if err == nil {
		v.applied = source.Content{UID: content.UID, ResourceVersion: content.ResourceVersion}
	}
	m.setStale(v, err)
	if changed {
		klog.InfoS("Refreshed", v.logFields()...)
	}
	return err
}

// write puts a new version into the volume, through a private clone of its mount.
func (m *Manager) write(v *volume, point *tmpfs.Point, content source.Content) (changed bool, err error) {
	payload, err := v.payload(content, m.Limits)
	if err != nil {
		return false, err
	}
	clone, err := point.Clone(v.identity)
	if err != nil {
		return false, err
	}
	// A clone that stayed open would keep the content in memory after the volume is unmounted.
	defer func() { err = errors.Join(err, clone.Close()) }()
	if err := clone.Grow(room(payload), m.Features.NoSwap); err != nil {
		return false, err
	}
	changed, err = projector.Write(clone.Dir(), payload)
	if err != nil {
		return changed, fmt.Errorf("refresh volume %s: %w", v.id, err)
	}
	return changed, nil
}

// setStale records, and logs when it changes, whether the files are known to be current.
func (m *Manager) setStale(v *volume, reason error) {
	was := v.stale
	v.stale = reason
	switch {
	case reason == nil && was != nil:
		klog.InfoS("Current again", v.logFields()...)
	case reason != nil && (was == nil || was.Error() != reason.Error()):
		klog.ErrorS(reason, "Not refreshed; the files stay as they are", v.logFields()...)
	}
	if (reason == nil) != (was == nil) {
		m.metrics.setStale(reason != nil)
	}
}
