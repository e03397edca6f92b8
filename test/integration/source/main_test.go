// SPDX-License-Identifier: Apache-2.0

// Package source_test tests package source with a real API server.
package source_test

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/test/controlplane"
)

const (
	subscriber = "volume-1"
	namespace  = metav1.NamespaceDefault
	// soon is the longest wait for an event that takes milliseconds, on a busy machine.
	soon = 10 * time.Second
)

// All tests share controlPlane and its namespace, so each test has its own object names.
var controlPlane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	if path := os.Getenv(memoryChild); path != "" {
		memoryChildMain(path)
		return
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	// Tests in parallel wait most of the time.
	flag.Parse()
	if err := flag.Set("test.parallel", "32"); err != nil {
		panic(err)
	}
	var err error
	if controlPlane, err = controlplane.Start(context.Background(), controlplane.Options{}); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
	defer controlPlane.Stop()
	return m.Run()
}

// log collects the output of klog.
var log, _ = testkit.CaptureLog(5)

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// client creates objects as the administrator.
type client struct {
	core, rbac *rest.RESTClient
}

func newClient(t testing.TB) client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	restClient := func(path string, version schema.GroupVersion) *rest.RESTClient {
		config := controlPlane.AdminConfig()
		config.APIPath = path
		config.GroupVersion = &version
		config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
		c, err := rest.RESTClientFor(config)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	return client{core: restClient("/api", corev1.SchemeGroupVersion),
		rbac: restClient("/apis", rbacv1.SchemeGroupVersion)}
}

// place returns the client, the resource and the name for an object.
func (c client) place(object metav1.Object) (*rest.RESTClient, string) {
	switch object.(type) {
	case *corev1.Secret:
		return c.core, "secrets"
	case *corev1.ConfigMap:
		return c.core, "configmaps"
	case *rbacv1.Role:
		return c.rbac, "roles"
	case *rbacv1.RoleBinding:
		return c.rbac, "rolebindings"
	}
	panic(fmt.Sprintf("no place for a %T", object))
}

type object interface {
	metav1.Object
	runtime.Object
}

// create creates an object and waits until the API server's cache has it. The tests count requests, and the first
// request reads from the cache.
func (c client) create(t testing.TB, o object) {
	t.Helper()
	c.createAtOnce(t, o)
	rc, resource := c.place(o)
	testkit.Eventually(t, soon, resource+" "+o.GetName()+" in the API server's cache", func() bool {
		return rc.Get().Namespace(namespace).Resource(resource).Name(o.GetName()).Param("resourceVersion",
			"0").Do(t.Context()).Error() == nil
	})
}

// createAtOnce creates an object without waiting for the API server's cache.
func (c client) createAtOnce(t testing.TB, o object) {
	t.Helper()
	rc, resource := c.place(o)
	if err := rc.Post().Namespace(namespace).Resource(resource).Body(o).Do(t.Context()).Error(); err != nil {
		t.Fatalf("create %s %s: %v", resource, o.GetName(), err)
	}
}

func (c client) update(t testing.TB, o object) {
	t.Helper()
	rc, resource := c.place(o)
	err := rc.Put().Namespace(namespace).Resource(resource).Name(o.GetName()).Body(o).Do(t.Context()).Error()
	if err != nil {
		t.Fatalf("update %s %s: %v", resource, o.GetName(), err)
	}
}

func (c client) delete(t testing.TB, o object) {
	t.Helper()
	rc, resource := c.place(o)
	err := rc.Delete().Namespace(namespace).Resource(resource).Name(o.GetName()).Do(t.Context()).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatalf("delete %s %s: %v", resource, o.GetName(), err)
	}
}

// secret returns a Secret with one key.
func secret(name, value string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{"key": []byte(value)}}
}

func secretRef(name string) source.Ref {
	return source.Ref{Kind: attributes.Secret, Namespace: namespace, Name: name}
}

// newAPI returns a source that reads with config. It is closed when the test ends.
func newAPI(t testing.TB, config *rest.Config) *source.API {
	t.Helper()
	api, err := source.NewAPI(config, source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	return api
}

// watched subscribes to ref until the test ends, waits for the first result, and counts the notifications.
func watched(t testing.TB, api *source.API, ref source.Ref) *atomic.Int64 {
	t.Helper()
	changes := &atomic.Int64{}
	api.Subscribe(ref, subscriber, false, func() { changes.Add(1) })
	t.Cleanup(func() { api.Unsubscribe(ref, subscriber) })
	waitKnown(t, api, ref)
	return changes
}

func waitKnown(t testing.TB, api *source.API, ref source.Ref) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	api.Wait(ctx, ref)
	if ctx.Err() != nil {
		t.Fatalf("nothing known of %s after %v", ref, soon)
	}
}

// value returns the value of a secret's key, or the error.
func value(api *source.API, ref source.Ref) string {
	content, err := api.Get(ref)
	if err != nil {
		return err.Error()
	}
	return string(content.Data["key"])
}

func waitValue(t testing.TB, api *source.API, ref source.Ref, bound time.Duration, want string) {
	t.Helper()
	var got string
	defer func() {
		if t.Failed() {
			t.Logf("the last value was %q", got)
		}
	}()
	testkit.Eventually(t, bound, fmt.Sprintf("%s to hold %q", ref, want), func() bool {
		got = value(api, ref)
		return got == want
	})
}

// requests records the requests of a source to the API server.
type requests struct {
	mu   sync.Mutex
	urls []*url.URL
	open atomic.Int64
}

// counted returns config with a transport that records the requests.
func counted(config *rest.Config) (*rest.Config, *requests) {
	r := &requests{}
	config = rest.CopyConfig(config)
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper { return &countingTransport{next: rt, requests: r} })
	return config, r
}

func (r *requests) all() []*url.URL {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*url.URL(nil), r.urls...)
}

type countingTransport struct {
	next     http.RoundTripper
	requests *requests
}

func (c *countingTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	c.requests.mu.Lock()
	c.requests.urls = append(c.requests.urls, request.URL)
	c.requests.mu.Unlock()
	response, err := c.next.RoundTrip(request)
	if err == nil {
		c.requests.open.Add(1)
		response.Body = &countedBody{response.Body, sync.OnceFunc(func() { c.requests.open.Add(-1) })}
	}
	return response, err
}

type countedBody struct {
	body interface {
		Read([]byte) (int, error)
		Close() error
	}
	ended func()
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if err != nil {
		b.ended()
	}
	return n, err
}

func (b *countedBody) Close() error {
	b.ended()
	return b.body.Close()
}

// goroutines returns the stacks of the goroutines of watches.
func goroutines() []string {
	var all strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&all, 2)
	var found []string
	for stack := range strings.SplitSeq(all.String(), "\n\n") {
		for _, sign := range []string{"fsuser-csi/pkg/source.", "clientStream"} {
			if strings.Contains(stack, sign) {
				found = append(found, stack)
				break
			}
		}
	}
	return found
}

func noGoroutinesLeft(t testing.TB) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Log(strings.Join(goroutines(), "\n\n"))
		}
	}()
	testkit.Eventually(t, soon, "the goroutines of the watches to end", func() bool { return len(goroutines()) == 0 })
}
