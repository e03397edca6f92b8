// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// Unpublish removes the volume from its target path and drops all state of the volume. An unknown volume, or one that
// is not mounted, is no error: kubelet repeats the call until it succeeds, and the pod stays in Terminating until then.
// Unpublish calls no API server, writes nothing, and does not wait for a refresh. A refresh that hangs in the kernel
// keeps the memory of the volume until it ends, and nothing else.
func (m *Manager) Unpublish(ctx context.Context, id, targetPath string) (err error) {
	unlock, err := m.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	defer m.metrics.observe(&err)(opUnpublish)
	v := m.get(id)
	if v != nil && v.targetPath != targetPath {
		return fmt.Errorf("%w: volume %s is published at %s, not at %s; nothing was unmounted",
			ErrPrecondition, id, v.targetPath, targetPath)
	}
	if v != nil {
		m.remove(v) // A refresh that fails from now on, because the mount goes away, is no failure.
	}
	if err := detach(targetPath); err != nil {
		if v != nil {
			m.put(v)
			m.queue.Add(v)
		}
		return fmt.Errorf("unpublish volume %s: %w", id, err)
	}
	if v != nil {
		m.forget(v)
	} else {
		m.removeRecord(id)
	}
	failpoint.Hit("unpublish-done")
	klog.FromContext(withVolume(ctx, id)).Info("Unpublished", "target", targetPath)
	return nil
}

// detach removes all mounts and the directory at the target path.
func detach(targetPath string) error {
	target, err := tmpfs.OpenTarget(targetPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return classify(err)
	}
	defer target.Close()
	if err := target.Unmount(); err != nil {
		return classify(err)
	}
	return target.Remove()
}
