// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// watcher keeps one object current, in one goroutine. It repeats these steps:
//
//  1. Request a streaming list, which is a list and a watch in one request. The first list is of any version: the API
//     server answers at once from its cache, and the events that follow correct it. The first list for a volume that an
//     earlier process published is of the newest version, because that process may have seen a newer version than the
//     cache has. Later lists are not older than the last known version. A plain watch from that version would stay
//     silent at an API server that does not have the version, because its etcd was restored or because it lags.
//  2. If the API server does not support streaming lists, get the object. Go to 4.
//  3. After the list, the object is found or missing. A list of any version may lack the object only because the cache
//     does not have it yet, so get the object then. If it does not exist, go to 5.
//  4. Watch from the version of the object, or if it does not exist from the most recent version.
//  5. Handle the events as they come. Each has the version to continue from.
//  6. Stop once an immutable object has been read. The registry restarts the watcher later.
//  7. The watch lasted for its time. The API server still has its version, which a bookmark has just brought. Pause,
//     and go to 4.
//  8. The watch ended earlier, or brought nothing for three minutes, or something failed. Forget the version, so
//     that the next list is of the newest one, unless the failure says nothing about the version (no connection, an
//     overloaded server). Pause. Go to 1.
//
// A round makes at most three requests and ends with a pause, so no answer causes requests without end.
type watcher struct {
	api    *API
	object *object
	// version is the last known version, from which a watch continues. It is empty if none is known.
	version string
	// listVersion is the version to list if version is empty: anyVersion, or empty for the newest.
	listVersion string
	// resume means that the last watch ran for its full time, so the next one requires no list.
	resume bool
	// again means that the last request failed in an outage of the API server, and that no caller requested a retry.
	again bool
}

const (
	// tooShort is the duration of a watch in which nothing can have happened.
	tooShort = time.Second
	// anyVersion is the resource version for a read from the API server's cache.
	anyVersion = "0"
)

var (
	// errRewatch means that a get found the object. The watch must begin at the object's version.
	errRewatch = errors.New("the object needs a watch from its version")
	// errPanic means that the driver has a bug.
	errPanic = errors.New("reading the object panicked")
	// errComplete means that the object is immutable and has been read, so a watch has no purpose.
	errComplete = errors.New("the object is immutable")
)

func (w *watcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		resumed := w.version != ""
		err := w.roundSafely(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errComplete):
			w.update(event{kind: complete})
			return
		case err != nil && !isPassing(err):
			w.version = ""
		}
		if err != nil {
			w.api.failures.WithLabelValues(string(watchFailureOf(err))).Inc()
		}
		failure := w.api.explain(w.object.ref, err)
		failed := time.Now()
		pause := w.update(event{kind: ended, err: err, failure: failure, resumed: resumed})
		w.again = w.pause(ctx, pause) && isOutage(err)
		if w.again {
			w.again = w.pause(ctx, w.api.starts.spread(failed, w.api.Watched()))
		}
	}
}

func (w *watcher) update(e event) (pause time.Duration) { return w.api.update(w.object, e) }

// pause waits for d, or until retryNow, or until ctx ends. It reports whether d has passed.
func (w *watcher) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-w.object.retry:
	case <-ctx.Done():
	}
	return false
}

// roundSafely prevents a panic in the round of one object from ending the driver. The next round lists the object.
func (w *watcher) roundSafely(ctx context.Context) (err error) {
	defer recovered(&err, "object", w.object.ref.String())
	return w.round(ctx)
}

// recovered turns a panic into an error, and logs it with the name of the object. It must be deferred.
func recovered(err *error, key, name string) {
	if p := recover(); p != nil {
		// The value of the panic could hold a secret, so the log and the error show only its type.
		*err = fmt.Errorf("%w with a %T", errPanic, p)
		klog.ErrorS(*err, "The driver has a bug", key, name, "stack", string(debug.Stack()))
	}
}

// round makes the steps 1 to 6, or the steps 4 to 6 of a resumed watch. A nil error means that the watch began and
// ended.
func (w *watcher) round(ctx context.Context) error {
	if w.resume {
		return w.watch(ctx, false)
	}
	err := w.watch(ctx, true)
	if apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) { // The API server may not support streaming lists.
		err = w.get(ctx, "")
	} else if err == nil {
		return nil
	}
	if err != nil && !errors.Is(err, errRewatch) {
		return err
	}
	return w.watch(ctx, false)
}

// watch makes one watch request and handles its events until it ends.
func (w *watcher) watch(ctx context.Context, listing bool) error {
	failpoint.Hit("source-before-watch")
	w.resume = false
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	giveUp := time.AfterFunc(w.api.requestTimeout, func() { cancel(errNoAnswer) })
	defer giveUp.Stop()
	start, duration := time.Now(), jittered(w.api.options.WatchDuration)
	body, err := w.start(ctx, listing, duration)
	if err != nil {
		return err
	}
	defer body.Close()
	w.update(event{kind: connected})
	err = w.follow(body, listing, func() { giveUp.Reset(w.api.silence) })
	if errors.Is(context.Cause(ctx), errNoAnswer) {
		w.api.reconnect()
		return err
	}
	w.resume = err == nil && time.Since(start) > duration-time.Second // the request has whole seconds
	return err
}

