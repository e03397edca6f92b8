// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// failedWatches returns the values of fsuser_watch_failures_total, by reason.
func failedWatches(t *testing.T, metrics prometheus.Gatherer) map[watchFailure]float64 {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[watchFailure]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "fsuser_watch_failures_total" {
				values[watchFailure(m.GetLabel()[0].GetValue())] = m.GetCounter().GetValue()
			}
		}
	}
	return values
}

func TestWatchFailuresAreCounted(t *testing.T) {
	watched := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
	status := func(err *apierrors.StatusError) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { refuse(t, w, err) }
	}
	works := func(w http.ResponseWriter, r *http.Request) { stay(w, r, list(t, "1")) }
	for reason, answer := range map[watchFailure]http.HandlerFunc{
		watchForbidden:   status(forbidden()),
		watchUnavailable: status(apierrors.NewInternalError(errors.New("no etcd"))),
		watchExpired:     status(apierrors.NewResourceExpired("too old")),
		watchInvalid:     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("no protobuf at all")) },
		watchOther:       works,
	} {
		t.Run(string(reason), func(t *testing.T) {
			metrics := prometheus.NewRegistry()
			api := serve(t, Options{Metrics: metrics}, answer)
			if reason == watchOther {
				api.decoder = nil // Reading the answer panics.
			}
			if n := len(failedWatches(t, metrics)); n != 5 {
				t.Errorf("before the first failure, there are %d series, want 5", n)
			}
			api.Subscribe(watched, "test", false, func() {})
			testkit.Eventually(t, soon, "a failure with the reason "+string(reason), func() bool {
				return failedWatches(t, metrics)[reason] > 0
			})
			onlyFailed(t, metrics, reason)
		})
	}
}

func TestAWatchThatWorksIsNoFailure(t *testing.T) {
	watched := Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}
	metrics := prometheus.NewRegistry()
	api := serve(t, Options{Metrics: metrics}, func(w http.ResponseWriter, r *http.Request) { stay(w, r, list(t, "1")) })
	api.Subscribe(watched, "test", false, func() {})
	waitKnown(t, &api.registry, watched)
	onlyFailed(t, metrics, "")
}

// onlyFailed fails the test if a watch has failed for another reason.
func onlyFailed(t *testing.T, metrics prometheus.Gatherer, reason watchFailure) {
	t.Helper()
	for other, n := range failedWatches(t, metrics) {
		if other != reason && n != 0 {
			t.Errorf("%v failures have the reason %s, want none", n, other)
		}
	}
}
