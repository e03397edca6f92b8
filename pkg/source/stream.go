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
	// maxFrame is how long an event, or an answer, may be. An object can't have more than 1.5 MiB (etcd's limit).
	maxFrame = 8 << 20
	// maxTrusted is how much memory a frame is given before it has arrived.
	maxTrusted = 64 << 10
)

var (
	// errNotUnderstood: what came is no event or object. What it is instead is not said: it may hold anything.
	errNotUnderstood = errors.New("the API server sent something that can't be understood")
	// errTooLarge: text of any kind ends here too, for its first characters make a large number.
	errTooLarge = errors.New("the API server sent something that is no protobuf, or has more than 8 MiB")
	// errBrokenOff: the answer ended before it was complete.
	errBrokenOff = errors.New("the API server breaks off its answers")
	// errNoAnswer: the server is there, or was a moment ago, but says nothing.
	errNoAnswer = errors.New("the API server does not answer in time")
)

// readEvent reads one event of a watch: a length of four bytes, big-endian; then a WatchEvent in protobuf, whose object is
// one in the form that decode takes. An event of type ERROR comes back as the error. No memory is kept between events.
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

// errorOf is the error that an object of an ERROR event is. Not apierrors.FromObject, which prints whatever is no Status.
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

// causeOf says why a request failed: err, or that we gave it up.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errNoAnswer) {
		return cause
	}
	return err
}
