// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// watchFailure is a value of the label "reason".
type watchFailure string

const (
	watchForbidden   watchFailure = "forbidden"
	watchUnavailable watchFailure = "unavailable"
	watchExpired     watchFailure = "expired"
	watchInvalid     watchFailure = "invalid"
	watchOther       watchFailure = "other"
)

// newFailures returns the counter of failed watches. Each series exists with the value 0 before its first event.
func newFailures(r prometheus.Registerer) (*prometheus.CounterVec, error) {
	failures := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "fsuser_watch_failures_total",
		Help: "Watches of objects that failed, by reason (forbidden: the API server refuses; unavailable: no " +
			"connection, no answer in time, or an error of the API server; expired: the API server does not have the " +
			"version any more; invalid: the driver can't read the answer; other: a bug of the driver).",
	}, []string{"reason"})
	for _, reason := range []watchFailure{
		watchForbidden, watchUnavailable, watchExpired, watchInvalid, watchOther,
	} {
		failures.WithLabelValues(string(reason))
	}
	if r == nil {
		return failures, nil
	}
	return failures, r.Register(failures)
}

func watchFailureOf(err error) watchFailure {
	switch {
	case apierrors.IsForbidden(err):
		return watchForbidden
	case isExpired(err):
		return watchExpired
	case errors.Is(err, errNotUnderstood), errors.Is(err, errTooLarge):
		return watchInvalid
	case errors.Is(err, errPanic):
		return watchOther
	}
	return watchUnavailable
}
