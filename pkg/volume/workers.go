// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

const (
	// stallAfter is the time after which a running refresh counts as stalled, and another worker takes its place. A
	// container that owns the directory of its volume can make the kernel block there. For example, a directory listing
	// holds the directory's lock while its page fault waits for a slow file system, and no signal interrupts a writer that
	// waits for the lock. A directory delegation (F_SETDELEG of fcntl(2), Linux 6.19) blocks a writer for 45 seconds.
	stallAfter = time.Second
	// stalledEventAfter is the time after which the pod gets an Event about a process that holds the directory. It is
	// longer than stallAfter, because on an overloaded machine a refresh can be slow without such a process.
	stalledEventAfter = 10 * time.Second
	// minRefreshInterval is the shortest interval between two refreshes that write to the same volume, and
	// maxRefreshInterval the longest. The first change after a pause is shown at once.
	minRefreshInterval = 100 * time.Millisecond
	maxRefreshInterval = 10 * time.Second
	// refreshPause is the interval between the refreshes of an object's volumes, in multiples of the duration of the
	// refreshes. So an object that is updated without end takes at most half of a CPU.
	refreshPause = 2
	// stopTimeout is the time that Run waits at its end for work that hangs in the kernel.
	stopTimeout = 2 * time.Second
)

// Run refreshes volumes as their objects change, and collects, until ctx ends. It returns when everything that it
// started has ended, but it waits no longer than stopTimeout for work that hangs in the kernel. Such work ends with the
// process.
func (m *Manager) Run(ctx context.Context) {
	var running sync.WaitGroup
	running.Go(func() { m.refreshAll(ctx, &running) })
	// The checks do not wait for each other, because one of them may hang on a disk.
	running.Go(func() { m.repeat(ctx, m.checkRecords) })
	running.Go(func() { m.repeat(ctx, m.Collect) })
	<-ctx.Done()
	m.queue.ShutDown()
	ended := make(chan struct{})
	go func() {
		running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopTimeout):
		klog.FromContext(ctx).Info("Stopped although work on a volume has not ended; the work ends with the process")
	}
}

// repeat calls check at once and then at each collection interval, until ctx ends.
func (m *Manager) repeat(ctx context.Context, check func()) {
	ticker := time.NewTicker(m.config.CollectEvery)
	defer ticker.Stop()
	for {
		_ = safely(ctx, "check volumes", func() error { check(); return nil }) // it has logged a panic
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// refreshAll refreshes the volumes in the queue, with one goroutine for each worker, until the queue is shut down.
func (m *Manager) refreshAll(ctx context.Context, running *sync.WaitGroup) {
	workers := make(chan struct{}, m.config.Workers)
	for {
		workers <- struct{}{}
		v, shutdown := m.queue.Get()
		if shutdown || ctx.Err() != nil {
			return
		}
		free := sync.OnceFunc(func() { <-workers })
		running.Go(func() {
			defer free()
			m.refreshNext(withVolume(ctx, v.id), v, free)
		})
	}
}

// refreshNext refreshes a volume from the queue. It calls free if the refresh stalls.
func (m *Manager) refreshNext(ctx context.Context, v *volume, free func()) {
	defer m.queue.Done(v)
	if wait := v.untilRefresh(); wait > 0 {
		m.queue.AddAfter(v, wait)
		return
	}
	v.setRefreshing(time.Now())
	stopReport := after(stallAfter, func() {
		free()
		if m.get(v.id) == v {
			m.stale(ctx, v, errStalled)
		}
	})
	stopEvent := after(stalledEventAfter, func() { m.tellStalled(v) })
	err := safely(ctx, "refresh", func() error { return m.refresh(ctx, v) })
	stopEvent()
	v.setRefreshing(time.Time{})
	if reported := stopReport(); reported {
		// The report may have marked the volume as stale after the refresh ended. The next refresh corrects that.
		m.queue.Add(v)
	}
	if err != nil {
		m.queue.AddRateLimited(v)
	} else {
		m.queue.Forget(v)
	}
}

// after calls f after a delay, unless stop is called before. stop waits for a call of f that has begun, and reports
// whether f was called.
func after(d time.Duration, f func()) (stop func() (called bool)) {
	done := make(chan struct{})
	timer := time.AfterFunc(d, func() {
		defer close(done)
		f()
	})
	return func() bool {
		if timer.Stop() {
			return false
		}
		<-done
		return true
	}
}

// refreshInterval returns the time until the next refresh of a volume after a refresh that took a duration. volumes is
// the number of volumes that show the same object, each of which takes this duration.
func refreshInterval(took time.Duration, volumes int) time.Duration {
	if took >= stallAfter {
		return minRefreshInterval // A stalled refresh takes no CPU.
	}
	return min(max(minRefreshInterval, refreshPause*took*time.Duration(volumes)), maxRefreshInterval)
}

// safely calls work and turns a panic into an error, so that a panic in the work on a volume does not end the driver.
func safely(ctx context.Context, what string, work func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// The value of the panic could hold a secret, so the log shows only its type.
			err = fmt.Errorf("%s: panicked with a %T", what, p)
			klog.FromContext(ctx).Error(err, "The driver has a bug", "stack", string(debug.Stack()))
		}
	}()
	return work()
}

// newQueue returns a queue of volumes in which the namespaces take turns.
func newQueue() workqueue.TypedRateLimitingInterface[*volume] {
	return workqueue.NewTypedRateLimitingQueueWithConfig(
		workqueue.NewTypedItemExponentialFailureRateLimiter[*volume](100*time.Millisecond, 2*time.Minute),
		workqueue.TypedRateLimitingQueueConfig[*volume]{
			DelayingQueue: workqueue.NewTypedDelayingQueueWithConfig(workqueue.TypedDelayingQueueConfig[*volume]{
				Queue: workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[*volume]{Queue: &turns{}}),
			}),
		})
}

// turns is the order in which volumes are refreshed. The namespaces take turns. Within a namespace, the volume that was
// written longest ago comes first. So neither a namespace with many volumes nor an object that is updated without end
// delays other volumes. The workqueue serialises the calls.
type turns struct {
	// order has the namespaces with waiting volumes. The first one has the next turn.
	order   []string
	waiting map[string][]*volume
	length  int
}

// Push implements workqueue.Queue.
func (t *turns) Push(v *volume) {
	if t.waiting == nil {
		t.waiting = map[string][]*volume{}
	}
	namespace := v.pod.Namespace
	if len(t.waiting[namespace]) == 0 {
		t.order = append(t.order, namespace)
	}
	t.waiting[namespace] = append(t.waiting[namespace], v)
	t.length++
}

// Pop implements workqueue.Queue.
func (t *turns) Pop() *volume {
	namespace := t.order[0]
	t.order = t.order[1:]
	all := t.waiting[namespace]
	first, longestAgo := 0, all[0].lastWritten()
	for i, v := range all {
		if written := v.lastWritten(); written.Before(longestAgo) {
			first, longestAgo = i, written
		}
	}
	v := all[first]
	t.waiting[namespace] = slices.Delete(all, first, first+1)
	if len(all) == 1 {
		delete(t.waiting, namespace)
	} else {
		t.order = append(t.order, namespace)
	}
	t.length--
	return v
}

// Len implements workqueue.Queue.
func (t *turns) Len() int { return t.length }

// Touch implements workqueue.Queue.
func (t *turns) Touch(*volume) {}
