// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// Recover takes up the volumes that an earlier process published, from their records. It waits for no API server: what has changed
// meanwhile is refreshed by Run. Call it once, before the first Publish.
//
// A record counts only as far as the machine bears it out: its target must be one that kubelet could have given, and the tmpfs
// that it names must be mounted there. One whose mount is gone is dropped (after a reboot, all are); one that can't have come from
// this driver is moved aside.
func (m *Manager) Recover(ctx context.Context) error {
	records, bad, err := m.Records.Load()
	if err != nil {
		return err
	}
	m.metrics.badRecords.Add(float64(len(bad)))
	for _, err := range bad {
		klog.ErrorS(err, "A volume's record was not read; the volume is taken up again when kubelet republishes it")
	}
	failpoint.Hit("recover-loaded")
	for _, r := range records {
		if err := m.recover(ctx, r); err != nil {
			return err
		}
	}
	failpoint.Hit("recover-done")
	klog.InfoS("Recovered", "volumes", len(m.all()), "records", len(records), "bad", len(bad))
	return nil
}

func (m *Manager) recover(ctx context.Context, r record.Volume) error {
	unlock, err := m.locks.lock(ctx, r.VolumeID)
	if err != nil {
		return err
	}
	defer unlock()
	v := fromRecord(r)
	if err := m.check(v, r); err != nil {
		m.metrics.badRecords.Inc()
		klog.ErrorS(err, "A volume's record is not one that this driver writes; it was moved aside, and nothing was touched", "volume", r.VolumeID)
		failpoint.Hit("recover-set-aside")
		// Neither this nor what follows may keep the other volumes from being taken up.
		if err := m.Records.SetAside(r.VolumeID); err != nil {
			klog.ErrorS(err, "A volume's record could not be moved aside", "volume", r.VolumeID)
		}
		return nil
	}
	state, mounted, err := mountOf(v)
	if err != nil {
		klog.ErrorS(err, "The target of a volume can't be looked at; its record stays, and the volume is taken up when kubelet republishes it", "volume", v.id)
		return nil
	}
	failpoint.Hit("recover-looked")
	if !mounted {
		failpoint.Hit("recover-drop")
		klog.InfoS("Dropped the record of a volume that is not mounted any more", "volume", v.id, "target", v.target)
		m.removeRecord(v.id)
		return nil
	}
	m.put(v)
	m.quota.keep(v.id, heldBy(state))
	m.metrics.current(v.id, v.size)
	if v.watches() {
		m.watch(v)
	}
	failpoint.Hit("recover-watching")
	return nil
}

// check applies to a record the rules that its request once passed.
func (m *Manager) check(v *volume, r record.Volume) error {
	if err := m.CheckTarget(v.id, v.target, v.pod.UID); err != nil {
		return err
	}
	if errs := attributes.Validate(v.spec); len(errs) > 0 {
		return errs.ToAggregate()
	}
	if r.SecretRef == "" {
		return nil
	}
	if !v.fromRequest() {
		return fmt.Errorf("it names the Secret %q of a nodePublishSecretRef, and attributes that name other objects", r.SecretRef)
	}
	// The name goes into a request like that of any other object.
	named := v.spec
	named.Sources = slices.Clone(named.Sources)
	named.Sources[0].Object = attributes.Object{Kind: attributes.Secret, Name: r.SecretRef}
	return attributes.Validate(named).ToAggregate()
}

// mountOf looks at what is where the volume's record says, and reports whether it is the volume. An error means that this can't be told.
func mountOf(v *volume) (state tmpfs.State, mounted bool, err error) {
	point, err := tmpfs.OpenPoint(v.target)
	if err == nil {
		defer point.Close()
		state, err = point.Inspect()
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

// Collect forgets volumes whose pod is gone although Unpublish never came: those whose directory kubelet has removed. What the API
// server says of a pod is no reason; only the node knows whether its mounts are in use.
func (m *Manager) Collect(ctx context.Context) {
	for _, v := range m.all() {
		unlock, err := m.locks.lock(ctx, v.id)
		if err != nil {
			return
		}
		if m.get(v.id) == v && isGone(filepath.Dir(v.target)) {
			failpoint.Hit("collect-gone")
			klog.InfoS("The pod's directory is gone; forgetting its volume", "volume", v.id, "target", v.target)
			m.forget(v)
		}
		unlock()
	}
}

func isGone(dir string) bool {
	point, err := tmpfs.OpenPoint(filepath.Join(dir, "mount"))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	point.Close()
	return false
}
