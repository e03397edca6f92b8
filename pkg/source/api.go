// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilnet "k8s.io/apimachinery/pkg/util/net"
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
	r := &reflection{api: a, object: o, done: cancel}
	a.running.Go(func() { r.run(ctx) })
	return cancel
}

// reflection keeps one object current by a client-go Reflector. It is the reflector's ListerWatcher and its store.
type reflection struct {
	api    *API
	object *object
	// done ends the reflection, from within: an immutable object needs no watching.
	done func()
	// refused is the answer to the last attempt at a streaming list. Only the reflector's goroutine uses it.
	refused error
}

func (r *reflection) run(ctx context.Context) {
	var expected runtime.Object = &corev1.Secret{}
	if r.object.ref.Kind == ConfigMap {
		expected = &corev1.ConfigMap{}
	}
	// The reflector's own backoff starts at 0.8 s and ends at 30 to 60 s; pods should not wait that long for an API server that
	// is back. Jitter spreads those that lost it together.
	backoff := wait.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 6, Cap: 15 * time.Second}
	reflector := cache.NewReflectorWithOptions(r, expected, r, cache.ReflectorOptions{
		Name: "source", TypeDescription: string(r.object.ref.Kind), Backoff: &backoff,
	})
	reflector.RunWithContext(ctx)
}

// ListWithContext implements cache.ListerWatcherWithContext. The reflector calls it only where a streaming list failed. If that
// was for want of support it is the fallback; else the same answer would come again, at the price of a request.
func (r *reflection) ListWithContext(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	if r.refused != nil && !apierrors.IsInvalid(r.refused) && !apierrors.IsBadRequest(r.refused) {
		return nil, r.refused
	}
	r.selectObject(&opts)
	var list runtime.Object = &corev1.SecretList{}
	if r.object.ref.Kind == ConfigMap {
		list = &corev1.ConfigMapList{}
	}
	err := r.request(&opts).Do(ctx).Into(list)
	return list, r.answered(ctx, err)
}

// WatchWithContext implements cache.ListerWatcherWithContext.
func (r *reflection) WatchWithContext(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	r.selectObject(&opts)
	opts.Watch = true
	streamingList := opts.SendInitialEvents != nil && *opts.SendInitialEvents
	if streamingList && opts.ResourceVersion == "" {
		// "Any version": answered at once from the API server's cache, and corrected by the events that follow. The
		// default, "the newest", has the API server wait for its cache to catch up with etcd, up to 100 ms.
		opts.ResourceVersion = "0"
	}
	w, err := r.request(&opts).Watch(ctx)
	err = r.answered(ctx, err)
	if streamingList {
		r.refused = err
	}
	return w, err
}

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

func (r *reflection) request(opts *metav1.ListOptions) *rest.Request {
	resource := "secrets"
	if r.object.ref.Kind == ConfigMap {
		resource = "configmaps"
	}
	return r.api.client.Get().Namespace(r.object.ref.Namespace).Resource(resource).VersionedParams(opts, r.api.params)
}

// answered records what an answer of the API server means for the object, and returns the error for the reflector.
func (r *reflection) answered(ctx context.Context, err error) error {
	switch {
	case err == nil:
		r.object.recovered()
		return nil
	case ctx.Err() != nil:
		// We went away, not the API server.
		return err
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		r.object.failed(ErrForbidden, detail(err))
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		// The reflector's own business: it lists anew, or without streaming.
		return err
	default:
		r.object.failed(ErrUnavailable, detail(err))
	}
	if utilnet.IsConnectionRefused(err) || apierrors.IsTooManyRequests(err) {
		// At these the reflector would wait without looking at its context (and Close for it). Hiding the cause
		// makes it wait in its outer loop, which does look.
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
	if len(items) == 0 {
		r.object.missing()
		return nil
	}
	return r.Add(items[0])
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
