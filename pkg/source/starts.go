// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// maxStarts is the number of watches that a driver starts at the same time. With --access=node, the requests share a
	// flow of the API server's priority and fairness with the node's kubelet, and a flow queues 300 requests.
	maxStarts = 16
	// maxProbePause is the longest pause between two requests of a driver during an outage.
	maxProbePause = 5 * time.Second
	// maxProbeWait is the longest time that a watch waits for a pause or a probe to end. If the pause takes longer, the
	// watch fails at once. If the probe takes longer, the watch makes another probe.
	maxProbeWait = time.Second
	// maxSpread and spreadPerWatch bound the time over which the watches start again after an outage. A driver with fewer
	// than 100 watches needs less time for the same number of requests per second.
	maxSpread      = 45 * time.Second
	spreadPerWatch = maxSpread / 100
)

// starts decides when a watch may be started. At most maxStarts are being started at the same time.
//
// A failure that concerns all objects (isOutage) begins an outage, in which one request at a time is a probe, with a
// pause before each. The failure of the probe is the failure of the other watches too. So a driver with a thousand
// watches makes as few requests to an API server that is away as a driver with one. The first answer ends the outage.
// Each of the other watches then ends its own pause, and makes another one (spread).
//
// It is safe for concurrent use.
type starts struct {
	// slots has a token for each watch that is being started.
	slots chan struct{}

	mu sync.Mutex
	// next is the probe that must succeed; nil without an outage.
	next *probe
	// backoff is the upper bound of the pause before the next probe, and notBefore is the end of that pause.
	backoff   time.Duration
	notBefore time.Time
	// since is the beginning of the current or the last outage, and until is the end of the last outage.
	since, until time.Time
}

// probe is a request that shows whether an outage has ended.
type probe struct {
	// outage is the failure before the probe.
	outage error
	// refused means that the API server has refused the object of an earlier request for this probe.
	refused bool
	// owner has a token while a watch makes the request, for at most maxProbeWait, because the API server may be slow only
	// for the object of that watch.
	owner chan struct{}
	// done is closed when the request has an answer, or has failed with err.
	done chan struct{}
	err  error
}

func newStarts() *starts { return &starts{slots: make(chan struct{}, maxStarts)} }

// begin waits until a watch may be started. The caller calls end with the outcome, which is nil or the reason why the
// watch did not start. The error of begin is the failure of a probe, or the reason why ctx has ended.
//
// again means that the watch has failed before. Such a watch does not wait for the probe of another watch, because all
// waiting watches start at the same time.
func (s *starts) begin(ctx context.Context, again bool) (end func(error), err error) {
	for {
		p, err := s.probe(ctx, again)
		if err != nil {
			return nil, err
		}
		if err := s.wait(ctx); err != nil {
			p.release()
			return nil, err
		}
		if s.isNext(p) {
			release := p.releaseSoon()
			return func(err error) {
				s.end(p, err)
				release()
			}, nil
		}
		<-s.slots // An outage has begun or ended in the meantime.
		p.release()
	}
}

// probe returns the probe that the caller makes, or nil if there is no outage. If another watch makes the probe, or the
// pause is long, the error is the failure of the last probe.
func (s *starts) probe(ctx context.Context, again bool) (*probe, error) {
	s.mu.Lock()
	p, pause := s.next, time.Until(s.notBefore)
	s.mu.Unlock()
	switch {
	case p == nil:
		return nil, nil
	case pause > maxProbeWait:
		return nil, p.outage
	}
	select {
	case p.owner <- struct{}{}:
		return p, nil
	default:
	}
	if again {
		return nil, p.outage
	}
	select {
	case p.owner <- struct{}{}:
		return p, nil
	case <-p.done:
		return nil, p.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// wait waits for the end of the pause, and for a slot.
func (s *starts) wait(ctx context.Context) error {
	s.mu.Lock()
	pause := time.NewTimer(time.Until(s.notBefore))
	s.mu.Unlock()
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case s.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// release lets another watch make the probe.
func (p *probe) release() {
	if p != nil {
		<-p.owner
	}
}

// releaseSoon lets another watch make the probe once the returned function is called, or after maxProbeWait.
func (p *probe) releaseSoon() func() {
	if p == nil {
		return func() {}
	}
	release := sync.OnceFunc(p.release)
	timer := time.AfterFunc(maxProbeWait, release)
	return func() {
		timer.Stop()
		release()
	}
}

func (s *starts) isNext(p *probe) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next == p
}

// end records the outcome of a start.
func (s *starts) end(p *probe, err error) {
	<-s.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case errors.Is(err, context.Canceled): // A cancellation says nothing about the API server.
	case isOutage(err):
		s.fail(p, err)
	case p != nil && p == s.next && isRefusal(err) && !p.refused:
		// In its first seconds, an API server refuses everything, because it does not know the rights yet. Another request
		// probes after a pause. A second refusal is an answer.
		p.refused = true
		s.notBefore = time.Now().Add(jittered(maxProbePause))
	default:
		s.recover()
	}
}

// fail begins or continues an outage. A request that is older than the outage changes nothing. The caller holds s.mu.
func (s *starts) fail(p *probe, err error) {
	if s.next != p {
		return
	}
	if p == nil {
		s.since = time.Now()
	}
	s.backoff = min(max(minBackoff, 3*s.backoff), maxProbePause)
	s.notBefore = time.Now().Add(max(jittered(s.backoff), requestedDelay(err)))
	s.next = &probe{outage: err, owner: make(chan struct{}, 1), done: make(chan struct{})}
	if p != nil {
		p.err = err
		close(p.done)
	}
}

// recover ends an outage. A pause that the API server has requested continues. The caller holds s.mu.
func (s *starts) recover() {
	if s.next != nil {
		close(s.next.done)
		s.until = time.Now()
	}
	s.next, s.backoff = nil, 0
}

// spread returns a random pause for one of n watches that start again after an outage. failed is the time at which the
// watch failed. If that was not in the last outage, or the outage has not ended, spread returns 0. After a longer
// outage the pauses are longer, because watches of more nodes have failed, and the API server may have just started.
func (s *starts) spread(failed time.Time, n int) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil || s.until.Before(failed) {
		return 0
	}
	return rand.N(1 + min(maxSpread, s.until.Sub(s.since)*3/2, time.Duration(n)*spreadPerWatch))
}

// isRefusal reports whether the API server has denied a right, or does not know the driver.
func isRefusal(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) }

// isOutage reports whether a failure concerns the API server, or the way to it, rather than a single object.
func isOutage(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		switch status.Status().Code {
		case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable:
			return true
		}
		return false
	}
	return err != nil && isPassing(err)
}
