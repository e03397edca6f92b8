// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// maxDetail is how much of a server's message an error repeats, in bytes.
	maxDetail = 300
	// maxText is how long an error with a remedy may be as a whole: it ends up in Events, which hold 1 KiB.
	maxText = 900
)

// explain sorts what a request for an object ended with, and adds what can be done about a refusal.
func (a *API) explain(ref Ref, err error) *Error {
	e := &Error{Ref: ref, Reason: reasonOf(err)}
	remedy := ""
	if apierrors.IsForbidden(err) {
		remedy = a.remedy(ref)
	}
	room := max(0, min(maxDetail, maxText-len(e.Error())-len(": ")-len(remedy)))
	e.Detail = oneLine(message(err), room) + remedy
	return e
}

// reasonOf sorts what a request for an object ended with.
func reasonOf(err error) error {
	switch {
	case apierrors.IsNotFound(err):
		return ErrNotFound
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return ErrForbidden
	}
	return ErrUnavailable
}

// remedy says what can be done if ref is forbidden.
func (a *API) remedy(ref Ref) string {
	if !a.node {
		return fmt.Sprintf("; let the driver read it: kubectl -n %s create rolebinding fsuser-csi --clusterrole=fsuser-csi-reader --serviceaccount=fsuser-csi:fsuser-csi", ref.Namespace)
	}
	volume := ""
	switch ref.Kind {
	case Secret:
		volume = fmt.Sprintf("{name: x, secret: {secretName: %s, optional: true}}", ref.Name)
	case ConfigMap:
		volume = fmt.Sprintf("{name: x, configMap: {name: %s, optional: true}}", ref.Name)
	default:
		return "" // nobody has to declare a pod
	}
	return "; with access node the pod must declare the object: is the declare-references policy installed, or was the pod made before it was? Else add an unmounted volume, " + volume + ", to the pod"
}

// isEarly reports whether err is a refusal that may come only from the Node authorizer's not having heard of a pod yet: it learns of
// pods by watches of its own. started is when the object was first asked for.
func (a *API) isEarly(err error, started time.Time) bool {
	return a.node && apierrors.IsForbidden(err) && time.Since(started) < grace
}

// message says what went wrong: the API server's message, or the connection's error without the request's URL.
func message(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Message != "" {
		return status.Status().Message
	}
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	return err.Error()
}
