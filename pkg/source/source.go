// SPDX-License-Identifier: Apache-2.0

// Package source is where the content of a volume comes from: objects of the API server, each watched by its name
// (API); a directory of manifests, for the demo and for trying things without a cluster (Directory); or the
// publish request itself (FromRequest).
//
// API and Directory work alike. A holder (a volume) says which object it wants with Watch, reads the state last seen with
// Get, is told of each change, and lets go with Unwatch. One object is watched once, however many hold it.
package source

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
)

// Why an object could not be read; each error of this package about an object wraps one of them.
var (
	// ErrNotFound: the API server says that the object is not there.
	ErrNotFound = errors.New("not found")
	// ErrForbidden: the API server refuses to show the object. It may or may not be there.
	ErrForbidden = errors.New("forbidden")
	// ErrUnavailable: the API server gave no usable answer. Worth another try.
	ErrUnavailable = errors.New("can't be read now")
)

// Kind is the kind of an API object.
type Kind string

// The kinds that can be read.
const (
	Secret    Kind = "Secret"
	ConfigMap Kind = "ConfigMap"
	// PodKind is read for its fields: what the downward API projects.
	PodKind Kind = "Pod"
)

// Ref names an object. It is a struct and never a joined string, so that no two objects share a name.
type Ref struct {
	Kind      Kind
	Namespace string
	Name      string
	// Newest is for who looks once and keeps what it sees: the first read is of the newest version. It is watched apart from one without
	// Newest, which may be shown what is a moment old, since the rest follows.
	Newest bool
}

// String names the object for people: Secret "namespace/name".
func (r Ref) String() string { return fmt.Sprintf("%s %q", r.Kind, r.Namespace+"/"+r.Name) }

// Content is what an object holds. It is shared between all that read it: nobody changes it.
type Content struct {
	// Data by key; of a ConfigMap, data and binaryData together; of a pod, its fields (see ResourceKey for those of containers).
	Data map[string][]byte
	// UID and ResourceVersion tell one state of an object from another, by equality only. Both are empty if the
	// content came with a request.
	UID             string
	ResourceVersion string
	// Digest of Data, where that says more than the version: a pod has a new version with each change of its status.
	Digest string
	// Immutable: the API server will not let this object change, only be deleted and made anew.
	Immutable bool
	// Seen is when the source was told of this content; zero if it came with a request.
	Seen time.Time
}

// SameVersion reports whether both are known to be one state of one object.
func (c Content) SameVersion(other Content) bool {
	return c.ResourceVersion != "" && c.UID == other.UID &&
		(c.ResourceVersion == other.ResourceVersion || c.Digest != "" && c.Digest == other.Digest)
}

// Version returns c without its data.
func (c Content) Version() Content {
	c.Data = nil
	return c
}

// FromRequest gives the content of a nodePublishSecretRef, which kubelet sends along with each publish and republish.
func FromRequest(secrets map[string]string) Content {
	data := make(map[string][]byte, len(secrets))
	for key, value := range secrets {
		data[key] = []byte(value)
	}
	return Content{Data: data}
}

// Error is why an object could not be read.
type Error struct {
	Ref Ref
	// Reason is ErrNotFound, ErrForbidden or ErrUnavailable.
	Reason error
	// Detail is what the API server or the connection said, if it adds anything. It never has content of the object.
	Detail string
	// Number is what the kernel said, if it was the kernel: a connection also fails for want of a descriptor. Else 0.
	Number syscall.Errno
}

// Error implements error.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s: %v", e.Ref, e.Reason)
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Unwrap gives the reason and the error number, for errors.Is.
func (e *Error) Unwrap() []error {
	if e.Number == 0 {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.Number}
}

// oneLine makes a server's message fit for an error text: one line, printable, of at most limit bytes and an ellipsis.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
	if len(s) <= limit {
		return s
	}
	cut := limit
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// contentOf returns the content of an object as the API has it, if it is of that kind.
func contentOf(kind Kind, object any) (Content, bool) {
	switch o := object.(type) {
	case *corev1.Secret:
		return Content{Data: o.Data, UID: string(o.UID), ResourceVersion: o.ResourceVersion, Immutable: isTrue(o.Immutable)}, kind == Secret
	case *corev1.ConfigMap:
		data := make(map[string][]byte, len(o.Data)+len(o.BinaryData))
		for key, value := range o.Data {
			data[key] = []byte(value)
		}
		maps.Copy(data, o.BinaryData)
		return Content{Data: data, UID: string(o.UID), ResourceVersion: o.ResourceVersion, Immutable: isTrue(o.Immutable)}, kind == ConfigMap
	case *corev1.Pod:
		data := fieldsOf(o)
		return Content{Data: data, UID: string(o.UID), ResourceVersion: o.ResourceVersion, Digest: digest(data)}, kind == PodKind
	}
	return Content{}, false
}

func isTrue(b *bool) bool { return b != nil && *b }
