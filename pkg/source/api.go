// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/connrotation"
)

// API reads objects of an API server. Each object has a watch of its own with a field selector on metadata.name: the
// Node authorizer, and RBAC rules with resourceNames, allow a list or a watch of a single object only in this form.
// It is safe for concurrent use.
type API struct {
	client  rest.Interface
	decoder runtime.Decoder
	options Options
	// requestTimeout is the longest time for an answer.
	requestTimeout time.Duration
	// silence is the longest time between two events of a watch. The API server sends a bookmark every minute.
	silence time.Duration
	// reconnect closes all connections: a connection may answer pings although the API server behind it is dead.
	reconnect func()
	starts    *starts
	failures  *prometheus.CounterVec
	registry

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// Options configure an API. The zero value is valid.
type Options struct {
	// NodeName is the name of the driver's own node.
	NodeName string
	// Impersonate makes the driver send its requests as the node, by constrained impersonation (KEP-5284), so that the
	// Node authorizer decides about each object. The driver may do so with the token of a service account that is bound to
	// a pod on the node.
	Impersonate bool
	// WatchDuration is the longest duration of a watch. After between half of it and all of it, the driver makes another
	// request, for which the API server checks the driver's rights again. The driver does not watch an immutable object,
	// but reads it again after that time, because the object can be deleted and created again. 0 means the default: with
	// Impersonate an hour, as in kubelet, because the node may read an object for as long as its pods declare it; without
	// Impersonate ten minutes, because the owner of a namespace can delete the RoleBinding.
	WatchDuration time.Duration
	// Metrics registers the metrics of the watches. With nil, there are no metrics.
	Metrics prometheus.Registerer
}

const (
	nodeWatchDuration           = time.Hour
	serviceAccountWatchDuration = 10 * time.Minute

	defaultRequestTimeout = 30 * time.Second
	defaultSilence        = 3*time.Minute + 10*time.Second
	dialTimeout           = 30 * time.Second
)

// NewAPI returns a source that reads through config. It makes no request before the first Subscribe.
func NewAPI(config *rest.Config, o Options) (*API, error) {
	c := rest.CopyConfig(config)
	if o.Impersonate {
		c.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + o.NodeName}
	}
	dialer := connrotation.NewDialer((&net.Dialer{Timeout: dialTimeout}).DialContext)
	c.Dial = dialer.DialContext
	o.WatchDuration = cmp.Or(o.WatchDuration, defaultWatchDuration(o.Impersonate))
	client, scheme, err := newClient(c)
	if err != nil {
		return nil, err
	}
	failures, err := newFailures(o.Metrics)
	if err != nil {
		return nil, err
	}
	a := &API{
		reconnect: dialer.CloseAll,
		client:    client, decoder: protobuf.NewSerializer(scheme, scheme), options: o,
		requestTimeout: defaultRequestTimeout, silence: defaultSilence, starts: newStarts(),
		failures: failures, registry: newRegistry(o.WatchDuration),
	}
	a.start = a.startWatcher
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a, nil
}

func defaultWatchDuration(impersonate bool) time.Duration {
	if impersonate {
		return nodeWatchDuration
	}
	return serviceAccountWatchDuration
}

// Close ends all watches and waits for their goroutines. Nothing is watched afterwards.
func (a *API) Close() {
	a.mu.Lock() // The caller of startWatcher holds the lock too, so no goroutine starts after Wait has begun.
	a.cancel()
	for _, o := range a.objects {
		o.stop()
	}
	a.mu.Unlock()
	a.running.Wait()
}

// startWatcher implements registry.start.
func (a *API) startWatcher(o *object) (stop func()) {
	if a.ctx.Err() != nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(a.ctx)
	w := &watcher{api: a, object: o, listVersion: anyVersion}
	if o.seen || o.consistent {
		w.listVersion = ""
	}
	a.running.Go(func() {
		defer cancel()
		w.run(ctx)
	})
	return cancel
}

// request returns a request that the client does not retry: the client would retry for ten seconds or more before it
// reports an error.
func (a *API) request(ref Ref) *rest.Request {
	return a.client.Get().NamespaceIfScoped(ref.Namespace, ref.Namespace != "").
		Resource(strings.ToLower(string(ref.Kind)) + "s").MaxRetries(0)
}

// read makes a request that has a single answer.
func (a *API) read(ctx context.Context, request *rest.Request) (runtime.Object, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.requestTimeout, errNoAnswer)
	defer cancel()
	body, err := request.Stream(ctx)
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	defer body.Close()
	answer, err := io.ReadAll(io.LimitReader(body, maxFrame))
	if err != nil {
		return nil, causeOf(ctx, err)
	}
	return decode(a.decoder, answer)
}

// NewClient returns a client for core/v1 that uses protobuf. Its scheme has core/v1 only: the scheme of a clientset
// would double the size of the program.
func NewClient(config *rest.Config) (rest.Interface, error) {
	client, _, err := newClient(config)
	return client, err
}

func newClient(config *rest.Config) (rest.Interface, *runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, nil, fmt.Errorf("register core/v1: %w", err)
	}
	c := rest.CopyConfig(config)
	c.APIPath = "/api"
	c.GroupVersion = &corev1.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf
	// The API server's priority and fairness limits the requests. Another limit here would only delay pods.
	c.QPS = -1
	c.WarningHandler = rest.NoWarnings{}
	// A decompressor would double the memory of each watch, for as long as the watch lasts.
	c.DisableCompression = true
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return boundedErrors{next} })
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, nil, fmt.Errorf("create API client: %w", err)
	}
	return client, scheme, nil
}

// boundedErrors limits the length of error answers, because client-go reads them without a limit.
type boundedErrors struct{ next http.RoundTripper }

const maxErrorBody = 64 << 10

// RoundTrip implements http.RoundTripper.
func (b boundedErrors) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := b.next.RoundTrip(request)
	if err == nil && response.StatusCode >= http.StatusMultipleChoices {
		response.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(response.Body, maxErrorBody), response.Body}
	}
	return response, err
}

// WrappedRoundTripper returns the wrapped transport to client-go.
func (b boundedErrors) WrappedRoundTripper() http.RoundTripper { return b.next }
