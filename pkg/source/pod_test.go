// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestPodUser is the rule of kubelet's FsUserFrom, without ephemeral containers.
func TestPodUser(t *testing.T) {
	const none = -1
	type containers []int64 // what each says; none: nothing
	for name, test := range map[string]struct {
		pod                   int64
		init, main, ephemeral containers
		want                  int64 // none: nil
	}{
		"nobody says anything":                 {none, nil, containers{none}, nil, none},
		"the pod says it":                      {1000, nil, containers{none}, nil, 1000},
		"the container says it":                {none, nil, containers{1000}, nil, 1000},
		"the container overrules the pod":      {1000, nil, containers{2000}, nil, 2000},
		"all the same, said or inherited":      {1000, containers{1000}, containers{none, 1000}, containers{none}, 1000},
		"two containers differ":                {none, nil, containers{1000, 2000}, nil, none},
		"one container differs from the pod":   {1000, nil, containers{none, 2000}, nil, none},
		"all overrule the pod, alike":          {1, containers{2000}, containers{2000, 2000}, containers{2000}, 2000},
		"one says nothing":                     {none, nil, containers{1000, none}, nil, none},
		"an init container differs":            {none, containers{1}, containers{1000}, nil, none},
		"an init container says nothing":       {none, containers{none}, containers{1000}, nil, none},
		"an ephemeral container differs":       {1000, nil, containers{none}, containers{2000}, 1000},
		"an ephemeral container says nothing":  {none, nil, containers{1000}, containers{none}, 1000},
		"only an ephemeral container says it":  {none, nil, containers{none}, containers{2000}, none},
		"root":                                 {0, nil, containers{none}, nil, 0},
		"root and another":                     {0, nil, containers{none, 1}, nil, none},
		"no containers, whatever the pod says": {1000, nil, nil, nil, none},
		"the largest":                          {1<<31 - 1, nil, containers{none}, nil, 1<<31 - 1},
		"larger than the API server takes":     {1 << 31, nil, containers{none}, nil, none},
		"less than the API server takes":       {none, nil, containers{-5}, nil, none},
	} {
		t.Run(name, func(t *testing.T) {
			context := func(user int64) *corev1.SecurityContext {
				if user == none {
					return &corev1.SecurityContext{}
				}
				return &corev1.SecurityContext{RunAsUser: &user}
			}
			spec := corev1.PodSpec{}
			if test.pod != none {
				spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &test.pod}
			}
			for _, user := range test.init {
				spec.InitContainers = append(spec.InitContainers, corev1.Container{SecurityContext: context(user)})
			}
			for _, user := range test.main {
				spec.Containers = append(spec.Containers, corev1.Container{SecurityContext: context(user)})
			}
			for _, user := range test.ephemeral {
				spec.EphemeralContainers = append(spec.EphemeralContainers,
					corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{SecurityContext: context(user)}})
			}
			got := int64(none)
			if user := CommonUser(&spec); user != nil {
				got = int64(*user)
			}
			if got != test.want {
				t.Errorf("%d, want %d", got, test.want)
			}
		})
	}
	t.Run("contexts that are not there at all", func(t *testing.T) {
		user := int64(7)
		spec := corev1.PodSpec{Containers: []corev1.Container{{}}}
		if CommonUser(&spec) != nil {
			t.Error("a user out of nothing")
		}
		spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &user}
		if got := CommonUser(&spec); got == nil || *got != 7 {
			t.Errorf("%v, want the pod's", got)
		}
	})
}

func TestPod(t *testing.T) {
	t.Parallel()
	user := int64(1000)
	csi := func(name string, ref *corev1.LocalObjectReference) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{NodePublishSecretRef: ref}}}
	}
	there := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u"},
		Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{RunAsUser: &user}, Containers: []corev1.Container{{}},
			Volumes: []corev1.Volume{
				csi("with", &corev1.LocalObjectReference{Name: "secret-1"}), csi("without", nil),
				csi("another", &corev1.LocalObjectReference{Name: "secret-2"}),
				{Name: "native", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "secret-3"}}},
			},
		},
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
		"it is not there": {uid: "u", answer: func(_ int64, w http.ResponseWriter) { refuse(t, w, apierrors.NewNotFound(resource, "p")) },
			want: ErrNotFound, says: "not found", asked: 1},
		"it is forbidden": {uid: "u", answer: func(_ int64, w http.ResponseWriter) { refuse(t, w, denied) },
			want: ErrForbidden, says: "bind the ClusterRole fsuser-csi-reader", asked: 1},
		"it is forbidden to the node": {node: true, uid: "u", answer: func(_ int64, w http.ResponseWriter) { refuse(t, w, denied) },
			want: ErrForbidden, says: "no relationship found", asked: 20, atLeast: grace},
		"it is forbidden to the node at first": {node: true, uid: "u", answer: func(n int64, w http.ResponseWriter) {
			if n <= 2 {
				refuse(t, w, denied)
			} else {
				_, _ = w.Write(encoded(t, there.DeepCopy()))
			}
		}, asked: 3},
		"the API server does not know who asks": {uid: "u", answer: func(_ int64, w http.ResponseWriter) { refuse(t, w, apierrors.NewUnauthorized("Unauthorized")) },
			want: ErrUnavailable, says: "Unauthorized", asked: 1},
		"the API server is overloaded": {uid: "u", answer: func(_ int64, w http.ResponseWriter) { refuse(t, w, apierrors.NewTooManyRequests("slow down", 60)) },
			want: ErrUnavailable, says: "slow down", asked: 1},
		"an object of another kind": {uid: "u", answer: func(_ int64, w http.ResponseWriter) { _, _ = w.Write(encoded(t, secretOf("1"))) },
			want: ErrUnavailable, says: "understood", asked: 1},
		"a page for people": {uid: "u", answer: func(_ int64, w http.ResponseWriter) { fmt.Fprintln(w, "<html>") },
			want: ErrUnavailable, says: "understood", asked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var o Options
			if test.node {
				o.Node = "node-1"
			}
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
				if !errors.As(err, &e) || e.Reason != test.want || e.Ref != (Ref{Kind: PodKind, Namespace: "ns", Name: "p"}) || !strings.Contains(e.Detail, test.says) {
					t.Errorf("error %v, want %v that says %q", err, test.want, test.says)
				}
				return
			}
			if err != nil || pod.User == nil || *pod.User != 1000 {
				t.Errorf("%+v, error %v", pod, err)
			}
			if want := map[string]string{"with": "secret-1", "another": "secret-2"}; !maps.Equal(pod.SecretRefs, want) {
				t.Errorf("secret refs %v, want %v", pod.SecretRefs, want)
			}
		})
	}
}
