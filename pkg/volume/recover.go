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

// Recover takes over the volumes that an earlier process published, from their records. It waits for no API server: Run
// refreshes what has changed meanwhile. Call it once, before the first Publish.
//
// A record must agree with the machine: its target path must be one that kubelet could have given, and the tmpfs that
// it names must be mounted there. A record whose mount is gone is dropped (after a reboot, all are); a record that this
// driver can't have written is moved aside.
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
	if v.unfinished { // a worker waits for no API server
		m.queue.Add(v)
	}
	return nil
}

// check applies the rules to a record that its request passed when it was made.
func (m *Manager) check(v *volume) error {
	if err := m.config.CheckTarget(v.id, v.targetPath, v.pod.UID); err != nil {
		return err
	}
	return attributes.Validate(v.spec).ToAggregate()
}

// mountOf inspects the target of a volume's record and reports whether the volume is mounted there. An error means that
// this is not known.
func mountOf(v *volume) (state tmpfs.State, mounted bool, err error) {
	target, err := tmpfs.OpenTarget(v.targetPath)
	if err == nil {
		defer target.Close()
		state, err = target.Inspect()
	}
	// What is no directory, or behind a link, is no mount of ours.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(classify(err), ErrPrecondition) {
		return tmpfs.State{}, false, nil
	}
	if err != nil {
		return tmpfs.State{}, false, err
	}
	return state, state.Mounted && state.Tmpfs && state.Identity == v.identity, nil
}

// Collect forgets volumes whose pod is gone although Unpublish never came: volumes whose directory kubelet has removed.
// What the API server says of a pod is no reason to forget a volume: only the node knows whether its mounts are in use.
func (m *Manager) Collect() {
	for _, v := range m.all() {
		unlock, free := m.locks.tryLock(v.id)
		if !free {
			continue // a call for the volume is under way; the next collection looks again
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
