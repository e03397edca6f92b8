// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	goruntime "runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/apierror"
)

func coreDecoder(t testing.TB) runtime.Decoder {
	t.Helper()
	_, scheme, err := newClient(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return protobuf.NewSerializer(scheme, scheme)
}

func TestReadEvent(t *testing.T) {
	whole := frame(t, "ADDED", secretOf("1"))
	big := secretOf("1")
	big.Data["big"] = bytes.Repeat([]byte("x"), 1<<20)
	length := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for name, test := range map[string]struct {
		data []byte
		want error // nil: an event ADDED
	}{
		"an event":                    {whole, nil},
		"more than the first buffer":  {frame(t, "ADDED", big), nil},
		"nothing":                     {nil, io.EOF},
		"half a length":               {whole[:2], io.ErrUnexpectedEOF},
		"a length alone":              {whole[:4], io.EOF},
		"half an event":               {whole[:len(whole)/2], io.EOF},
		"no event":                    {length(0), errNotUnderstood},
		"an object without its frame": {append(length(uint32(len(whole)-4)), encoded(t, secretOf("1"))...), io.EOF},
		"the longest length":          {length(maxFrame), io.EOF},
		"a longer one":                {length(maxFrame + 1), errTooLarge},
		"JSON":                        {[]byte(`{"type":"ADDED"}`), errTooLarge},
		"lines":                       {[]byte("\n\n\n\n"), errTooLarge},
		"an error that is none":       {frame(t, "ERROR", secretOf("1")), errNotUnderstood},
		"a kind that is not known":    {frame(t, "ADDED", &metav1.PartialObjectMetadata{}), errNotUnderstood},
	} {
		t.Run(name, func(t *testing.T) {
			kind, object, err := readEvent(bytes.NewReader(test.data), coreDecoder(t))
			if !errors.Is(err, test.want) {
				t.Fatalf("error %v, want %v", err, test.want)
			}
			if test.want == nil {
				if s, ok := object.(*corev1.Secret); !ok || kind != "ADDED" || string(s.Data["key"]) != "1" {
					t.Errorf("%s of a %T", kind, object)
				}
			}
		})
	}
	t.Run("an error", func(t *testing.T) {
		gone := apierrors.NewResourceExpired("too old")
		_, _, err := readEvent(bytes.NewReader(frame(t, "ERROR", &gone.ErrStatus)), coreDecoder(t))
		if !apierrors.IsResourceExpired(err) || err.Error() != "too old" {
			t.Errorf("error %v", err)
		}
	})
	t.Run("a length that lies costs no memory", func(t *testing.T) {
		const times = 20
		var before, after goruntime.MemStats
		goruntime.ReadMemStats(&before)
		for range times {
			_, _ = readFrame(bytes.NewReader(length(maxFrame)))
		}
		goruntime.ReadMemStats(&after)
		allocated := (after.TotalAlloc - before.TotalAlloc) / times
		if allocated > 4*maxTrusted {
			t.Errorf("%d bytes for a frame that never came", allocated)
		}
	})
}

func FuzzReadEvent(f *testing.F) {
	f.Add(frame(f, "ADDED", secretOf("1")))
	f.Add(bookmark(f, "1", true))
	f.Add([]byte("\x00\x00\x00\x05hello"))
	decoder := coreDecoder(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		_, object, err := readEvent(bytes.NewReader(data), decoder)
		if (object == nil) != (err != nil) {
			t.Errorf("object %T and error %v", object, err)
		}
		if err != nil && strings.ContainsAny(apierror.Message(err), "\x00") && !isStatus(err) {
			t.Errorf("the error repeats what came: %q", err)
		}
	})
}
