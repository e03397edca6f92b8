// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/status"
)

// The reasons of the Events that a pod gets, besides kubelet's own FailedMount.
const (
	reasonRefreshFailed = "VolumeRefreshFailed"
	reasonObjectMissing = "VolumeObjectMissing"
	reasonRecovered     = "VolumeRefreshRecovered"
	reasonOwnerUnknown  = "VolumeOwnerUnknown"
)

// snapshot returns what the files of the volume show now.
func (v *volume) snapshot() shown {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.shown
}

// current records that the files show content.
func (m *Manager) current(ctx context.Context, v *volume, content []projected, size int64) {
	versions := make([]projected, 0, len(content))
	for _, p := range content {
		versions = append(versions, projected{p.projection, p.content.Version()})
	}
	_, away := m.outage(v)
	v.mu.Lock()
	was := v.shown
	v.shown = shown{versions: versions, size: size, refreshed: was.refreshed}
	if away == nil {
		v.shown.refreshed = time.Now()
	}
	v.mu.Unlock()
	if was.stale == nil {
		return
	}
	klog.FromContext(ctx).Info("Current again", v.logFields()...)
	if was.staleEventSent {
		m.tell(v, event.Normal, reasonRecovered, "the files of volume %q show %s again", v.name(), v.origin())
	}
}

// stale records that the files may be outdated, and the reason. Each new reason makes one Event.
func (m *Manager) stale(ctx context.Context, v *volume, reason error) {
	m.metrics.failed(opRefresh, reason)
	// An outage makes no Event, because it concerns all volumes at once, and the owner of the pod could do nothing about
	// it. tellStalled sends the Event about a stall.
	sendEvent := !errors.Is(reason, source.ErrUnavailable) && !errors.Is(reason, errStalled)
	v.mu.Lock()
	was := v.shown
	v.shown.stale = reason
	if was.stale == nil {
		v.shown.staleSince = time.Now()
	}
	same := was.stale != nil && was.stale.Error() == reason.Error()
	v.shown.staleEventSent = was.staleEventSent || sendEvent
	v.mu.Unlock()
	if same {
		return
	}
	klog.FromContext(ctx).Error(reason, "Not refreshed; the files stay as they are", v.logFields()...)
	if !sendEvent {
		return
	}
	why := reasonRefreshFailed
	if errors.Is(reason, source.ErrNotFound) {
		why = reasonObjectMissing
	}
	m.tellStale(v, why, reason)
}

// tellStalled sends the Event about a refresh that has stalled, unless the refresh has ended.
func (m *Manager) tellStalled(v *volume) {
	if m.get(v.id) != v {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock() // Unlocking after the Event makes an Event about the end of the stall come later.
	if errors.Is(v.shown.stale, errStalled) {
		v.shown.staleEventSent = true
		m.tellStale(v, reasonRefreshFailed, errStalled)
	}
}

func (m *Manager) tellStale(v *volume, why string, reason error) {
	m.tell(v, event.Warning, why, "the files of volume %q stay as they are: %v", v.name(), reason)
}

// outage returns since when and why the volume may be outdated because the source has lost contact with an object of
// the volume; a zero time and nil if it has not. It takes no lock.
func (m *Manager) outage(v *volume) (since time.Time, why error) {
	if !v.watches() {
		return time.Time{}, nil
	}
	for _, p := range v.projections {
		if s, err := m.config.Source.Outage(p.ref); err != nil && (why == nil || s.Before(since)) {
			since, why = s, err
		}
	}
	return since, why
}

// staleness returns since when and why the files may be outdated; a zero time and nil if they are current.
func (m *Manager) staleness(v *volume) (since time.Time, why error) {
	if s := v.snapshot(); s.stale != nil {
		return s.staleSince, s.stale
	}
	return m.outage(v)
}

func (m *Manager) tell(v *volume, kind event.Type, reason, format string, args ...any) {
	if m.config.Events != nil {
		m.config.Events(event.Event{Pod: event.Pod(v.pod), Volume: v.name(), Type: kind, Reason: reason,
			Message: fmt.Sprintf(format, args...)})
	}
}

// withVolume returns a context whose logger names the volume.
func withVolume(ctx context.Context, id string) context.Context {
	return klog.NewContext(ctx, klog.LoggerWithValues(klog.FromContext(ctx), "volume", id))
}

// logFields returns the fields of a volume that a log may show in addition to those of withVolume: never the request,
// and never content.
func (v *volume) logFields(more ...any) []any {
	uid, gid := v.owner()
	return append([]any{
		"pod", klog.KRef(v.pod.Namespace, v.pod.Name), "object", v.origin(), "resourceVersion", v.snapshot().version(),
		"uid", uid, "gid", gid,
	}, more...)
}

// Status returns the status of all volumes, sorted by pod and name. It does not wait for work on a volume.
func (m *Manager) Status() []status.Volume {
	volumes := m.all()
	key := func(v *volume) string { return v.pod.Namespace + "/" + v.pod.Name + "/" + v.name() }
	slices.SortFunc(volumes, func(a, b *volume) int { return strings.Compare(key(a), key(b)) })
	all := make([]status.Volume, 0, len(volumes))
	for _, v := range volumes {
		all = append(all, m.status(v))
	}
	return all
}

func (m *Manager) status(v *volume) status.Volume {
	uid, gid := v.owner()
	now := v.snapshot()
	s := status.Volume{
		PodNamespace: v.pod.Namespace, PodName: v.pod.Name, PodUID: v.pod.UID, Volume: v.name(), Object: v.origin(),
		UID: uid, GID: gid, Mode: v.mode(), ResourceVersion: now.version(), Refresh: string(v.spec.Refresh), Bytes: now.size,
	}
	if !now.refreshed.IsZero() {
		s.Refreshed = &now.refreshed
	}
	if since, why := m.staleness(v); why != nil {
		s.Stale, s.StaleSince = why.Error(), &since
	}
	return s
}

// version returns the version of each object that the files show. A missing object has the version "-".
func (s shown) version() string {
	var versions []string
	for _, p := range s.versions {
		versions = append(versions, cmp.Or(p.content.ResourceVersion, "-"))
	}
	if all := strings.Join(versions, ","); strings.Trim(all, "-,") != "" {
		return all
	}
	return ""
}

func (v *volume) mode() string {
	var modes []string
	for _, s := range v.spec.Sources {
		if mode := fmt.Sprintf("%04o", s.Mode); !slices.Contains(modes, mode) {
			modes = append(modes, mode)
		}
	}
	return strings.Join(modes, ",")
}
