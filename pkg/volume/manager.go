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
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// Source is where objects come from: a source.API or a source.Directory.
type Source interface {
	Watch(ref source.Ref, holder string, changed func())
	Unwatch(ref source.Ref, holder string)
	Wait(ctx context.Context, ref source.Ref)
	Get(ref source.Ref) (source.Content, error)
	Away(ref source.Ref) (since time.Time, err error)
	Pod(ctx context.Context, namespace, name, uid string) (source.Pod, error)
	Watched() int
}

// Config is what a Manager needs.
type Config struct {
	Source  Source
	Records *record.Store
	// Features of this machine's kernel, from tmpfs.Probe.
	Features tmpfs.Features
	// SELinuxContext of the files; empty if SELinux is off.
	SELinuxContext string
	Limits         Limits
	// Workers refresh that many volumes at the same time.
	Workers int
	// CollectEvery is the pause between two looks for volumes whose pod directory is gone, and at whether records can be written.
	CollectEvery time.Duration
	// CheckTarget says whether a volume may be at a target. Recover asks it of each record: a record is input.
	CheckTarget func(id, target, podUID string) error
	// Metrics takes the Manager's metrics.
	Metrics prometheus.Registerer
	// Events takes what those who run a pod should know. It must not block. nil: nobody is told.
	Events func(event.Event)
}

// Manager keeps the volumes of a node. Its methods are safe for concurrent use. Calls for one volume run one after the other.
type Manager struct {
	Config
	metrics *metrics
	// queue holds the ids of volumes to refresh. It coalesces: an id is in it once, and never with two workers.
	queue workqueue.TypedRateLimitingInterface[string]
	locks locks
	quota *quota
	// watching is held while a volume's objects are watched or let go: who counts them then sees what that changed.
	watching sync.Mutex

	// mu guards what follows. What is in a volume is guarded by the lock of its id, which is taken first.
	mu      sync.Mutex
	volumes map[string]*volume
	// unready is why no volume can be published; nil if nothing is known to be in the way.
	unready error
}

// New returns a Manager without volumes. It starts nothing: call Recover, then Run.
func New(c Config) (*Manager, error) {
	if c.Source == nil || c.Records == nil || c.CheckTarget == nil || c.Metrics == nil {
		return nil, errors.New("volume manager: Source, Records, CheckTarget and Metrics must be set")
	}
	l := c.Limits
	if l.Bytes <= 0 || l.Files <= 0 || l.Volumes <= 0 || l.NodeBytes <= 0 || l.Objects <= 0 || c.Workers <= 0 || c.CollectEvery <= 0 {
		return nil, errors.New("volume manager: limits, workers and the pause between collections must be greater than zero")
	}
	m := &Manager{
		Config:  c,
		volumes: map[string]*volume{},
		quota:   newQuota(l),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, 2*time.Minute)),
	}
	var err error
	m.metrics, err = newMetrics(c.Metrics, m)
	return m, err
}

// Ready reports why no volume can be published on this node: records can't be written. It answers from memory, with what was found when
// Manager last collected: on a disk that hangs, to look takes for ever.
func (m *Manager) Ready() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unready
}

func (m *Manager) checkRecords() {
	err := m.Records.Check()
	if err != nil {
		err = fmt.Errorf("no volume can be published until --state-dir can be written to, and has room: %w", err)
	}
	m.mu.Lock()
	was := m.unready
	m.unready = err
	m.mu.Unlock()
	switch {
	case err != nil && was == nil:
		klog.ErrorS(err, "Not ready; the volumes that are there are refreshed and unpublished as ever")
	case err == nil && was != nil:
		klog.InfoS("Volume records can be written again")
	}
}

