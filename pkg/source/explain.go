// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/fsuser-csi/fsuser-csi/internal/apierror"
	"github.com/fsuser-csi/fsuser-csi/internal/text"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

const (
	// maxDetail is the longest part of a server's message in an error, in bytes.
	maxDetail = 300
	// maxText is the longest text of an error, in bytes. The text becomes part of Events, whose messages have at most 1
	// KiB.
	maxText = 900
)

// explain describes a failed request for users, with a remedy if the request was refused. For a nil err it returns nil.
// A 404 becomes ErrUnavailable, because the path of a list or a watch exists whether or not the object does. A 401
// becomes ErrUnavailable, too: the API server does not know the driver, but it has denied no right.
func (a *API) explain(ref Ref, err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Ref: ref, Reason: ErrUnavailable}
	errors.As(err, &e.Number)
	remedy := ""
	if apierrors.IsForbidden(err) {
		e.Reason, remedy = ErrForbidden, a.remedy(ref, err)
		e.Undeclared = a.options.Impersonate && !mayNotImpersonate(err)
	}
	room := max(0, min(maxDetail, maxText-len(e.Error())-len(": ")-len(remedy)))
	e.Detail = text.Shorten(text.OneLine(apierror.Message(err)), room) + remedy
	return e
}

// otherwise is the remedy in a cluster where access node does not work.
const otherwise = "otherwise install with --set access=namespaces"

// remedy returns the remedy if the access to ref is forbidden.
func (a *API) remedy(ref Ref, refusal error) string {
	if !a.options.Impersonate {
		return remedyOfRBAC(ref, refusal)
	}
	if mayNotImpersonate(refusal) {
		return "; the driver may not act as its node: access node needs Kubernetes 1.36 or later, " +
			"and the driver's ClusterRole fsuser-csi-node with its ClusterRoleBinding; " + otherwise
	}
	volume, attribute := "", ""
	switch ref.Kind {
	case attributes.Secret:
		volume, attribute = fmt.Sprintf("secret: {secretName: %s}", ref.Name), "secretName"
	case attributes.ConfigMap:
		volume, attribute = fmt.Sprintf("configMap: {name: %s}", ref.Name), "configMapName"
	default: // For other kinds, a declaration in a pod is not required.
		if strings.Contains(apierror.Message(refusal), "no relationship found between node") {
			return "" // The Node authorizer refused the request.
		}
		return "; access node needs the Node authorizer (--authorization-mode of the API server); " + otherwise
	}
	return fmt.Sprintf("; with access node the pod must declare the object: add the volume {name: x, %s} to the pod "+
		"and use the attribute volume: x in place of %s. To use %[2]s alone: "+
		"is the declare-references policy installed, and was the pod created after it?", volume, attribute)
}

// serviceAccount finds the driver's service account in a refusal, because the driver may run in any namespace.
var serviceAccount = regexp.MustCompile(`User "system:serviceaccount:([a-z0-9-]{1,63}:[a-z0-9.-]{1,253})" cannot`)

func remedyOfRBAC(ref Ref, refusal error) string {
	if ref.Kind == node {
		return "; the driver's ClusterRole must allow it to get nodes"
	}
	if account := serviceAccount.FindStringSubmatch(apierror.Message(refusal)); account != nil {
		return fmt.Sprintf("; let the driver read it: kubectl -n %s create rolebinding fsuser-csi "+
			"--clusterrole=fsuser-csi-reader --serviceaccount=%s", ref.Namespace, account[1])
	}
	return "; let the driver read it: bind the ClusterRole fsuser-csi-reader to the driver's service account " +
		"in namespace " + ref.Namespace
}

// mayNotImpersonate reports whether the API server refused the impersonation, before the Node authorizer decided. A
// declaration in a pod is no remedy then.
func mayNotImpersonate(refusal error) bool {
	var status apierrors.APIStatus
	if errors.As(refusal, &status) && status.Status().Details != nil {
		switch status.Status().Details.Kind {
		case "users", "nodes":
			return true
		}
	}
	// The verb impersonate-on:associated-node:get belongs to the requested resource. No name contains a space.
	return strings.Contains(apierror.Message(refusal), "cannot impersonate")
}
