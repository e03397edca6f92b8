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

// Unpublish takes the volume away from target, with all that is known of it. A volume that is not known, or not there, is no error:
// kubelet asks until it gets its yes, and the pod does not go before. It asks no API server and needs to write nothing.
func (m *Manager) Unpublish(ctx context.Context, id, target string) (err error) {
	unlock, err := m.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	defer m.metrics.observe(&err)(opUnpublish)
	v := m.get(id)
	if v != nil && v.target != target {
		return fmt.Errorf("%w: volume %s is published at %s, not at %s; nothing was unmounted", ErrPrecondition, id, v.target, target)
	}
	if err := failpoint.Error("unpublish-begin"); err != nil {
		return err
	}
	if err := detach(target); err != nil {
		return fmt.Errorf("unpublish volume %s: %w", id, err)
	}
	failpoint.Hit("unpublish-detached")
	if v != nil {
		m.forget(v)
	} else {
		m.removeRecord(id)
	}
	failpoint.Hit("unpublish-done")
	klog.InfoS("Unpublished", "volume", id, "target", target)
	return nil
}

// detach leaves nothing at target.
func detach(target string) error {
	point, err := tmpfs.OpenPoint(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return classify(err)
	}
	defer point.Close()
	if err := point.Unmount(); err != nil {
		return classify(err)
	}
	return point.Remove()
}
