// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// node is the kind of the driver's own Node object. Nobody subscribes to it.
const node attributes.Kind = "Node"

// Pod reads a pod from the API server. A pod of the same name with another uid is ErrNotFound. The error is an *Error.
func (a *API) Pod(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	ref := Ref{Kind: attributes.Pod, Namespace: namespace, Name: name}
	object, err := a.readObject(ctx, ref)
	if err != nil {
		return nil, err
	}
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return nil, a.explain(ref, errNotUnderstood)
	}
	if string(pod.UID) != uid {
		return nil, anotherPod(ref)
	}
	return pod, nil
}

func anotherPod(ref Ref) *Error {
	return &Error{Ref: ref, Reason: ErrNotFound, Detail: "there is another pod of this name"}
}

// Allocatable reads status.allocatable of the driver's own Node object. The error is an *Error.
func (a *API) Allocatable(ctx context.Context) (corev1.ResourceList, error) {
	ref := Ref{Kind: node, Name: a.options.NodeName}
	object, err := a.readObject(ctx, ref)
	if err != nil {
		return nil, err
	}
	n, ok := object.(*corev1.Node)
	if !ok {
		return nil, a.explain(ref, errNotUnderstood)
	}
	return n.Status.Allocatable, nil
}

// readObject requests an object once, or repeatedly while the Node authorizer may not have heard of it yet. The error is an
// *Error. Unlike explain, it calls 401 ErrUnavailable: the API server does not know the driver, so it decided about no right.
func (a *API) readObject(ctx context.Context, ref Ref) (runtime.Object, error) {
	for start := time.Now(); ; {
		object, err := a.read(ctx, a.request(ref).Name(ref.Name))
		if err == nil {
			return object, nil
		}
		if a.mayLag(err, start) && ctx.Err() == nil {
			select {
			case <-time.After(jittered(authorizerLagPause)):
			case <-ctx.Done():
			}
			continue
		}
		e := a.explain(ref, err)
		if apierrors.IsUnauthorized(err) {
			e.Reason = ErrUnavailable
		}
		return nil, e
	}
}
