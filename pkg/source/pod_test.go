// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

func TestPod(t *testing.T) {
	t.Parallel()
	there := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"},
		Spec:       corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v"}}},
	}
	resource := schema.GroupResource{Resource: "pods"}
	denied := apierrors.NewForbidden(resource, "p", errors.New("no relationship found"))
	for name, test := range map[string]struct {
		node    bool
		uid     string
		answer  func(n int64, w http.ResponseWriter)
		want    error
		says    string
		asked   int64 // at most
		atLeast time.Duration
	}{
		"it is there":              {uid: "u", asked: 1},
		"another of the same name": {uid: "v", want: ErrNotFound, says: "another pod", asked: 1},
		"it is not there": {uid: "u", answer: func(_ int64, w http.ResponseWriter) {
			refuse(t, w, apierrors.NewNotFound(resource, "p"))
		},
			want: ErrNotFound, says: "not found", asked: 1},
		"it is forbidden": {uid: "u", answer: func(_ int64, w http.ResponseWriter) { refuse(t, w, denied) },
			want: ErrForbidden, says: "bind the ClusterRole fsuser-csi-reader", asked: 1},
		"it is forbidden to the node": {node: true, uid: "u",
			answer: func(_ int64, w http.ResponseWriter) { refuse(t, w, denied) },
			want:   ErrForbidden, says: "no relationship found", asked: 4, atLeast: authorizerLag / 2},
		"it is forbidden to the node at first": {node: true, uid: "u", answer: func(n int64, w http.ResponseWriter) {
			if n <= 2 {
				refuse(t, w, denied)
			} else {
				_, _ = w.Write(encoded(t, there.DeepCopy()))
			}
		}, asked: 3},
		"the API server does not know the driver": {uid: "u",
			answer: func(_ int64, w http.ResponseWriter) { refuse(t, w, apierrors.NewUnauthorized("Unauthorized")) },
			want:   ErrUnavailable, says: "Unauthorized", asked: 1},
		"the API server is overloaded": {uid: "u",
			answer: func(_ int64, w http.ResponseWriter) { refuse(t, w, apierrors.NewTooManyRequests("slow down", 60)) },
			want:   ErrUnavailable, says: "slow down", asked: 1},
		"an object of another kind": {uid: "u",
			answer: func(_ int64, w http.ResponseWriter) { _, _ = w.Write(encoded(t, secretOf("1"))) },
			want:   ErrUnavailable, says: "understood", asked: 1},
		"a page for people": {uid: "u", answer: func(_ int64, w http.ResponseWriter) { fmt.Fprintln(w, "<html>") },
			want: ErrUnavailable, says: "understood", asked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := Options{NodeName: "node-1", Impersonate: test.node}
			var asked atomic.Int64
			api := serve(t, o, func(w http.ResponseWriter, r *http.Request) {
				n := asked.Add(1)
				if r.URL.Path != "/api/v1/namespaces/ns/pods/p" || r.URL.RawQuery != "" || r.Method != http.MethodGet {
					t.Errorf("%s %s", r.Method, r.URL)
				}
				if test.answer == nil {
					_, _ = w.Write(encoded(t, there.DeepCopy()))
					return
				}
				test.answer(n, w)
			})
			start := time.Now()
			pod, err := api.Pod(t.Context(), "ns", "p", test.uid)
			if took := time.Since(start); took < test.atLeast || asked.Load() > test.asked {
				t.Errorf("%d requests in %v, want at most %d in at least %v", asked.Load(), took, test.asked, test.atLeast)
			}
			if test.want != nil {
				var e *Error
				if !errors.As(err, &e) || e.Reason != test.want ||
					e.Ref != (Ref{Kind: attributes.Pod, Namespace: "ns", Name: "p"}) || !strings.Contains(e.Detail, test.says) {
					t.Errorf("error %v, want %v that says %q", err, test.want, test.says)
				}
				return
			}
			if err != nil || pod.UID != "u" || len(pod.Spec.Volumes) != 1 {
				t.Errorf("%+v, error %v", pod, err)
			}
		})
	}
}

func TestAllocatable(t *testing.T) {
	t.Parallel()
	resource := schema.GroupResource{Resource: "nodes"}
	for name, test := range map[string]struct {
		impersonate bool
		answer      func(http.ResponseWriter)
		want        error
		says        string
	}{
		"it is there": {answer: func(w http.ResponseWriter) {
			_, _ = w.Write(encoded(t, &corev1.Node{
				ObjectMeta: metav1.ObjectMeta{Name: "node-1"},
				Status:     corev1.NodeStatus{Allocatable: corev1.ResourceList{"cpu": apiresource.MustParse("1500m")}},
			}))
		}},
		"an object of another kind": {
			answer: func(w http.ResponseWriter) { _, _ = w.Write(encoded(t, secretOf("1"))) },
			want:   ErrUnavailable, says: "understood",
		},
		"it is not there": {
			answer: func(w http.ResponseWriter) { refuse(t, w, apierrors.NewNotFound(resource, "node-1")) },
			want:   ErrNotFound, says: `nodes "node-1" not found`,
		},
		"it is forbidden": {
			answer: func(w http.ResponseWriter) {
				refuse(t, w, apierrors.NewForbidden(resource, "node-1", errors.New("no")))
			},
			want: ErrForbidden, says: "the driver's ClusterRole must allow it to get nodes",
		},
		"it is forbidden to the node": {
			impersonate: true,
			answer: func(w http.ResponseWriter) {
				refuse(t, w, apierrors.NewForbidden(resource, "node-1", errors.New("no")))
			},
			want: ErrForbidden, says: "the driver may not act as its node",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := serve(t, Options{NodeName: "node-1", Impersonate: test.impersonate},
				func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/api/v1/nodes/node-1" || r.URL.RawQuery != "" || r.Method != http.MethodGet {
						t.Errorf("%s %s", r.Method, r.URL)
					}
					test.answer(w)
				})
			allocatable, err := api.Allocatable(t.Context())
			if test.want != nil {
				var e *Error
				if !errors.As(err, &e) || e.Reason != test.want || e.Ref.String() != `Node "node-1"` ||
					!strings.Contains(e.Detail, test.says) {
					t.Errorf("error %v, want %v that says %q", err, test.want, test.says)
				}
				return
			}
			if cpu := allocatable["cpu"]; err != nil || cpu.String() != "1500m" {
				t.Errorf("%v, error %v", allocatable, err)
			}
		})
	}
}
