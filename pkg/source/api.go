// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// API watches objects of an API server, each by a reflector of its own with a field selector on metadata.name: the one form
// of list and watch that the Node authorizer, and an RBAC rule with resourceNames, can allow object by object.
// Safe for concurrent use.
type API struct {
	client rest.Interface
	params runtime.ParameterCodec
	registry

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// NewAPI returns a source that reads through config, with protobuf and with a scheme that knows core/v1 alone: the scheme
// of a clientset would double the size of the program. It starts nothing until the first Watch; Close ends all.
func NewAPI(config *rest.Config) (*API, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register core/v1: %w", err)
	}
	c := rest.CopyConfig(config)
	c.APIPath = "/api"
	c.GroupVersion = &corev1.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf
	// Half of what a watch costs in memory would be its decompressor, which stays as long as the watch does.
	c.DisableCompression = true
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return plainErrors{next} })
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("make API client: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &API{
		client: client, params: runtime.NewParameterCodec(scheme), registry: newRegistry(),
		ctx: ctx, cancel: cancel,
	}, nil
}

// Close ends all watches and waits for their goroutines. Nothing is watched afterwards.
func (a *API) Close() {
	a.cancel()
	a.running.Wait()
}

// Watch keeps ref current for holder until Unwatch. It calls changed after each change of what Get returns, the first
// included, and at once if Get has something to return already. changed must neither block nor call back. To watch again changes
// nothing.
func (a *API) Watch(ref Ref, holder string, changed func()) {
	a.watch(ref, holder, changed, a.start)
}

func (a *API) start(o *object) (stop func()) {
	ctx, cancel := context.WithCancel(a.ctx)
	r := &reflection{api: a, object: o, ctx: ctx, done: cancel}
	a.running.Go(r.run)
	return cancel
}

// reflection keeps one object current by a client-go Reflector. It is the reflector's ListerWatcher and its store.
type reflection struct {
	api    *API
	object *object
	ctx    context.Context
	// done ends the reflection, from within: an immutable object needs no watching.
	done func()

	// Only the reflector's goroutine uses what follows.

	// refused is the answer to the last attempt at a streaming list.
	refused error
	// attempts is how many streaming lists were asked for, one after the other, without coming to an end of any kind.
	attempts int
	// anyVersion: the last list was of any version.
	anyVersion bool
}

// kinds say how to ask for an object of a kind, and what to expect.
var kinds = map[Kind]struct {
	resource     string
	object, list runtime.Object
}{
	Secret:    {"secrets", &corev1.Secret{}, &corev1.SecretList{}},
	ConfigMap: {"configmaps", &corev1.ConfigMap{}, &corev1.ConfigMapList{}},
}

func (r *reflection) run() {
	// The reflector's own backoff starts at 0.8 s and ends at 30 to 60 s; pods should not wait that long for an API server that
	// is back. Jitter spreads those that lost it together.
	backoff := wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 6, Cap: 15 * time.Second}
	reflector := cache.NewReflectorWithOptions(r, kinds[r.object.ref.Kind].object, r, cache.ReflectorOptions{
		Name: "source", TypeDescription: string(r.object.ref.Kind), Backoff: &backoff,
	})
	reflector.RunWithContext(r.ctx)
}

// ListWithContext implements cache.ListerWatcherWithContext. The reflector calls it only where a streaming list failed. If that
// was for want of support it is the fallback; else the same answer would come again, at the price of a request.
func (r *reflection) ListWithContext(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	r.attempts = 0
	if r.refused != nil && !unsupported(r.refused) {
		return nil, r.refused
	}
	r.selectObject(&opts)
	r.anyVersion = opts.ResourceVersion == anyVersion
	list, err := r.fetch(ctx, r.request().VersionedParams(&opts, r.api.params), kinds[r.object.ref.Kind].list)
	return list, r.answered(ctx, opts.ResourceVersion, err)
}

// WatchWithContext implements cache.ListerWatcherWithContext.
func (r *reflection) WatchWithContext(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	r.selectObject(&opts)
	opts.Watch = true
	streamingList := opts.SendInitialEvents != nil && *opts.SendInitialEvents
	if streamingList && opts.ResourceVersion == "" && !r.object.seen() {
		// Answered at once from the API server's cache, and corrected by the events that follow. The default, the newest
		// version, has the API server wait for its cache to catch up with etcd, up to 100 ms. What was seen already
		// must not become older, though.
		opts.ResourceVersion = anyVersion
	}
	if streamingList {
		// The reflector has reason to ask twice, for a specific version and the newest. If the API server breaks off each of its
		// answers, though, the reflector goes on and on, without a pause.
		if r.attempts++; r.attempts > 2 {
			r.refused = r.answered(ctx, opts.ResourceVersion, errors.New("the API server breaks off its answers"))
			return nil, r.refused
		}
	}
	w, err := r.request().VersionedParams(&opts, r.api.params).Watch(ctx)
	if !streamingList || !unsupported(err) {
		err = r.answered(ctx, opts.ResourceVersion, err)
	}
	if streamingList {
		r.refused, r.anyVersion = err, opts.ResourceVersion == anyVersion
	}
	return w, err
}

