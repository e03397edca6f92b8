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

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// The reasons of the Events that a pod gets, besides kubelet's own FailedMount.
const (
	reasonRefreshFailed = "VolumeRefreshFailed"
	reasonObjectMissing = "VolumeObjectMissing"
	reasonRecovered     = "VolumeRefreshRecovered"
	reasonOwnerUnknown  = "VolumeOwnerUnknown"
)

// current records that the files show content.
func (m *Manager) current(v *volume, content []source.Content, size int64) {
	v.applied = nil
	for _, c := range content {
		v.applied = append(v.applied, c.Version())
	}
	v.size = size
	if _, away := m.outage(v); away == nil {
		v.refreshed = time.Now()
	}
	m.metrics.current(v.id, size)
	if v.stale == nil {
		return
	}
	v.stale = nil
	klog.InfoS("Current again", v.logFields()...)
	if v.told {
		v.told = false
		m.tell(v, event.Normal, reasonRecovered, "the files of volume %q show %s again", v.name(), v.origin())
	}
}

// stale records that the files are not known to be current, and why. The same reason is told once.
func (m *Manager) stale(v *volume, reason error) {
	m.metrics.failed(opRefresh, reason)
	was := v.stale
	v.stale = reason
	if was != nil && was.Error() == reason.Error() {
		return
	}
	if was == nil {
		v.staleSince = time.Now()
		m.metrics.stale(v.id, v.staleSince)
	}
	klog.ErrorS(reason, "Not refreshed; the files stay as they are", v.logFields()...)
	if errors.Is(reason, source.ErrUnavailable) {
		return // an outage is of all volumes at once, and nothing that who runs a pod could change
	}
	v.told = true
	why := reasonRefreshFailed
	if errors.Is(reason, source.ErrNotFound) {
		why = reasonObjectMissing
	}
	m.tell(v, event.Warning, why, "the files of volume %q stay as they are: %v", v.name(), reason)
}

// servedFor is how long what kubelet sent along is taken to be current: it comes each minute or so.
const servedFor = 2 * time.Minute

// outage is since when, and why, the volume may be outdated because there has been no word of an object that it shows; zero and nil if it is
// not. It needs no lock.
func (m *Manager) outage(v *volume) (since time.Time, why error) {
	since, why = m.away(v)
	if served := v.served.Load(); why != nil && served != nil && served.After(since) {
		if time.Since(*served) < servedFor {
			return time.Time{}, nil
		}
		since = *served
	}
	return since, why
}

// away is since when, and why, there has been no word of an object that the volume shows; zero and nil if there is of all. What it looks at
// never changes once a volume is published: it needs no lock.
func (m *Manager) away(v *volume) (since time.Time, why error) {
	if !v.watches() {
		return time.Time{}, nil
	}
	for _, object := range v.objects {
		if s, err := m.Source.Away(object); err != nil && (why == nil || s.Before(since)) {
			since, why = s, err
		}
	}
	return since, why
}

// staleTimes are the times since which volumes are not known to be current.
func (m *Manager) staleTimes() (all []time.Time) {
	for _, v := range m.all() {
		since := m.metrics.staleSinceOf(v.id)
		if since.IsZero() {
			since, _ = m.outage(v)
		}
		if !since.IsZero() {
			all = append(all, since)
		}
	}
	return all
}

func (m *Manager) tell(v *volume, kind event.Type, reason, format string, args ...any) {
	if m.Events != nil {
		m.Events(event.Event{Pod: event.Pod(v.pod), Volume: v.name(), Type: kind, Reason: reason, Message: fmt.Sprintf(format, args...)})
	}
}

// logFields are the fields of a volume that may be in a log: never the request, never content.
func (v *volume) logFields(more ...any) []any {
	uid, gid := v.owner()
	return append([]any{
		"volume", v.id, "pod", klog.KRef(v.pod.Namespace, v.pod.Name), "object", v.origin(),
		"resourceVersion", v.version(), "uid", uid, "gid", gid,
	}, more...)
}

// Status is what there is to know of a volume, for people and programs.
type Status struct {
	PodNamespace string `json:"podNamespace"`
	PodName      string `json:"podName"`
	PodUID       string `json:"podUID"`
	// Volume is the volume's name in the pod.
	Volume string `json:"volume"`
	// Object names what the content comes from; several are joined by commas.
	Object string `json:"object"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	// Mode of files without one of their own, octal; those of several sources are joined by commas.
	Mode string `json:"mode"`
	// ResourceVersion that the files show, those of several sources joined by commas; empty if none is known.
	ResourceVersion string `json:"resourceVersion,omitempty"`
	// Refresh is the attribute: watch or off.
	Refresh attributes.Refresh `json:"refresh"`
	// Bytes of content.
	Bytes int64 `json:"bytes"`
	// Refreshed is when this process last wrote the files or found them current; absent if it has not yet.
	Refreshed *time.Time `json:"refreshed,omitempty"`
	// Stale is why the files are not known to be current, and StaleSince since when; both absent if they are.
	Stale      string     `json:"stale,omitempty"`
	StaleSince *time.Time `json:"staleSince,omitempty"`
}

// Status tells of all volumes, sorted by pod and name.
func (m *Manager) Status(ctx context.Context) ([]Status, error) {
	all := []Status{}
	for _, v := range m.all() {
		unlock, err := m.locks.lock(ctx, v.id)
		if err != nil {
			return nil, err
		}
		all = append(all, m.status(v))
		unlock()
	}
	slices.SortFunc(all, func(a, b Status) int {
		return strings.Compare(a.PodNamespace+"/"+a.PodName+"/"+a.Volume, b.PodNamespace+"/"+b.PodName+"/"+b.Volume)
	})
	return all, nil
}

// version names the version of each object that the files show; an object that is not there has a dash.
func (v *volume) version() string {
	var versions []string
	for _, c := range v.applied {
		versions = append(versions, cmp.Or(c.ResourceVersion, "-"))
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

func (m *Manager) status(v *volume) Status {
	uid, gid := v.owner()
	s := Status{
		PodNamespace: v.pod.Namespace, PodName: v.pod.Name, PodUID: v.pod.UID, Volume: v.name(), Object: v.origin(),
		UID: uid, GID: gid, Mode: v.mode(), ResourceVersion: v.version(), Refresh: v.spec.Refresh, Bytes: v.size,
	}
	if at := v.refreshed; !at.IsZero() {
		s.Refreshed = &at
	}
	why, since := v.stale, v.staleSince
	if why == nil {
		since, why = m.outage(v)
	}
	if why != nil {
		s.Stale, s.StaleSince = why.Error(), &since
	}
	return s
}
