// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	// maxFrame is the maximum length of an event or an answer. An object has at most 1.5 MiB (etcd's limit).
	maxFrame = 8 << 20
	// maxTrusted is the largest amount of memory that is allocated for a frame before its content arrives.
	maxTrusted = 64 << 10
)

var (
	// errNotUnderstood means that the data is no event or object. The message does not repeat the data, which may be
	// confidential.
	errNotUnderstood = errors.New("the API server sent something that can't be understood")
	// errTooLarge is also the error for any text, because the first characters of a text are a large length.
	errTooLarge = errors.New("the API server sent something that is no protobuf, or has more than 8 MiB")
	// errBrokenOff means that the answer ended before it was complete.
	errBrokenOff = errors.New("the API server breaks off its answers")
	// errNoAnswer means that the server accepts connections but does not answer.
	errNoAnswer = errors.New("the API server does not answer in time")
)

// readEvent reads one event of a watch: a big-endian length of four bytes, then a WatchEvent in protobuf with an
// encoded object. It returns an event of type ERROR as the error. No memory is kept between events.
func readEvent(r io.Reader, decoder runtime.Decoder) (watch.EventType, runtime.Object, error) {
	frame, err := readFrame(r)
	if err != nil {
		return "", nil, err
	}
	var event metav1.WatchEvent
	if err := event.Unmarshal(frame); err != nil {
		return "", nil, errNotUnderstood
	}
	object, err := decode(decoder, event.Object.Raw)
	if err != nil {
		return "", nil, err
	}
	if watch.EventType(event.Type) == watch.Error {
		return "", nil, errorOf(object)
	}
	return watch.EventType(event.Type), object, nil
}

// errorOf returns the object of an ERROR event as an error. It does not use apierrors.FromObject, which would print an
// object that is no Status.
func errorOf(object runtime.Object) error {
	status, ok := object.(*metav1.Status)
	if !ok {
		return errNotUnderstood
	}
	return &apierrors.StatusError{ErrStatus: *status}
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length > maxFrame {
		return nil, errTooLarge
	}
	var frame bytes.Buffer
	frame.Grow(min(int(length), maxTrusted) + bytes.MinRead)
	if _, err := io.CopyN(&frame, r, int64(length)); err != nil {
		return nil, err
	}
	return frame.Bytes(), nil
}

func decode(decoder runtime.Decoder, data []byte) (runtime.Object, error) {
	object, _, err := decoder.Decode(data, nil, nil)
	if err != nil {
		return nil, errNotUnderstood
	}
	return object, nil
}

// causeOf returns errNoAnswer if a request failed because of our timeout, and err otherwise.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errNoAnswer) {
		return cause
	}
	return err
}
