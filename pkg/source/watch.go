// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/failpoint"
)

// watcher keeps one object current, in one goroutine. It goes round:
//
//  1. If a version is known, watch from it: go to 5.
//  2. Else ask for a streaming list, which is a list and a watch in one request. The first one is of any version: answered at once
//     from the API server's cache, and corrected by what follows. Later ones are of the newest: what was seen must not become older.
//     So is the first for who wants the newest (Ref.Newest).
//  3. If the API server does not know streaming lists, list, and go to 1.
//  4. The list is complete: the object is there, or is missing. It may be missing in a list of any version only because the cache
//     does not know of it yet, so it is asked for by itself; if it is there after all, go to 1 with its version.
//  5. Take the events as they come. Each has the version to go on from.
//  6. An immutable object has been read once and for all: the end. The registry starts another watcher when it wants to know again.
//  7. The watch ended, as each does after five to ten minutes, or something failed. Unless the failure is one that says nothing
//     about the version (no connection, an overloaded server), forget the version. Pause. Go to 1.
//
// A round makes four requests at most and ends with a pause, so nothing that an API server says makes it ask without end. What ends a
// watch that worked is no verdict on the object: the next round gives one.
type watcher struct {
	api    *API
	object *object
	// version is the one to go on from. Empty: read anew.
	version string
	// seen: the API server has told once whether the object exists.
	seen bool
	// immutable: the object was read, and is.
	immutable bool
	// started is when the first request was made.
	started time.Time
	// answered is when the watch of this round began to work. Zero: not yet.
	answered time.Time
	// resumed: this round went on from the version that an earlier one left.
	resumed bool
	// paused is how long the last pause could have been.
	paused time.Duration
	// refused is when the API server first refused, if it has not answered since. Zero: it has.
	refused time.Time
	// reported is the reason that the log has for the object's being away. Nil: it is not.
	reported error
}

const (
	// A watch lasts for minTimeout to twice that.
	minTimeout = 5 * time.Minute
	// lasting is how long a watch has to work for the next pause to be the first one again.
	lasting = 5 * time.Second
	// tooShort is a watch in which nothing can have happened.
	tooShort = time.Second
	// grace is how long the Node authorizer may take to learn of a pod, and gracePause the longest pause meanwhile.
	grace      = 2 * time.Second
	gracePause = 300 * time.Millisecond

	firstPause = 100 * time.Millisecond
	maxPause   = 15 * time.Second
	// refusedPause is the longest pause of who has been refused for refusedLong (docs/decisions/0007-refused.md).
	refusedPause = 5 * time.Minute
	refusedLong  = time.Minute
	// backAgain is what the longest pause becomes with the first answer of an API server that was away: that it does not know the rights
	// yet, or not the version any more. It is not overloaded, and the next question may be the last one.
	backAgain = time.Second
	// anyVersion is the resource version that asks for what the API server has at hand.
	anyVersion = "0"
)

// errElsewhere: the list did not have the object, but it was found by itself. The watch has to begin at its version.
var errElsewhere = errors.New("the object is newer than the list")

func (w *watcher) run(ctx context.Context) {
	w.started = time.Now()
	for {
		w.answered, w.resumed = time.Time{}, w.version != ""
		err := w.round(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil && w.immutable {
			w.object.rest()
			return
		}
		if w.pause(ctx, w.pauseAfter(err)) != nil {
			return
		}
	}
}

// pause is sleep, but ends when somebody asks.
func (w *watcher) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.object.asked:
		w.started = time.Now()
	case <-ctx.Done():
	}
	return ctx.Err()
}

// round is steps 1 to 6. No error: the watch began and ended.
func (w *watcher) round(ctx context.Context) error {
	if w.version == "" {
		err := w.watch(ctx, true)
		switch {
		case apierrors.IsInvalid(err), apierrors.IsBadRequest(err): // it was refused for being a streaming list, perhaps
			err = w.list(ctx)
		case !errors.Is(err, errElsewhere):
			return err
		}
		if err != nil && !errors.Is(err, errElsewhere) {
			return err
		}
	}
	if w.immutable {
		return nil
	}
	failpoint.Hit("source-between-read-and-watch")
	return w.watch(ctx, false)
}