// anyVersion is the resource version that asks for what the API server has at hand.
const anyVersion = "0"

// unsupported reports whether a streaming list was refused for being one.
func unsupported(err error) bool { return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) }

// List and Watch are the forms without a context, which the reflector does not use but its constructor asks for.
func (r *reflection) List(opts metav1.ListOptions) (runtime.Object, error) {
	return r.ListWithContext(r.api.ctx, opts)
}

// Watch is List's counterpart.
func (r *reflection) Watch(opts metav1.ListOptions) (watch.Interface, error) {
	return r.WatchWithContext(r.api.ctx, opts)
}

func (r *reflection) selectObject(opts *metav1.ListOptions) {
	opts.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, r.object.ref.Name).String()
}

// request is one that the client does not repeat by itself: it would do so for ten seconds and more before it told what is wrong.
func (r *reflection) request() *rest.Request {
	ref := r.object.ref
	return r.api.client.Get().Namespace(ref.Namespace).Resource(kinds[ref.Kind].resource).MaxRetries(0)
}

// fetch makes a request and insists on an answer of the type of expected.
func (r *reflection) fetch(ctx context.Context, request *rest.Request, expected runtime.Object) (runtime.Object, error) {
	got, err := request.Do(ctx).Get()
	if err == nil && reflect.TypeOf(got) != reflect.TypeOf(expected) {
		return nil, fmt.Errorf("the API server sent a %T, not a %T", got, expected)
	}
	return got, err
}

// answered records what an answer of the API server means for the object, and returns the error for the reflector. The request
// was for version.
func (r *reflection) answered(ctx context.Context, version string, err error) error {
	specific := version != "" && version != anyVersion
	switch {
	case err == nil:
		r.object.recovered()
		return nil
	case ctx.Err() != nil:
		// We went away, not the API server.
		return err
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		r.object.failed(ErrForbidden, detail(err))
	case specific && (apierrors.IsResourceExpired(err) || apierrors.IsGone(err)):
		// The reflector's own business: it lists anew.
		return err
	default:
		r.object.failed(ErrUnavailable, detail(err))
	}
	if !specific || apierrors.IsTooManyRequests(err) {
		// To some of these the reflector would answer with another try at once, without end; or it would wait without looking
		// at its context (and Close for it). Hiding the cause makes it wait in its outer loop, which does look.
		return errors.New(err.Error())
	}
	return err
}

// detail says what went wrong: the API server's message, or the connection's error without the request's URL.
func detail(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Message != "" {
		return oneLine(status.Status().Message)
	}
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	return oneLine(err.Error())
}

// The store: what the reflector sees.

// Add implements cache.ReflectorStore.
func (r *reflection) Add(obj any) error {
	c, ok := contentOf(obj)
	if !ok {
		return fmt.Errorf("watching %s: the API server sent a %T", r.object.ref, obj)
	}
	r.object.found(c)
	if c.Immutable {
		r.done()
	}
	return nil
}

// Update implements cache.ReflectorStore.
func (r *reflection) Update(obj any) error { return r.Add(obj) }

// Delete implements cache.ReflectorStore.
func (r *reflection) Delete(any) error {
	r.object.missing()
	return nil
}

// Replace implements cache.ReflectorStore.
func (r *reflection) Replace(items []any, _ string) error {
	r.attempts = 0
	switch {
	case len(items) > 0:
		return r.Add(items[0])
	case r.anyVersion:
		return r.makeSure()
	}
	r.object.missing()
	return nil
}

// makeSure asks for the object itself, in its newest version, when a list of any version did not have it: the API server's
// cache may not know yet of an object that was made a moment ago.
func (r *reflection) makeSure() error {
	obj, err := r.fetch(r.ctx, r.request().Name(r.object.ref.Name), kinds[r.object.ref.Kind].object)
	switch {
	case apierrors.IsNotFound(err):
		r.object.missing()
		return nil
	case err != nil:
		return r.answered(r.ctx, "", err)
	}
	return r.Add(obj)
}

// Resync implements cache.ReflectorStore.
func (r *reflection) Resync() error { return nil }

func contentOf(obj any) (Content, bool) {
	switch o := obj.(type) {
	case *corev1.Secret:
		return Content{Data: o.Data, UID: string(o.UID), ResourceVersion: o.ResourceVersion, Immutable: isTrue(o.Immutable)}, true
	case *corev1.ConfigMap:
		data := make(map[string][]byte, len(o.Data)+len(o.BinaryData))
		for key, value := range o.Data {
			data[key] = []byte(value)
		}
		for key, value := range o.BinaryData {
			data[key] = value
		}
		return Content{Data: data, UID: string(o.UID), ResourceVersion: o.ResourceVersion, Immutable: isTrue(o.Immutable)}, true
	}
	return Content{}, false
}

func isTrue(b *bool) bool { return b != nil && *b }

// plainErrors has a failed request say what went wrong in words only. By the kind of an error client-go would take a timeout or
// a closed connection for a watch that ended well, and the API server for reachable.
type plainErrors struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (p plainErrors) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := p.next.RoundTrip(request)
	if err != nil {
		err = errors.New(err.Error())
	}
	return response, err
}
