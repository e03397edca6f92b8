// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// Recover takes over the volumes that an earlier process published, by their records. It does not wait for the API
// server: Run refreshes volumes whose objects have changed since. Call Recover once, before the first Publish.
//
// A record must agree with the machine: its target path must be a path that kubelet could have given, and the tmpfs of
// the record must be mounted there. Recover drops a record whose mount is gone (after a reboot, all mounts are gone),
// and
// moves a record aside that this driver can't have written.
func (m *Manager) Recover(ctx context.Context) error {
	records, bad, err := m.config.Records.Load()
	if err != nil {
		return err
	}
	m.metrics.badRecords.Add(float64(len(bad)))
	for _, err := range bad {
		klog.FromContext(ctx).Error(err,
			"A volume's record was not read; the driver takes the volume over when kubelet republishes it")
	}
	for _, r := range records {
		if err := m.recover(ctx, r); err != nil {
			return err
		}
	}
	klog.FromContext(ctx).Info("Recovered", "volumes", len(m.all()), "records", len(records), "bad", len(bad))
	return nil
}

func (m *Manager) recover(ctx context.Context, r record.Volume) error {
	unlock, err := m.locks.lock(ctx, r.VolumeID)
	if err != nil {
		return err
	}
	defer unlock()
	log := klog.FromContext(withVolume(ctx, r.VolumeID))
	v := fromRecord(r)
	if err := m.check(v); err != nil {
		m.metrics.badRecords.Inc()
		log.Error(err, "This driver can't have written a volume's record; the record was moved aside, and nothing else was "+
			"touched")
		// One bad record must not keep the driver from taking over the other volumes.
		if err := m.config.Records.SetAside(r.VolumeID); err != nil {
			log.Error(err, "A volume's record could not be moved aside")
		}
		return nil
	}
	state, mounted, err := mountOf(v)
	if err != nil {
		log.Error(err, "The target of a volume can't be inspected; its record stays, and the driver takes the volume over "+
			"when kubelet republishes it")
		return nil
	}
	if !mounted {
		log.Info("Dropped the record of a volume that is not mounted any more", "target", v.targetPath)
		m.removeRecord(v.id)
		return nil
	}
	v.share = m.quota.restore(v, state)
	v.unfinished = v.spec.Layout != attributes.LayoutLinks
	m.put(v)
	if v.watches() {
		m.subscribe(v, true)
	}
	// A worker completes the unfinished version, because a worker does not wait for the API server.
	if v.unfinished {
		m.queue.Add(v)
	}
	return nil
}

// check applies the rules for requests to a record. The request that made the record passed the same rules.
func (m *Manager) check(v *volume) error {
	if err := m.config.CheckTarget(v.id, v.targetPath, v.pod.UID); err != nil {
		return err
	}
	return attributes.Validate(v.spec).ToAggregate()
}

// mountOf inspects the target path of a volume's record and reports whether the volume is mounted there. An error means
// that this is unknown.
func mountOf(v *volume) (state tmpfs.State, mounted bool, err error) {
	target, err := tmpfs.OpenTarget(v.targetPath)
	if err == nil {
		defer target.Close()
		state, err = target.Inspect()
	}
	// A file that is no directory, or a path with a symbolic link, is no mount of this driver.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(classify(err), ErrPrecondition) {
		return tmpfs.State{}, false, nil
	}
	if err != nil {
		return tmpfs.State{}, false, err
	}
	return state, state.Mounted && state.Tmpfs && state.Identity == v.identity, nil
}

// Collect forgets volumes whose pod is gone without an Unpublish: volumes whose directory kubelet has removed. Collect
// does not ask the API server about the pod, because only the node knows whether the volume's mount is in use.
func (m *Manager) Collect() {
	for _, v := range m.all() {
		unlock, free := m.locks.tryLock(v.id)
		if !free {
			continue // A call for the volume is under way. The next collection checks the volume again.
		}
		if m.get(v.id) == v && isGone(filepath.Dir(v.targetPath)) {
			klog.InfoS("The pod's directory is gone; forgetting its volume", "volume", v.id, "target", v.targetPath)
			m.forget(v)
		}
		unlock()
	}
}

func isGone(dir string) bool {
	target, err := tmpfs.OpenTarget(filepath.Join(dir, "mount"))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	target.Close()
	return false
}
