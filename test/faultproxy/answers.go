// SPDX-License-Identifier: Apache-2.0

package faultproxy

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

// Event returns an encoded watch event with an object of apiVersion v1.
func Event(name string, object runtime.Object) []byte {
	return RawEvent(name, Encoded(object))
}

// RawEvent is Event with an object that is already encoded.
func RawEvent(name string, object []byte) []byte {
	e := metav1.WatchEvent{Type: name, Object: runtime.RawExtension{Raw: object}}
	data, err := e.Marshal()
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)
}

// Encoded returns an object of apiVersion v1 in protobuf, as the API server sends it.
func Encoded(object runtime.Object) []byte {
	object = object.DeepCopyObject()
	object.GetObjectKind().SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(reflect.TypeOf(object).Elem().Name()))
	var data bytes.Buffer
	if err := protobuf.NewSerializer(nil, nil).Encode(object, &data); err != nil {
		panic(err)
	}
	return data.Bytes()
}

// Protobuf returns a Handler that sends the bytes of answer with the content type of protobuf.
func Protobuf(answer func(*http.Request) []byte) Handler {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
		_, _ = w.Write(answer(r))
		return true
	}
}

// Status returns a Handler that answers each request with a Status object, as the API server does.
func Status(code int32, reason metav1.StatusReason, message string) Handler {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(int(code))
		fmt.Fprintln(w, statusJSON(code, reason, message))
		return true
	}
}

func statusJSON(code int32, reason metav1.StatusReason, message string) string {
	b, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: code, Reason: reason, Message: message,
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

// ErrorEvent returns the event with which a watch reports an error.
func ErrorEvent(code int32, reason metav1.StatusReason, message string) []byte {
	return Event("ERROR", &metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message})
}

// TooLarge is a Handler that answers like an API server whose cache is older than the client's resource version.
func TooLarge(w http.ResponseWriter, _ *http.Request) bool {
	s := apierrors.NewTimeoutError("Too large resource version: 9, current: 1", 1).ErrStatus
	s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	s.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge,
		Message: "Too large resource version"}}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusGatewayTimeout)
	_ = json.NewEncoder(w).Encode(s)
	return true
}

// OldCache returns a Handler that behaves like an API server whose watch cache still has an older version of an object.
// A read of any version gets old. A list that must not be older than a newer version is refused. A watch from a newer
// version succeeds and stays silent. A read of the newest version, and each request for another resource, go to the API
// server.
func (p *Proxy) OldCache(resource string, old metav1.Object) Handler {
	return func(w http.ResponseWriter, r *http.Request) bool {
		query := r.URL.Query()
		version := query.Get("resourceVersion")
		if !strings.HasSuffix(r.URL.Path, "/"+resource) || version == "" {
			return false
		}
		list := query.Get("sendInitialEvents") == "true"
		switch newer := version != "0" && version != old.GetResourceVersion(); {
		case newer && list:
			return TooLarge(w, r)
		case newer || !list:
			p.hold(w, r, nil)
		default:
			p.hold(w, r, append(Event("ADDED", old.(runtime.Object)), endOfList(old)...))
		}
		return true
	}
}

// endOfList returns the bookmark that ends a streaming list of one object.
func endOfList(of metav1.Object) []byte {
	bookmark := reflect.New(reflect.TypeOf(of).Elem()).Interface().(metav1.Object)
	bookmark.SetResourceVersion(of.GetResourceVersion())
	bookmark.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	return Event("BOOKMARK", bookmark.(runtime.Object))
}

// hold answers a watch with frames, and keeps it open until Say or the client ends it.
func (p *Proxy) hold(w http.ResponseWriter, r *http.Request, frames []byte) {
	w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf;stream=watch")
	_, _ = w.Write(frames)
	_ = http.NewResponseController(w).Flush()
	silence, end := io.Pipe()
	defer end.Close()
	p.relay(w, r, silence)
}

// Slow returns a Handler that delays each request and then forwards it to the API server.
func Slow(d time.Duration) Handler {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		}
		return false
	}
}
