// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// refresh brings the files of a volume up to date with its objects, or with the last request. After an error, the
// caller repeats the refresh later.
func (m *Manager) refresh(ctx context.Context, v *volume) error {
	if m.get(v.id) != v || v.spec.Refresh == attributes.RefreshOff {
		return nil // The volume is unpublished, or it does not follow its objects.
	}
	finished, err := m.finish(v)
	switch {
	case err != nil:
	case v.isPaused(), finished && m.isUnanswered(v): // the answer queues the volume
		return nil
	default:
		err = m.show(ctx, v)
	}
	if m.get(v.id) != v {
		return nil // The volume was unpublished in the meantime.
	}
	if errors.Is(err, ErrExhausted) {
		m.pause(v)
	}
	if err != nil {
		// The volume is not current even if the new version is visible: the next attempt must reach write, which completes
		// the version.
		m.stale(ctx, v, err)
	}
	if worthRetry(err) {
		return err
	}
	return nil
}

// worthRetry reports whether the failed refresh may succeed without a change. If the object is the reason, the next
// change of the object repeats the refresh. If the mount is gone or a limit is reached, the next publish repeats it.
func worthRetry(err error) bool {
	var unreadable *source.Error
	return err != nil && !errors.Is(err, ErrPrecondition) && !errors.Is(err, tmpfs.ErrNotMounted) &&
		!errors.Is(err, ErrExhausted) && !errors.Is(err, fs.ErrNotExist) && !errors.As(err, &unreadable)
}

// show writes the content of a published volume to its files, unless they show it already. If show fails, the files
// stay as they are.
func (m *Manager) show(ctx context.Context, v *volume) (err error) {
	content, err := m.latest(v)
	now := v.snapshot()
	if err == nil && now.shows(content) {
		m.current(ctx, v, content, now.size)
		return nil
	}
	if err == nil && content == nil {
		return nil // No republish has come since the driver started.
	}
	defer m.metrics.observe(&err)(opRefresh)
	if err != nil {
		return err
	}
	begun := time.Now()
	defer func() { v.wrote(time.Since(begun), v.share.volumes()) }()
	changed, size, err := m.write(v, content)
	if err != nil {
		return err
	}
	failpoint.Hit("refresh-done")
	if m.get(v.id) != v {
		return nil // The volume was unpublished in the meantime.
	}
	m.current(ctx, v, content, size)
	if changed {
		klog.FromContext(ctx).Info("Refreshed", v.logFields()...)
	}
	return nil
}

// finish completes a version that a killed process or a failed refresh may have left half visible. finished is false if
// the volume has no unfinished version.
func (m *Manager) finish(v *volume) (finished bool, err error) {
	if !v.unfinished {
		return false, nil
	}
	err = v.open(func(clone *tmpfs.DetachedMount) error { return projector.Finish(clone.Dir(), layoutOf(v.spec)) })
	if err != nil {
		return false, fmt.Errorf("complete the last version of volume %s: %w", v.id, err)
	}
	v.unfinished = false
	return true, nil
}

// isUnanswered reports whether the API server has not yet answered about an object that the volume follows.
func (m *Manager) isUnanswered(v *volume) bool {
	_, err := m.latest(v)
	return errors.Is(err, source.ErrUnavailable)
}

// write writes a new version into the volume.
func (m *Manager) write(v *volume, content []projected) (changed bool, size int64, err error) {
	payload, err := v.payload(content, m.config.Limits)
	if err != nil {
		return false, 0, err
	}
	undo, err := v.share.resize(payload.Memory(), v.heldBytes(content))
	if err != nil {
		return false, 0, err
	}
	err = v.open(func(clone *tmpfs.DetachedMount) (err error) {
		if err := failpoint.Error("refresh-cloned"); err != nil {
			return err
		}
		if err := clone.Grow(m.limitsOf(payload), m.config.Features.NoSwap); err != nil {
			return err
		}
		if changed, err = projector.Write(clone.Dir(), payload); err != nil {
			v.unfinished = changed
			return fmt.Errorf("refresh volume %s: %w", v.id, classify(err))
		}
		return nil
	})
	if err != nil {
		undo()
		return changed, 0, err
	}
	return changed, payload.Size(), nil
}

// open calls use with a private, writable clone of the volume's mount.
func (v *volume) open(use func(*tmpfs.DetachedMount) error) (err error) {
	target, err := tmpfs.OpenTarget(v.targetPath)
	if err != nil {
		return classify(err)
	}
	defer target.Close()
	clone, err := target.Clone(v.identity)
	if err != nil {
		return err
	}
	// A clone that stayed open would keep the content in memory after the volume is unmounted.
	defer func() { err = errors.Join(err, clone.Close()) }()
	return use(clone)
}
