// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// The Node authorizer learns of a pod a moment later than kubelet, and of all objects of the pod at once.
func TestNewPodWaitsOnceForTheNodeAuthorizer(t *testing.T) {
	names := []string{"a", "b", "c"}
	setUp := func(t *testing.T) (*harness, Request) {
		h := newFakeHarness(t)
		r := h.described("v", projectedVolume(
			secretProjection("a", "k", "a"), secretProjection("b", "k", "b"), secretProjection("c", "k", "c"),
		), "uid", "1000")
		for _, name := range names {
			h.fake.refuse(secretRef(name))
		}
		return h, r
	}
	calls := func(h *harness, retries int) {
		h.t.Helper()
		// The first read of the pod is for the description of the volume.
		if pods, n := h.fake.called("Pod"), h.fake.called("Retry"); pods != 2 || n != retries {
			h.t.Errorf("%d reads of the pod and %d retries, want 2 and %d", pods, n, retries)
		}
	}
	t.Run("each object is read again once", func(t *testing.T) {
		h, r := setUp(t)
		h.fake.onRetry = func(ref source.Ref) { h.secret(ref.Name, content{"k": ref.Name}) }
		h.publish(r)
		h.present(r, content{"a": "a", "b": "b", "c": "c"})
		calls(h, 3)
		h.unpublish(r)
	})
	t.Run("a second refusal counts", func(t *testing.T) {
		h, r := setUp(t)
		h.fake.onRetry = func(ref source.Ref) {
			if ref.Name == "a" {
				h.secret("a", content{"k": "a"})
			}
		}
		before := h.snapshot()
		isErr(t, h.Publish(t.Context(), r), source.ErrForbidden, `Secret "ns/b"`, "no relationship found")
		calls(h, 2)
		h.unchanged(before)
	})
	t.Run("the pod stays unknown", func(t *testing.T) {
		h, _ := setUp(t)
		r := h.request("alone", "secretName", "a", "uid", "1000")
		h.fake.failPod(source.ErrForbidden)
		before := h.snapshot()
		isErr(t, h.Publish(t.Context(), r), source.ErrForbidden, `read the pod, which declares Secret "ns/a"`)
		if n := h.fake.called("Retry"); n != 0 {
			t.Errorf("%d retries, want none", n)
		}
		h.unchanged(before)
	})
	t.Run("a refusal by anybody else counts at once", func(t *testing.T) {
		h, r := setUp(t)
		h.fake.fail(secretRef("a"), source.ErrForbidden)
		isErr(t, h.Publish(t.Context(), r), source.ErrForbidden, `Secret "ns/a"`)
		if pods, n := h.fake.called("Pod"), h.fake.called("Retry"); pods != 1 || n != 0 {
			t.Errorf("%d reads of the pod and %d retries, want the one of the description and none", pods, n)
		}
	})
}

// F-47: a volume has as many objects as a volume may have, and the API server refuses each of them.
func TestRefusedObjectsMakeFewRequests(t *testing.T) {
	const objects = 64
	for _, test := range []struct {
		name string
		node bool
		// first and next are the largest numbers of requests of the first attempt and of the next one.
		first, next int64
	}{
		// The pod is read for its description, and again after the first refusal. The first object is read again.
		{"access node", true, objects + 3, 3},
		{"access service-account", false, objects + 1, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := &refusing{t: t}
			h := newFakeHarness(t, func(c *Config) {
				web := httptest.NewServer(server)
				t.Cleanup(web.Close)
				api, err := source.NewAPI(&rest.Config{Host: web.URL}, source.Options{NodeName: "n", Impersonate: test.node})
				must(t, err)
				t.Cleanup(api.Close)
				c.Source = api
			})
			var sources []corev1.VolumeProjection
			for n := range objects {
				sources = append(sources, secretProjection(fmt.Sprint("keys-", n)))
			}
			r := h.described("v", projectedVolume(sources...), "uid", "1000")
			server.pod = h.fake.pods[namespace+"/"+r.Pod.Name]

			start := time.Now()
			isErr(t, h.Publish(t.Context(), r), source.ErrForbidden, "no relationship found")
			first := server.asked.Load()
			isErr(t, h.Publish(t.Context(), r), source.ErrForbidden, "no relationship found")
			all := server.asked.Load()
			// On a busy machine the attempts take longer than a refusal is remembered.
			rounds := 1 + int64(time.Since(start)/(1500*time.Millisecond))
			if first > rounds*test.first || all > rounds*(test.first+test.next) {
				t.Errorf("%d requests, then %d; want at most %d and %d", first, all-first, test.first, test.next)
			}
			if n := h.config.Source.Watched(); n != 0 {
				t.Errorf("%d objects are watched", n)
			}
			reliability.Shown(t, "F-47", fmt.Sprintf("%s: %d refused objects: %d requests, then %d",
				test.name, objects, first, all-first))
		})
	}
}

// refusing is an API server that has a pod and refuses all Secrets.
type refusing struct {
	t     *testing.T
	pod   *corev1.Pod
	asked atomic.Int64
}

func (s *refusing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
	if strings.HasSuffix(r.URL.Path, "/pods/"+s.pod.Name) {
		s.write(w, s.pod.DeepCopy(), "Pod")
		return
	}
	secrets := schema.GroupResource{Resource: "secrets"}
	refusal := apierrors.NewForbidden(secrets, "any", errors.New("no relationship found"))
	w.WriteHeader(http.StatusForbidden)
	s.write(w, &refusal.ErrStatus, "Status")
}

func (s *refusing) write(w http.ResponseWriter, object runtime.Object, kind string) {
	object.GetObjectKind().SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	var data bytes.Buffer
	if err := protobuf.NewSerializer(nil, nil).Encode(object, &data); err != nil {
		s.t.Error(err)
	}
	_, _ = w.Write(data.Bytes())
}