// watch makes one watch request and takes what comes until it ends.
func (w *watcher) watch(ctx context.Context, listing bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	giveUp := time.AfterFunc(w.api.patience, func() { cancel(errNoAnswer) })
	defer giveUp.Stop()
	timeout := minTimeout + rand.N(minTimeout)
	body, err := w.watchRequest(listing, timeout).Stream(ctx)
	if err != nil {
		return causeOf(ctx, err)
	}
	defer body.Close()
	if listing {
		if err := w.takeList(ctx, body); err != nil || w.immutable {
			return causeOf(ctx, err)
		}
	}
	w.works()
	// The API server ends the watch. If it does not, it is gone.
	giveUp.Reset(timeout + w.api.patience)
	return w.follow(body, listing)
}

func (w *watcher) watchRequest(listing bool, timeout time.Duration) *rest.Request {
	version := w.version
	if listing {
		version = w.listVersion()
	}
	request := w.selecting(version).Param("watch", "true").Param("allowWatchBookmarks", "true").
		Param("timeoutSeconds", strconv.Itoa(int(timeout.Seconds())))
	if listing {
		request.Param("sendInitialEvents", "true").Param("resourceVersionMatch", string(metav1.ResourceVersionMatchNotOlderThan))
	}
	return request
}

// selecting is a request for the object and no other, in a version.
func (w *watcher) selecting(version string) *rest.Request {
	request := w.api.request(w.object.ref).
		Param("fieldSelector", fields.OneTermEqualSelector(metav1.ObjectNameField, w.object.ref.Name).String())
	if version != "" {
		request.Param("resourceVersion", version)
	}
	return request
}

// listVersion is the version to list: any for the first time, the newest if something was seen before, or the newest is wanted.
func (w *watcher) listVersion() string {
	if w.seen || w.object.ref.Newest {
		return ""
	}
	return anyVersion
}

// takeList takes the events that make up a streaming list, up to the bookmark that ends it.
func (w *watcher) takeList(ctx context.Context, body io.Reader) error {
	var listed *Content
	for {
		event, object, err := readEvent(body, w.api.decoder)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errBrokenOff
		}
		if err != nil {
			return err
		}
		content, err := w.contentOf(object)
		if err != nil {
			return err
		}
		switch event {
		case watch.Added, watch.Modified:
			listed = &content
		case watch.Deleted:
			listed = nil
		case watch.Bookmark:
			if endsList(object) {
				return w.takeListed(ctx, listed, content.ResourceVersion)
			}
		default:
			return errNotUnderstood
		}
	}
}

func endsList(bookmark runtime.Object) bool {
	o, ok := bookmark.(metav1.Object)
	return ok && o.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"
}

// list is the fallback for API servers without streaming lists.
func (w *watcher) list(ctx context.Context) error {
	answer, err := w.api.read(ctx, w.selecting(w.listVersion()))
	if err != nil {
		return err
	}
	list, err := meta.ListAccessor(answer)
	if err != nil {
		return errNotUnderstood
	}
	items, err := meta.ExtractList(answer)
	if err != nil {
		return errNotUnderstood
	}
	var listed *Content
	if len(items) > 0 {
		content, err := w.contentOf(items[0])
		if err != nil {
			return err
		}
		listed = &content
	}
	return w.takeListed(ctx, listed, list.GetResourceVersion())
}

// takeListed takes the result of a list of listVersion.
func (w *watcher) takeListed(ctx context.Context, listed *Content, version string) error {
	if listed == nil && w.listVersion() == anyVersion {
		return w.makeSure(ctx, version)
	}
	if listed == nil {
		w.missing(version)
		return nil
	}
	w.found(*listed)
	w.version = version
	return nil
}

// makeSure asks for the object itself, in its newest version, when a list of any version did not have it.
func (w *watcher) makeSure(ctx context.Context, version string) error {
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
	w.found(content)
	return errElsewhere
}

// follow takes the events of a watch until it ends. listed: something came already.
func (w *watcher) follow(body io.Reader, listed bool) error {
	for {
		event, object, err := readEvent(body, w.api.decoder)
		if err != nil {
			return w.ended(err, listed)
		}
		listed = true
		if err := w.take(event, object); err != nil || w.immutable {
			return err
		}
	}
}

// ended says whether the end of a watch is a failure. That of its connection is none, unless it comes at once and with nothing.
func (w *watcher) ended(err error, something bool) error {
	switch {
	case isStatus(err), errors.Is(err, errNotUnderstood), errors.Is(err, errTooLarge):
		return err
	case !something && time.Since(w.answered) < tooShort:
		return errBrokenOff
	}
	return nil
}

