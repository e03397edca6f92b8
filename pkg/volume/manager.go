// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// Source gives the content of objects. A source.API and a source.Directory implement it.
type Source interface {
	Subscribe(ref source.Ref, subscriber string, newest bool, changed func())
	Unsubscribe(ref source.Ref, subscriber string)
	Wait(ctx context.Context, ref source.Ref)
	// Retry reads an object again at once if the last request for it failed. Wait waits for the answer.
	Retry(ref source.Ref)
	Get(ref source.Ref) (source.Content, error)
	Outage(ref source.Ref) (since time.Time, err error)
	Watched() int
	// Read reads an object once, in its newest version.
	Read(ctx context.Context, ref source.Ref) (source.Content, error)
	// Pod reads a pod once. The error is ErrNotFound if the pod of this name has another uid.
	Pod(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error)
	// Allocatable reads the node's allocatable resources once.
	Allocatable(ctx context.Context) (corev1.ResourceList, error)
}

// Config is the configuration of a Manager.
type Config struct {
	Source  Source
	Records *record.Store
	// Features are those of this machine's kernel, from tmpfs.Probe.
	Features tmpfs.Features
	// SELinuxContext is the context of the files; empty if SELinux is off.
	SELinuxContext string
	Limits         Limits
	// Workers is the number of volumes that are refreshed at the same time. A stalled refresh does not count.
	Workers int
	// CollectEvery is the interval for garbage-collecting volumes of deleted pods and checking that records can be
	// written.
	CollectEvery time.Duration
	// CheckTarget returns an error unless the volume may be at the target path. Recover checks each record with it,
	// because records are untrusted input.
	CheckTarget func(id, targetPath, podUID string) error
	// Metrics registers the Manager's metrics.
	Metrics prometheus.Registerer
	// Events records Events about pods. It must not block. If Events is nil, no Event is recorded.
	Events func(event.Event)
}

// Manager keeps the volumes of a node. Its methods are safe for concurrent use. Calls for one volume run one after the
// other.
type Manager struct {
	config  Config
	metrics *metrics
	// queue holds the volumes to refresh. Only its workers write to the files of a published volume. The queue holds a
	// volume once at most, and no two workers have the same volume.
	queue workqueue.TypedRateLimitingInterface[*volume]
	locks locks
	quota *quota

	// mu guards the fields below. A caller that needs the lock of a volume's id takes that lock first.
	mu      sync.Mutex
	volumes map[string]*volume
	// unready is the reason why no volume can be published; nil if no reason is known.
	unready error
}

// New returns a Manager without volumes. It starts nothing: call Recover, then Run.
func New(c Config) (*Manager, error) {
	if c.Source == nil || c.Records == nil || c.CheckTarget == nil || c.Metrics == nil {
		return nil, errors.New("volume manager: Source, Records, CheckTarget and Metrics must be set")
	}
	l := c.Limits
	if l.PodShare < 1 || l.PodShare > 100 || l.NamespaceShare < 1 || l.NamespaceShare > 100 {
		return nil, errors.New("volume manager: PodShare and NamespaceShare must be from 1 to 100")
	}
	if l.Bytes <= 0 || l.Files <= 0 || l.Volumes <= 0 || l.NodeBytes <= 0 || l.Objects <= 0 || c.Workers <= 0 ||
		c.CollectEvery <= 0 {
		return nil, errors.New("volume manager: limits, Workers and CollectEvery must be greater than zero")
	}
	m := &Manager{
		config:  c,
		volumes: map[string]*volume{},
		quota:   newQuota(l),
		queue:   newQueue(),
	}
	var err error
	m.metrics, err = newMetrics(c.Metrics, m)
	return m, err
}

// Ready returns an error if no volume can be published on this node because records can't be written. It returns the
// result of the last check from memory, because a check on a disk that hangs never returns.
func (m *Manager) Ready() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unready
}

func (m *Manager) checkRecords() {
	err := m.config.Records.Check()
	if err != nil {
		err = fmt.Errorf("no volume can be published until --state-dir can be written to, and has room: %w", err)
	}
	m.mu.Lock()
	was := m.unready
	m.unready = err
	m.mu.Unlock()
	switch {
	case err != nil && was == nil:
		klog.ErrorS(err, "Not ready; published volumes are still refreshed and unpublished")
	case err == nil && was != nil:
		klog.InfoS("Volume records can be written again")
	}
}

func (m *Manager) get(id string) *volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.volumes[id]
}

func (m *Manager) put(v *volume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.volumes[v.id] = v
}