// Run refreshes volumes as their objects change, and collects, until ctx ends. It returns when all that it started has ended.
func (m *Manager) Run(ctx context.Context) {
	var running sync.WaitGroup
	for range m.Workers {
		running.Go(func() {
			for m.refreshNext(ctx) {
			}
		})
	}
	running.Go(func() {
		ticker := time.NewTicker(m.CollectEvery)
		defer ticker.Stop()
		for {
			m.checkRecords()
			select {
			case <-ticker.C:
				m.Collect(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	<-ctx.Done()
	m.queue.ShutDown()
	running.Wait()
}

func (m *Manager) refreshNext(ctx context.Context) bool {
	id, shutdown := m.queue.Get()
	if shutdown {
		return false
	}
	defer m.queue.Done(id)
	if err := m.refreshSafely(ctx, id); err != nil {
		m.queue.AddRateLimited(id)
	} else {
		m.queue.Forget(id)
	}
	return true
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

func (m *Manager) all() []*volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.volumes))
}

// watch has the volume refreshed after each change. One for a volume that is not published, yet or any more, does nothing: publish has it
// looked at once more when it is.
// It returns how many objects were watched before, and are now.
func (m *Manager) watch(v *volume) (before, now int) {
	m.watching.Lock()
	defer m.watching.Unlock()
	before = m.Source.Watched()
	for _, object := range v.objects {
		m.Source.Watch(object, v.id, func() { m.queue.Add(v.id) })
	}
	return before, m.Source.Watched()
}

func (m *Manager) unwatch(v *volume) {
	m.watching.Lock()
	defer m.watching.Unlock()
	if v.hasObjects() {
		for _, object := range v.objects {
			m.Source.Unwatch(object, v.id)
		}
	}
}

// forget drops all that is known of a volume. The mount is not its business. A record that can't be removed does no harm: it
// describes a mount that is not there.
func (m *Manager) forget(v *volume) {
	m.unwatch(v)
	failpoint.Hit("forget-unwatched")
	m.metrics.forget(v.id)
	m.quota.giveBack(v.id)
	m.mu.Lock()
	delete(m.volumes, v.id)
	m.mu.Unlock()
	m.removeRecord(v.id)
}

func (m *Manager) removeRecord(id string) {
	if err := m.Records.Remove(id); err != nil {
		klog.ErrorS(err, "A volume's record could not be removed; the next start will drop it", "volume", id)
	}
}

// content returns what the volume's objects hold now, one for each source. An optional object that is missing has no keys.
func (m *Manager) content(v *volume) ([]source.Content, error) {
	if !v.hasObjects() {
		return nil, &source.Error{Ref: v.objects[0], Reason: source.ErrUnavailable, Detail: "the pod does not tell its name"}
	}
	var all []source.Content
	for i, object := range v.objects {
		c, err := m.Source.Get(object)
		switch {
		case errors.Is(err, source.ErrNotFound) && v.spec.Sources[i].Optional:
			c = source.Content{}
		case err != nil:
			return nil, err
		case object.Kind == source.PodKind && c.UID != v.pod.UID:
			return nil, &source.Error{Ref: object, Reason: source.ErrNotFound, Detail: "there is another pod of this name"}
		}
		all = append(all, c)
	}
	return all, nil
}

// Usage tells how much of the file system of a published volume is in use. The error is ErrUnknown if no volume id is published at
// path.
func (m *Manager) Usage(ctx context.Context, id, path string) (tmpfs.Usage, error) {
	unlock, err := m.locks.lock(ctx, id)
	if err != nil {
		return tmpfs.Usage{}, err
	}
	defer unlock()
	v := m.get(id)
	if v == nil || v.target != path {
		return tmpfs.Usage{}, fmt.Errorf("%w: volume %s is not published at %q", ErrUnknown, id, path)
	}
	point, err := tmpfs.OpenPoint(path)
	if err != nil {
		return tmpfs.Usage{}, err
	}
	defer point.Close()
	there, err := inspect(point)
	if err != nil {
		return tmpfs.Usage{}, err
	}
	if !there.Mounted || there.Identity != v.identity {
		// What is below it, or above, is not the volume.
		return tmpfs.Usage{}, fmt.Errorf("%w: volume %s is not mounted at %q any more", ErrUnknown, id, path)
	}
	return point.Usage()
}

func (v *volume) toRecord() record.Volume {
	r := record.Volume{
		VolumeID: v.id, TargetPath: v.target, Pod: record.Pod(v.pod), MountGroup: v.mountGroup, SecretRef: v.secretRef(), User: v.user, Size: v.size,
		Device: v.identity.Device, FSID: v.identity.FSID,
		Spec: record.Spec{UID: v.spec.UID, GID: v.spec.GID, DirMode: v.spec.DirMode, Refresh: string(v.spec.Refresh)},
	}
	for _, s := range v.spec.Sources {
		written := record.Source{Kind: string(s.Object.Kind), Name: s.Object.Name, Optional: s.Optional, Mode: s.Mode}
		for _, item := range s.Items {
			written.Items = append(written.Items, record.Item(item))
		}
		r.Spec.Sources = append(r.Spec.Sources, written)
	}
	return r
}

func fromRecord(r record.Volume) *volume {
	v := &volume{
		id: r.VolumeID, target: r.TargetPath, pod: Pod(r.Pod), mountGroup: r.MountGroup, user: r.User, size: r.Size,
		identity: tmpfs.Identity{Device: r.Device, FSID: r.FSID},
		spec:     attributes.Spec{UID: r.Spec.UID, GID: r.Spec.GID, DirMode: r.Spec.DirMode, Refresh: attributes.Refresh(r.Spec.Refresh)},
	}
	for _, written := range r.Spec.Sources {
		s := attributes.Source{
			Object:   attributes.Object{Kind: attributes.Kind(written.Kind), Name: written.Name},
			Optional: written.Optional, Mode: written.Mode,
		}
		for _, item := range written.Items {
			s.Items = append(s.Items, attributes.Item(item))
		}
		v.spec.Sources = append(v.spec.Sources, s)
	}
	v.findObjects(r.SecretRef)
	return v
}