func (w *watcher) take(event watch.EventType, object runtime.Object) error {
	content, err := w.contentOf(object)
	if err != nil {
		return err
	}
	switch event {
	case watch.Added, watch.Modified:
		w.found(content)
	case watch.Deleted:
		w.missing(content.ResourceVersion)
	case watch.Bookmark:
		w.version = content.ResourceVersion
	default:
		return errNotUnderstood
	}
	return nil
}

func (w *watcher) contentOf(object runtime.Object) (Content, error) {
	content, ok := contentOf(w.object.ref.Kind, object)
	if !ok {
		return Content{}, errNotUnderstood
	}
	return content, nil
}

func (w *watcher) found(c Content) {
	w.seen, w.immutable, w.version = true, c.Immutable, c.ResourceVersion
	w.works()
	w.object.found(c)
}

func (w *watcher) missing(version string) {
	w.seen, w.version = true, version
	w.works()
	w.object.missing()
}

// works notes that the API server answers as it should.
func (w *watcher) works() {
	if w.answered.IsZero() {
		w.answered = time.Now()
	}
	w.refused = time.Time{}
	w.object.reached()
	if w.reported != nil {
		klog.InfoS("Object can be read again", "object", w.object.ref.String())
		w.reported = nil
	}
}

// pauseAfter is step 7. It notes what err means for the object and returns for how long to pause.
func (w *watcher) pauseAfter(err error) time.Duration {
	expired := isExpired(err) && w.version != ""
	if err != nil && !isPassing(err) {
		w.version = ""
	}
	if !w.seen && w.api.isEarly(err, w.started) {
		return jittered(gracePause)
	}
	if !w.answered.IsZero() && time.Since(w.answered) >= lasting {
		w.paused = 0
	}
	longest := maxPause
	if err != nil && errors.Is(reasonOf(err), ErrForbidden) {
		if w.refused.IsZero() {
			w.refused, w.paused = time.Now(), min(w.paused, backAgain)
		}
		if time.Since(w.refused) >= refusedLong {
			longest = refusedPause
		}
	}
	if expired && w.resumed {
		w.paused = min(w.paused, backAgain)
	}
	// What ends a watch that worked is not a verdict yet: the next round is.
	if err != nil && !expired && w.answered.IsZero() {
		w.failed(err)
	}
	w.paused = min(max(firstPause, 3*w.paused), longest)
	return jittered(w.paused) + askedPause(err)
}

func (w *watcher) failed(err error) {
	e := w.api.explain(w.object.ref, err)
	if errors.Is(e, ErrNotFound) {
		e.Reason = ErrUnavailable // of the path; a list has no object that could be missing
	}
	if errors.Is(e, ErrForbidden) && w.object.seen() && time.Since(w.refused) < tolerated {
		// An API server that has just started refuses what it will allow in a moment: it does not know the rights yet.
		w.object.lost(e)
		w.object.answered()
		return
	}
	w.object.failed(e)
	if _, away := w.object.outage(); w.seen && errors.Is(e, ErrUnavailable) && away == nil {
		return // back in a moment, perhaps: not worth a line for each object
	}
	if !errors.Is(w.reported, e.Reason) {
		klog.InfoS("Object can't be read", "object", e.Ref.String(), "reason", e.Reason, "detail", e.Detail)
		w.reported = e.Reason
	}
}

// isPassing reports whether a failure says nothing about the version that a watch was to go on from.
func isPassing(err error) bool {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		code := status.Status().Code
		return (code == http.StatusTooManyRequests || code >= http.StatusInternalServerError) && !isExpired(err)
	}
	return !errors.Is(err, errNotUnderstood) && !errors.Is(err, errTooLarge) && !errors.Is(err, errBrokenOff)
}

// isExpired reports whether the API server can't go on from a version: it is too old, or too new (etcd was restored).
func isExpired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

func isStatus(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}

// askedPause is the pause that the API server asks for with a failure, within bounds.
func askedPause(err error) time.Duration {
	seconds, _ := apierrors.SuggestsClientDelay(err)
	return min(time.Duration(max(seconds, 0))*time.Second, maxPause)
}

// jittered spreads those who pause together: it returns half of d to d.
func jittered(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }

// sleep pauses for d, or until ctx ends, which is the error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
