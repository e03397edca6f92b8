// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
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
	errors.As(err, &e.Number)
	remedy := ""
	if apierrors.IsForbidden(err) {
		remedy = a.remedy(ref, err)
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

// serviceAccount finds who was refused, if it is a service account: the driver is installed in a namespace of anybody's choice.
var serviceAccount = regexp.MustCompile(`User "system:serviceaccount:([a-z0-9-]{1,63}:[a-z0-9.-]{1,253})" cannot`)

// remedy says what can be done if ref is forbidden, as refused says.
func (a *API) remedy(ref Ref, refused error) string {
	if !a.node {
		if account := serviceAccount.FindStringSubmatch(message(refused)); account != nil {
			return fmt.Sprintf("; let the driver read it: kubectl -n %s create rolebinding fsuser-csi --clusterrole=fsuser-csi-reader --serviceaccount=%s", ref.Namespace, account[1])
		}
		return fmt.Sprintf("; let the driver read it: bind the ClusterRole fsuser-csi-reader to the driver's service account in namespace %s", ref.Namespace)
	}
	if mayNotImpersonate(refused) {
		return "; the driver may not act as its node: access node needs Kubernetes 1.36 or later, and the driver's ClusterRole fsuser-csi-node with its ClusterRoleBinding"
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

// mayNotImpersonate reports whether a request was refused before the Node authorizer saw it: nothing that a pod declares would help.
func mayNotImpersonate(refused error) bool {
	var status apierrors.APIStatus
	if errors.As(refused, &status) && status.Status().Details != nil {
		switch status.Status().Details.Kind {
		case "users", "nodes":
			return true
		}
	}
	// The right to do one thing as the node is that of the object: impersonate-on:associated-node:get. No name has a space.
	return strings.Contains(message(refused), "cannot impersonate")
}

// isEarly reports whether err is a refusal that may come only from the Node authorizer's not having heard of a pod yet: it learns of
// pods by watches of its own. started is when the object was first asked for.
func (a *API) isEarly(err error, started time.Time) bool {
	return a.node && apierrors.IsForbidden(err) && time.Since(started) < grace
}

// message says what went wrong: the API server's message, or the connection's error without the request's URL. Of an answer that is no
// Status the code alone: it may be of something between, and hold the request that it got, with the token.
func message(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Message != "" {
		if code := int(status.Status().Code); apierrors.IsUnexpectedServerError(err) {
			return fmt.Sprintf("the server answered %d %s", code, http.StatusText(code))
		}
		return status.Status().Message
	}
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	return err.Error()
}
