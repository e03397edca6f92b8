// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/rest"
)

// API watches objects of an API server, each by a watch of its own with a field selector on metadata.name: the one form
// of list and watch that the Node authorizer, and an RBAC rule with resourceNames, can allow object by object.
// Safe for concurrent use.
type API struct {
	client  rest.Interface
	decoder runtime.Decoder
	// node: the requests are made as this node, and the Node authorizer decides.
	node bool
	// patience is how long an answer may take.
	patience time.Duration
	registry

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// Options are what an API may be told. The zero value will do.
type Options struct {
	// Node is the name of the node to act as, by constrained impersonation (KEP-5284): the token of a service account that is bound
	// to a pod on a node may act as that node, and as no other. The Node authorizer then decides, object by object. Empty:
	// requests are made as who config says.
	Node string
	// ImmutableRecheck is the age from which an immutable object is read again when it is asked for: it can be deleted and made
	// anew. 0: ten minutes.
	ImmutableRecheck time.Duration
}

const (
	defaultRecheck  = 10 * time.Minute
	defaultPatience = 30 * time.Second
)

// NewAPI returns a source that reads through config. It starts nothing until the first Watch; Close ends all.
func NewAPI(config *rest.Config, o Options) (*API, error) {
	scheme, err := coreScheme()
	if err != nil {
		return nil, err
	}
	c := rest.CopyConfig(config)
	if o.Node != "" {
		c.Impersonate = rest.ImpersonationConfig{UserName: "system:node:" + o.Node}
	}
	client, err := newClient(c, scheme)
	if err != nil {
		return nil, err
	}
	if o.ImmutableRecheck == 0 {
		o.ImmutableRecheck = defaultRecheck
	}
	a := &API{
		client: client, decoder: protobuf.NewSerializer(scheme, scheme), node: o.Node != "", patience: defaultPatience,
		registry: newRegistry(o.ImmutableRecheck),
	}
	a.keep = a.keepCurrent
	a.ctx, a.cancel = context.WithCancel(context.Background())
	return a, nil
}

// Close ends all watches and waits for their goroutines. Nothing is watched afterwards.
func (a *API) Close() {
	// Whoever starts a watch holds the lock too: none is started once the waiting has begun.
	a.mu.Lock()
	a.cancel()
	a.mu.Unlock()
	a.running.Wait()
}

// keepCurrent starts a goroutine that keeps an object current. The registry's lock is held.
func (a *API) keepCurrent(o *object) (stop func()) {
	if a.ctx.Err() != nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(a.ctx)
	w := &watcher{api: a, object: o, seen: o.seen()}
	a.running.Go(func() {
		defer cancel()
		w.run(ctx)
	})
	return cancel
}

// request is one that the client does not repeat by itself: it would do so for ten seconds and more before it told what is wrong.
func (a *API) request(ref Ref) *rest.Request {
	return a.client.Get().Namespace(ref.Namespace).Resource(strings.ToLower(string(ref.Kind)) + "s").MaxRetries(0)
}

// read makes a request that has one answer.
func (a *API) read(ctx context.Context, request *rest.Request) (runtime.Object, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.patience, errNoAnswer)
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

// NewClient returns a client for core/v1 that speaks protobuf. Its scheme knows core/v1 alone: that of a clientset would double the
// size of the program.
func NewClient(config *rest.Config) (rest.Interface, error) {
	scheme, err := coreScheme()
	if err != nil {
		return nil, err
	}
	return newClient(config, scheme)
}

func coreScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register core/v1: %w", err)
	}
	return scheme, nil
}

func newClient(config *rest.Config, scheme *runtime.Scheme) (rest.Interface, error) {
	c := rest.CopyConfig(config)
	c.APIPath = "/api"
	c.GroupVersion = &corev1.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf
	// The API server's priority and fairness is what limits the driver. A limit here would only delay pods.
	c.QPS = -1
	c.WarningHandler = rest.NoWarnings{}
	// Half of what a watch costs in memory would be its decompressor, which stays as long as the watch does.
	c.DisableCompression = true
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return boundedErrors{next} })
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	return client, nil
}

// boundedErrors cuts answers that are errors: client-go reads them whole, however long they are.
type boundedErrors struct{ next http.RoundTripper }

const maxErrorBody = 64 << 10

// RoundTrip implements http.RoundTripper.
func (b boundedErrors) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := b.next.RoundTrip(request)
	if err == nil && response.StatusCode >= http.StatusMultipleChoices {
		response.Body = cutBody{io.LimitReader(response.Body, maxErrorBody), response.Body}
	}
	return response, err
}

// WrappedRoundTripper lets client-go find the transport below, as it does with its own wrappers.
func (b boundedErrors) WrappedRoundTripper() http.RoundTripper { return b.next }

type cutBody struct {
	io.Reader
	io.Closer
}
