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

const (
	// authorizerLag is the longest time that the Node authorizer takes to learn of a new pod. The pauses between the
	// requests begin at minLagPause and grow, so that a pod that stays unknown causes four requests.
	authorizerLag = 2 * time.Second
	minLagPause   = 100 * time.Millisecond
)

// node is the kind of the driver's own Node object. Nobody subscribes to it.
const node attributes.Kind = "Node"

// Pod reads a pod from the API server. If the pod of this name has another uid, the error is ErrNotFound. The error is
// an *Error.
//
// Once the Node authorizer permits the node to read a pod, it permits the node to read all objects that the pod
// declares, because it learns of a pod and its objects at the same time.
func (a *API) Pod(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	ref := Ref{Kind: attributes.Pod, Namespace: namespace, Name: name}
	pod, err := readObject[*corev1.Pod](ctx, a, ref)
	if err == nil && string(pod.UID) != uid {
		return nil, anotherPod(ref)
	}
	return pod, err
}

// Read reads an object once, in its newest version. The error is an *Error.
func (a *API) Read(ctx context.Context, ref Ref) (Content, error) {
	object, err := readObject[runtime.Object](ctx, a, ref)
	if err != nil {
		return Content{}, err
	}
	content, ok := contentOf(ref.Kind, object)
	if !ok {
		return Content{}, a.explain(ref, errNotUnderstood)
	}
	return content, nil
}

func anotherPod(ref Ref) error {
	return &Error{Ref: ref, Reason: ErrNotFound, Detail: "there is another pod of this name"}
}

// Allocatable reads status.allocatable of the driver's own Node object. The error is an *Error.
func (a *API) Allocatable(ctx context.Context) (corev1.ResourceList, error) {
	n, err := readObject[*corev1.Node](ctx, a, Ref{Kind: node, Name: a.options.NodeName})
	if err != nil {
		return nil, err
	}
	return n.Status.Allocatable, nil
}

// readObject gets an object once, or repeatedly while the Node authorizer may not know the pod yet. The error is an
// *Error.
func readObject[T runtime.Object](ctx context.Context, a *API, ref Ref) (none T, _ error) {
	for pause := minLagPause; ; pause *= 4 {
		answer, err := a.read(ctx, a.request(ref).Name(ref.Name))
		if err == nil {
			object, ok := answer.(T)
			if !ok {
				return none, a.explain(ref, errNotUnderstood)
			}
			return object, nil
		}
		e := a.explain(ref, err)
		if apierrors.IsNotFound(err) {
			e.Reason = ErrNotFound
		}
		if !e.Undeclared || pause > authorizerLag || ctx.Err() != nil {
			return none, e
		}
		select {
		case <-time.After(jittered(pause)):
		case <-ctx.Done():
		}
	}
}