// remove removes the volume from the Manager. From then on, the Manager neither refreshes nor reports the volume.
func (m *Manager) remove(v *volume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.volumes, v.id)
}

func (m *Manager) all() []*volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.volumes))
}

// subscribe makes each change of the volume's objects queue a refresh. A change has no effect before the volume is
// published, but publish calls queueIfChanged at its end. newest means that the pod may have seen content of the
// objects, so the volume must not show an older version.
func (m *Manager) subscribe(v *volume, newest bool) {
	changed := func() {
		if m.get(v.id) == v {
			m.queue.Add(v)
		}
	}
	for _, p := range v.projections {
		m.config.Source.Subscribe(p.ref, v.id, newest, changed)
	}
}

// queueIfChanged queues a refresh of the volume if its objects have changed since its files were written.
func (m *Manager) queueIfChanged(v *volume) {
	if now, err := m.content(v); err != nil || !v.snapshot().shows(now) {
		m.queue.Add(v)
	}
}

func (m *Manager) unsubscribe(v *volume) {
	if !v.watches() {
		return
	}
	for _, p := range v.projections {
		m.config.Source.Unsubscribe(p.ref, v.id)
	}
}

// pause ends the subscriptions of a volume whose content exceeds a limit: content that the limits do not count must not
// stay in memory. The next republish, which kubelet sends every minute or two, resumes the volume.
func (m *Manager) pause(v *volume) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.paused = v.watches()
	m.unsubscribe(v)
}

// resume subscribes a paused volume to its objects again, and reports whether the volume was paused.
func (m *Manager) resume(v *volume) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.paused {
		return false
	}
	v.paused = false
	m.subscribe(v, true)
	return true
}

// forget drops all state of a volume, but leaves its mount alone. A record that can't be removed does no harm, because
// it describes a mount that is not there.
func (m *Manager) forget(v *volume) {
	m.unsubscribe(v)
	v.share.release()
	m.remove(v)
	m.removeRecord(v.id)
}

func (m *Manager) removeRecord(id string) {
	if err := m.config.Records.Remove(id); err != nil {
		klog.ErrorS(err, "A volume's record could not be removed; the next start will drop it", "volume", id)
	}
}

// content returns the content of the volume's objects as their watches last saw it.
func (m *Manager) content(v *volume) ([]projected, error) {
	return v.contentFrom(m.config.Source.Get)
}

// contentFrom returns the content of the volume's objects, which it reads with get. An optional object that is missing
// has no keys.
func (v *volume) contentFrom(get func(source.Ref) (source.Content, error)) ([]projected, error) {
	all := make([]projected, 0, len(v.projections))
	for _, p := range v.projections {
		c, err := get(p.ref)
		switch {
		case errors.Is(err, source.ErrNotFound) && p.Optional:
			c = source.Content{}
		case err != nil:
			return nil, err
		case p.Object.Kind == attributes.Pod && c.UID != "" && c.UID != v.pod.UID: // the pod of a manifest has no uid
			return nil, &source.Error{Ref: p.ref, Reason: source.ErrNotFound, Detail: "there is another pod of this name"}
		}
		all = append(all, projected{p, c})
	}
	return all, nil
}

// latest returns the content that the volume has to show now: the content of its objects, or of the last republish. It
// returns nil if no republish has come since the driver started.
func (m *Manager) latest(v *volume) ([]projected, error) {
	if !v.fromRequest() {
		return m.content(v)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.requested, nil
}

// Usage returns the usage of the file system of a published volume. The error is ErrUnknown if the volume is not
// published at path.
func (m *Manager) Usage(ctx context.Context, id, path string) (tmpfs.Usage, error) {
	unlock, err := m.locks.lock(ctx, id)
	if err != nil {
		return tmpfs.Usage{}, err
	}
	defer unlock()
	v := m.get(id)
	if v == nil || v.targetPath != path {
		return tmpfs.Usage{}, fmt.Errorf("%w: volume %s is not published at %q", ErrUnknown, id, path)
	}
	target, err := tmpfs.OpenTarget(path)
	if err != nil {
		return tmpfs.Usage{}, err
	}
	defer target.Close()
	state, err := inspect(target)
	if err != nil {
		return tmpfs.Usage{}, err
	}
	if !state.Mounted || state.Identity != v.identity {
		// The file system that the path leads to now is not the volume.
		return tmpfs.Usage{}, fmt.Errorf("%w: volume %s is not mounted at %q any more", ErrUnknown, id, path)
	}
	return state.Usage, nil
}
