// SPDX-License-Identifier: Apache-2.0

package volume

import (
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

// refresh brings the files of a volume up to its objects, or to the last request. An error means: try again later.
func (m *Manager) refresh(v *volume) error {
	if m.get(v.id) != v || v.spec.Refresh == attributes.RefreshOff || v.isPaused() {
		return nil // unpublished, or not to be refreshed now
	}
	err := m.show(v)
	if m.get(v.id) != v {
		return nil // unpublished meanwhile
	}
	if errors.Is(err, ErrExhausted) {
		m.pause(v)
	}
	if err != nil {
		// Not current, even if the new version is visible: the next attempt must get as far as write, which completes it.
		m.stale(v, err)
	}
	if worthRetry(err) {
		return err
	}
	return nil
}

// worthRetry reports whether a refresh that failed may succeed without a change of anything. If the object is the
// reason, its next change is the time to try again; if the mount is gone, or a limit is reached, the next publish.
func worthRetry(err error) bool {
	var unreadable *source.Error
	return err != nil && !errors.Is(err, ErrPrecondition) && !errors.Is(err, tmpfs.ErrNotMounted) &&
		!errors.Is(err, ErrExhausted) && !errors.Is(err, fs.ErrNotExist) && !errors.As(err, &unreadable)
}

// show makes the files of a published volume show its content, unless they do. A failure leaves the files as they are.
func (m *Manager) show(v *volume) (err error) {
	content, err := m.latest(v)
	now := v.snapshot()
	if err == nil && now.shows(content) {
		m.current(v, content, now.size)
		return nil
	}
	if err == nil && content == nil {
		return nil // no republish came since the driver started
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
		return nil // unpublished meanwhile
	}
	m.current(v, content, size)
	if changed {
		klog.InfoS("Refreshed", v.logFields()...)
	}
	return nil
}

// write puts a new version into the volume, through a private clone of its mount.
func (m *Manager) write(v *volume, content []projected) (changed bool, size int64, err error) {
	target, err := tmpfs.OpenTarget(v.targetPath)
	if err != nil {
		return false, 0, classify(err)
	}
	defer target.Close()
	payload, err := v.payload(content, m.config.Limits)
	if err != nil {
		return false, 0, err
	}
	undo, err := v.share.resize(payload.Memory(), v.heldBytes(content))
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
	if err := clone.Grow(m.limitsOf(payload), m.config.Features.NoSwap); err != nil {
		return false, 0, err
	}
	changed, err = projector.Write(clone.Dir(), payload)
	if err != nil {
		return changed, 0, fmt.Errorf("refresh volume %s: %w", v.id, classify(err))
	}
	return changed, payload.Size(), nil
}
