// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
)

// Pod is what of a pod matters to its volumes.
type Pod struct {
	// User is the uid that all containers run as, if the pod says so and they have one in common; nil if not.
	User *uint32
	// SecretRefs has the name of the nodePublishSecretRef of each inline CSI volume that has one, by the volume's name.
	SecretRefs map[string]string
}

// Pod reads a pod from the API server. A pod of the same name with another uid is ErrNotFound. The error is an *Error.
func (a *API) Pod(ctx context.Context, namespace, name, uid string) (Pod, error) {
	ref := Ref{Kind: PodKind, Namespace: namespace, Name: name}
	object, err := a.readPod(ctx, ref)
	if err != nil {
		return Pod{}, a.explainPod(ref, err)
	}
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return Pod{}, a.explain(ref, errNotUnderstood)
	}
	if string(pod.UID) != uid {
		return Pod{}, &Error{Ref: ref, Reason: ErrNotFound, Detail: "there is another pod of this name"}
	}
	return podOf(pod), nil
}

// explainPod is explain, but takes only a verdict on rights for one: who is not known to the API server can't be told what he may do.
func (a *API) explainPod(ref Ref, err error) *Error {
	e := a.explain(ref, err)
	if apierrors.IsUnauthorized(err) {
		e.Reason = ErrUnavailable
	}
	return e
}

// readPod reads a pod, of which the Node authorizer may not have heard yet.
func (a *API) readPod(ctx context.Context, ref Ref) (runtime.Object, error) {
	for started := time.Now(); ; {
		object, err := a.read(ctx, a.request(ref).Name(ref.Name))
		if !a.isEarly(err, started) || sleep(ctx, jittered(gracePause)) != nil {
			return object, err
		}
	}
}

func podOf(pod *corev1.Pod) Pod {
	p := Pod{User: CommonUser(&pod.Spec), SecretRefs: map[string]string{}}
	for _, v := range pod.Spec.Volumes {
		if v.CSI != nil && v.CSI.NodePublishSecretRef != nil {
			p.SecretRefs[v.Name] = v.CSI.NodePublishSecretRef.Name
		}
	}
	return p
}

// CommonUser is the effective runAsUser of all init and main containers, if each has one and they are the same. What an image says of its user
// plays no part. It is kubelet's FsUserFrom (pkg/volume/util), but for ephemeral containers, which that counts: they are added to a pod that
// was made without them, and who owns its files must not depend on whether somebody debugs it while it waits for its volume.
func CommonUser(spec *corev1.PodSpec) *uint32 {
	var common *int64
	for _, context := range securityContexts(spec) {
		user := EffectiveUser(spec.SecurityContext, context)
		if user == nil || common != nil && *common != *user {
			return nil
		}
		common = user
	}
	// The API server takes 0 to 2147483647 only.
	if common == nil || *common < 0 || *common > 1<<31-1 {
		return nil
	}
	user := uint32(*common)
	return &user
}

func securityContexts(spec *corev1.PodSpec) []*corev1.SecurityContext {
	var all []*corev1.SecurityContext
	for i := range spec.InitContainers {
		all = append(all, spec.InitContainers[i].SecurityContext)
	}
	for i := range spec.Containers {
		all = append(all, spec.Containers[i].SecurityContext)
	}
	return all
}

// EffectiveUser is whom a container runs as, if the pod says so: its own runAsUser, else the pod's; nil if neither is given.
func EffectiveUser(pod *corev1.PodSecurityContext, container *corev1.SecurityContext) *int64 {
	if container != nil && container.RunAsUser != nil {
		return container.RunAsUser
	}
	if pod != nil {
		return pod.RunAsUser
	}
	return nil
}

// Pod of a Directory: nothing is known of any pod.
func (d *Directory) Pod(context.Context, string, string, string) (Pod, error) { return Pod{}, nil }
