// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// If two specs have namespaces of the same name, one after the other, each gets its own pods.
func TestPodsOfSpecs(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC)
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	o := &observer{pods: map[types.UID]*pod{}, warnings: map[types.UID][]string{}}
	for name, created := range map[string]time.Time{"before": at(-2), "first": at(0), "second": at(10)} {
		o.see(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: "secrets-1", Name: name, UID: types.UID(name),
			CreationTimestamp: metav1.NewTime(created.Truncate(time.Second)),
		}})
	}
	o.see(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "secrets-2", Name: "other", UID: "other", CreationTimestamp: metav1.NewTime(at(1)),
	}})
	for want, s := range map[string]spec{
		"first":  {namespaces: []string{"secrets-1"}, start: at(0), end: at(5)},
		"second": {namespaces: []string{"secrets-1"}, start: at(10), end: at(15)},
	} {
		if got := o.of(s); len(got) != 1 || got[0].name != want {
			t.Errorf("pods %+v, want %s alone", got, want)
		}
	}
}
