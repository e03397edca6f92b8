// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
)

// TestLog makes the source and client-go log at -v=5 (see runTests), and searches the log for content.
func TestLog(t *testing.T) {
	const hidden = "correct-horse-battery"
	log.Take()
	admin := newClient(t)
	made := secret("logged", hidden)
	made.Annotations = map[string]string{"note": hidden}
	admin.create(t, made)
	t.Cleanup(func() { cleanUp(admin, made) })
	p := faultproxy.NewPlain(t, controlPlane.AdminConfig())
	ref := secretRef("logged")
	var errorTexts strings.Builder

	full := made.DeepCopy()
	full.Annotations["again"] = hidden
	broken := faultproxy.Encoded(full)
	broken[len(broken)-3] = 0xff // in the middle of the object, after its content
	for n, frame := range [][]byte{
		faultproxy.ErrorEvent(500, metav1.StatusReasonInternalError, "it broke"),
		faultproxy.ErrorEvent(410, metav1.StatusReasonExpired, "too old"),
		// These events and answers are invalid and have content.
		faultproxy.Event("RENAMED", full),
		faultproxy.Event("MODIFIED", &corev1.ConfigMap{ObjectMeta: full.ObjectMeta, Data: map[string]string{"key": hidden}}),
		faultproxy.Event("MODIFIED", &corev1.Event{ObjectMeta: full.ObjectMeta, Message: hidden}),
		faultproxy.Event("ERROR", full),
		faultproxy.RawEvent("MODIFIED", broken),
		faultproxy.RawEvent(hidden, faultproxy.Encoded(full)),
		faultproxy.RawEvent("MODIFIED", []byte(hidden)),
		[]byte(hidden),
		faultproxy.Event("MODIFIED", full)[:100],
	} {
		answer := faultproxy.Protobuf(func(r *http.Request) []byte {
			if r.URL.Query().Get("watch") != "" {
				return frame
			}
			return broken
		})
		// One source has content, and the other waits for it.
		api := newAPI(t, p.Config())
		watched(t, api, ref)
		asked := p.Asked()
		p.Answer(answer)
		p.Say(frame)
		p.Say(nil)
		testkit.Eventually(t, soon, "another attempt", func() bool { return p.Asked() > asked })
		other := newAPI(t, p.Config())
		watched(t, other, ref)
		_, err := other.Get(ref)
		if !errors.Is(err, source.ErrUnavailable) {
			t.Errorf("frame %d: error %v, want %v", n, err, source.ErrUnavailable)
		}
		fmt.Fprintln(&errorTexts, err)
		p.Answer(nil)
		waitValue(t, other, ref, soon, hidden)
		api.Close()
		other.Close()
	}
	api := newAPI(t, p.Config())
	watched(t, api, ref)
	admin.update(t, secret("logged", hidden+"2"))
	waitValue(t, api, ref, soon, hidden+"2")
	admin.delete(t, secret("logged", ""))
	testkit.Eventually(t, soon, "the deletion to be seen", func() bool {
		_, err := api.Get(ref)
		return errors.Is(err, source.ErrNotFound)
	})
	api.Close()

	written := log.Take()
	for _, sign := range []string{"Object can't be read", "Object can be read again"} {
		if !strings.Contains(written, sign) {
			t.Fatalf("the log does not say %q, so this shows nothing:\n%s", sign, written)
		}
	}
	text := written + errorTexts.String()
	for name, form := range map[string]string{
		"plain":    hidden,
		"base64":   strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(hidden)), "=")[:20],
		"numbers":  strings.Trim(fmt.Sprint([]byte(hidden[:8])), "[]"),
		"hex":      fmt.Sprintf("%x", hidden[:8]),
		"Go bytes": "0x63, 0x6f, 0x72",
	} {
		for line := range strings.Lines(text) {
			if strings.Contains(line, form) {
				t.Errorf("content, %s, in the log or an error: %s", name, line)
			}
		}
	}
}
