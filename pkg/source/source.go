// SPDX-License-Identifier: Apache-2.0

// Package source provides the content of volumes. The content comes from objects of the API server, each watched by
// its name (API), from a directory of manifests for the demo and for tests without a cluster (Directory), or from the
// publish request itself (FromRequest).
//
// API and Directory have the same methods. A subscriber (a volume) subscribes to an object, reads the last known state
// with Get, is notified of each change, and unsubscribes. An object has one watch, however many subscribers it has. A
// volume that does not follow its objects has no watch: Read reads each object once.
package source

import (
	"errors"
	"fmt"
	"maps"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// The reasons why an object cannot be read. Each error of this package about an object wraps one of them.
var (
	// ErrNotFound means that the object does not exist, according to the API server.
	ErrNotFound = errors.New("not found")
	// ErrForbidden means that the API server refuses access. The object may or may not exist.
	ErrForbidden = errors.New("forbidden")
	// ErrUnavailable means that the API server gave no usable answer, or does not know the driver (401). A later request
	// may succeed.
	ErrUnavailable = errors.New("can't be read now")
)

// Ref names an object. It is a struct instead of a joined string, so that no two objects have the same Ref.
type Ref struct {
	Kind      attributes.Kind
	Namespace string
	Name      string
}

// String returns the kind and the name for messages: Secret "namespace/name".
func (r Ref) String() string {
	name := r.Name
	if r.Namespace != "" {
		name = r.Namespace + "/" + name
	}
	return fmt.Sprintf("%s %q", r.Kind, name)
}

// Content is the content of an object. All readers share it, so nobody may change it.
type Content struct {
	// Data is the object's data by key. A ConfigMap's data and binaryData are merged. The keys of a pod are field
	// paths, and those of ResourceKey.
	Data map[string][]byte
	// UID and ResourceVersion identify one state of one object. Both are empty if the content came with a request.
	UID             string
	ResourceVersion string
	// Digest identifies Data if ResourceVersion changes too often: each change of a pod's status makes a new version.
	Digest string
	// Immutable means that the API server rejects changes of the object. The object can be deleted and created again.
	Immutable bool
}

// SameVersion reports whether c and other are known to be the same state of the same object.
func (c Content) SameVersion(other Content) bool {
	return c.ResourceVersion != "" && c.UID == other.UID &&
		(c.ResourceVersion == other.ResourceVersion || c.Digest != "" && c.Digest == other.Digest)
}

// Version returns c without its data.
func (c Content) Version() Content {
	c.Data = nil
	return c
}

// FromRequest returns the content of a nodePublishSecretRef, which kubelet sends with each publish and republish.
func FromRequest(secrets map[string]string) Content {
	return Content{Data: bytesOf(secrets)}
}

// Error describes why an object cannot be read.
type Error struct {
	Ref Ref
	// Reason is ErrNotFound, ErrForbidden or ErrUnavailable.
	Reason error
	// Detail is the message of the API server or of the connection. It never has content of the object.
	Detail string
	// Number is the kernel's error number if a system call failed, else 0.
	Number syscall.Errno
	// Undeclared means that the Node authorizer refused the object, because it knows no pod on the node that declares the
	// object. The Node authorizer learns of a new pod a moment later than kubelet.
	Undeclared bool
}

// Error implements error.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s: %v", e.Ref, e.Reason)
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Unwrap returns the reason and the error number, for errors.Is.
func (e *Error) Unwrap() []error {
	if e.Number == 0 {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.Number}
}

// contentOf returns the content of an API object, and whether the object is of that kind.
func contentOf(kind attributes.Kind, object any) (Content, bool) {
	var is attributes.Kind
	var c Content
	switch o := object.(type) {
	case *corev1.Secret:
		is, c.Data, c.Immutable = attributes.Secret, o.Data, ptr.Deref(o.Immutable, false)
	case *corev1.ConfigMap:
		is, c.Data, c.Immutable = attributes.ConfigMap, bytesOf(o.Data), ptr.Deref(o.Immutable, false)
		maps.Copy(c.Data, o.BinaryData)
	case *corev1.Pod:
		is, c.Data = attributes.Pod, fieldsOf(o)
		c.Digest = digest(c.Data)
	}
	if is != kind {
		return Content{}, false
	}
	meta := object.(metav1.Object)
	c.UID, c.ResourceVersion = string(meta.GetUID()), meta.GetResourceVersion()
	return c, true
}

func bytesOf(texts map[string]string) map[string][]byte {
	data := make(map[string][]byte, len(texts))
	for key, text := range texts {
		data[key] = []byte(text)
	}
	return data
}
