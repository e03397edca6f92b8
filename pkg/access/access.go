// SPDX-License-Identifier: Apache-2.0

// Package access checks whether the API server lets the driver read objects.
package access

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/pkg/event"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/status"
)

// The reasons of the Events about the driver's own pod.
const (
	reasonNotReady = "AccessNotReady"
	reasonReady    = "AccessReady"
)

const (
	defaultInterval = 10 * time.Minute
	// retriesPerInterval determines the pause between checks while the access does not work or is unknown, as a part of
	// the interval.
	retriesPerInterval = 10
	// confirmationsPerInterval determines the pause before the confirmation of a first refusal. An API server that has
	// just started, or in which the driver's ClusterRoleBinding was just created, does not know the rights yet.
	confirmationsPerInterval = 60
)

// Config is the configuration of a Checker.
type Config struct {
	// Read reads an object of the API server in the way in which the driver reads the objects of volumes. Its error is an
	// error of package source. If Read is nil, the Checker checks nothing.
	Read func(context.Context) error
	// Events records an Event about Pod, which is the driver's own pod. If Events is nil, no Event is recorded.
	Events func(event.Event)
	Pod    event.Pod
	// Interval is the time between two checks while the access works. 0 means ten minutes.
	Interval time.Duration
}

// Checker checks the access at its start and then at intervals. It is safe for concurrent use, and it is a
// prometheus.Collector of the result.
type Checker struct {
	config Config

	mu     sync.Mutex
	result *status.Access // nil: no check has had a result
}

// New returns a Checker. It starts nothing: call Run.
func New(c Config) *Checker {
	if c.Interval == 0 {
		c.Interval = defaultInterval
	}
	return &Checker{config: c}
}

// Status returns the last result, or nil if there is none.
func (c *Checker) Status() *status.Access {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.result
}

// Run checks the access until ctx ends.
func (c *Checker) Run(ctx context.Context) {
	if c.config.Read == nil {
		return
	}
	refused := false
	for ctx.Err() == nil {
		var pause time.Duration
		refused, pause = c.check(ctx, refused)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// check makes one check. refusedBefore means that the previous check was refused. check returns whether this check was
// refused, and the time until the next one. Any other error, such as an outage of the API server, says nothing about
// the access, so the last result stays.
func (c *Checker) check(ctx context.Context, refusedBefore bool) (refused bool, pause time.Duration) {
	err := c.config.Read(ctx)
	refused = errors.Is(err, source.ErrForbidden)
	switch {
	case err == nil:
		c.works()
		return false, c.config.Interval
	case refused && !refusedBefore:
		return true, c.config.Interval / confirmationsPerInterval
	case refused:
		c.fails(err)
	case ctx.Err() == nil:
		klog.V(2).ErrorS(err, "Access not checked")
	}
	return refused, c.config.Interval / retriesPerInterval
}

func (c *Checker) works() {
	before, changed := c.set(status.Access{Ready: true})
	if !changed {
		return
	}
	klog.InfoS("The driver's access works")
	if before != nil {
		c.record(event.Normal, reasonReady, "the driver's access works again")
	}
}

// fails records an Event after each check, because the API server deletes Events after an hour.
func (c *Checker) fails(err error) {
	if _, changed := c.set(status.Access{Reason: err.Error()}); changed {
		klog.ErrorS(err, "The driver's access does not work; volumes of this node can't be published or refreshed")
	}
	c.record(event.Warning, reasonNotReady, "the driver's access does not work: "+err.Error())
}

// set replaces the result if readiness or reason have changed.
func (c *Checker) set(next status.Access) (before *status.Access, changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before = c.result
	if before != nil && before.Ready == next.Ready && before.Reason == next.Reason {
		return before, false
	}
	next.Since = time.Now()
	if before != nil && before.Ready == next.Ready {
		next.Since = before.Since
	}
	c.result = &next
	return before, true
}

func (c *Checker) record(kind event.Type, reason, message string) {
	if c.config.Events != nil && c.config.Pod != (event.Pod{}) {
		c.config.Events(event.Event{Pod: c.config.Pod, Type: kind, Reason: reason, Message: message})
	}
}

var ready = prometheus.NewDesc("fsuser_access_ready",
	"1 if the API server lets the driver read objects. 0 if the API server refuses: no new volume of the node can be "+
		"published, except with a nodePublishSecretRef; the log and fsuser-csi status show the reason and the remedy. "+
		"Absent before the first result, and without an API server.", nil, nil)

// Describe implements prometheus.Collector.
func (c *Checker) Describe(ch chan<- *prometheus.Desc) { ch <- ready }

// Collect implements prometheus.Collector.
func (c *Checker) Collect(ch chan<- prometheus.Metric) {
	result := c.Status()
	if result == nil {
		return
	}
	value := 0.0
	if result.Ready {
		value = 1
	}
	ch <- prometheus.MustNewConstMetric(ready, prometheus.GaugeValue, value)
}