// start waits for permission to start a watch, starts it, and reads the list at its beginning.
func (w *watcher) start(ctx context.Context, listing bool, duration time.Duration) (body io.ReadCloser, err error) {
	end, err := w.api.starts.begin(ctx, w.again)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = causeOf(ctx, err)
		}
		end(err)
	}()
	body, err = w.watchRequest(listing, duration).Stream(ctx)
	if err != nil || !listing {
		return body, err
	}
	if err := w.readList(ctx, body); err != nil {
		body.Close()
		return nil, err
	}
	return body, nil
}

// watchRequest returns a request for a watch of this object only.
func (w *watcher) watchRequest(listing bool, duration time.Duration) *rest.Request {
	request := w.api.request(w.object.ref).
		Param("fieldSelector", fields.OneTermEqualSelector(metav1.ObjectNameField, w.object.ref.Name).String()).
		Param("watch", "true").Param("allowWatchBookmarks", "true").
		Param("timeoutSeconds", strconv.Itoa(int(duration.Seconds())))
	version := w.version
	if listing {
		version = cmp.Or(w.version, w.listVersion)
		request.Param("sendInitialEvents", "true").
			Param("resourceVersionMatch", string(metav1.ResourceVersionMatchNotOlderThan))
	}
	if version != "" {
		request.Param("resourceVersion", version)
	}
	return request
}

// readList reads the events of a streaming list, up to the bookmark that ends the list.
func (w *watcher) readList(ctx context.Context, body io.Reader) error {
	var listed *Content
	for {
		kind, object, content, err := w.readEvent(body)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return errBrokenOff
		case err != nil:
			return err
		case kind == watch.Bookmark:
			if endsList(object) {
				return w.listed(ctx, listed, content.ResourceVersion)
			}
		case kind == watch.Deleted:
			listed = nil
		default:
			listed = &content
		}
	}
}

func endsList(bookmark runtime.Object) bool {
	o, ok := bookmark.(metav1.Object)
	return ok && o.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"
}

// listed handles the result of a list of listVersion.
func (w *watcher) listed(ctx context.Context, content *Content, version string) error {
	switch {
	case content != nil:
		return w.found(*content, version)
	case w.listVersion == anyVersion:
		return w.get(ctx, version)
	}
	w.missing(version)
	return nil
}

// get reads the object itself, in its newest version. If the object is missing, the watch begins at version.
func (w *watcher) get(ctx context.Context, version string) error {
	object, err := w.api.read(ctx, w.api.request(w.object.ref).Name(w.object.ref.Name))
	if apierrors.IsNotFound(err) {
		w.missing(version)
		return nil
	}
	if err != nil {
		return err
	}
	content, err := w.contentOf(object)
	if err != nil {
		return err
	}
	if err := w.found(content, content.ResourceVersion); err != nil {
		return err
	}
	return errRewatch
}

// follow handles the events of a watch until it ends. listed means that a list came before. The end of the connection
// is a failure only if nothing came before and the connection ends at once. follow calls alive at its start and after
// each event. It ends a watch that is silent for too long, and closes the connection: the connection may work although
// the server behind it is dead.
func (w *watcher) follow(body io.Reader, listed bool, alive func()) error {
	for start := time.Now(); ; listed = true {
		alive()
		kind, _, content, err := w.readEvent(body)
		switch {
		case isStatus(err), errors.Is(err, errNotUnderstood), errors.Is(err, errTooLarge):
			return err
		case err != nil && !listed && time.Since(start) < tooShort:
			return errBrokenOff
		case err != nil:
			return nil
		case kind == watch.Bookmark:
			w.version = content.ResourceVersion
		case kind == watch.Deleted:
			w.missing(content.ResourceVersion)
		default:
			if err := w.found(content, content.ResourceVersion); err != nil {
				return err
			}
		}
	}
}

// readEvent reads an event of a known type about an object of the right kind.
func (w *watcher) readEvent(body io.Reader) (watch.EventType, runtime.Object, Content, error) {
	kind, object, err := readEvent(body, w.api.decoder)
	if err != nil {
		return "", nil, Content{}, err
	}
	switch kind {
	case watch.Added, watch.Modified, watch.Deleted, watch.Bookmark:
	default:
		return "", nil, Content{}, errNotUnderstood
	}
	content, err := w.contentOf(object)
	return kind, object, content, err
}

func (w *watcher) contentOf(object runtime.Object) (Content, error) {
	content, ok := contentOf(w.object.ref.Kind, object)
	if !ok {
		return Content{}, errNotUnderstood
	}
	return content, nil
}

func (w *watcher) found(c Content, version string) error {
	w.version, w.listVersion = version, ""
	w.update(event{kind: found, content: c})
	if c.Immutable {
		return errComplete
	}
	return nil
}

func (w *watcher) missing(version string) {
	w.version, w.listVersion = version, ""
	w.update(event{kind: missing})
}

// isPassing reports whether a failure says nothing about the version from which the watch continues.
func isPassing(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		code := status.Status().Code
		return (code == http.StatusTooManyRequests || code >= http.StatusInternalServerError) && !isExpired(err)
	}
	return !errors.Is(err, errNotUnderstood) && !errors.Is(err, errTooLarge) && !errors.Is(err, errBrokenOff) &&
		!errors.Is(err, errPanic)
}

// isExpired reports whether the API server cannot continue from a version, because the version is too old, or too new
// after a restore of etcd.
func isExpired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

func isStatus(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}
