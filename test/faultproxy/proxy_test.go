// SPDX-License-Identifier: Apache-2.0

package faultproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// get sends a request to p on a new connection, and returns the status and the body.
func get(t *testing.T, p *Proxy, timeout time.Duration) (int, string, error) {
	t.Helper()
	transport, err := rest.TransportFor(p.Config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.Config().Host+"/path", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if response.Proto != map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[p.server.EnableHTTP2] {
		t.Errorf("spoke %s", response.Proto)
	}
	return response.StatusCode, string(body), err
}

func TestProxy(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, r.URL.Path)
	}))
	t.Cleanup(server.Close)
	for name, make := range map[string]func(testing.TB, *rest.Config) *Proxy{"HTTP/2": New, "HTTP/1.1": NewPlain} {
		t.Run(name, func(t *testing.T) {
			p := make(t, &rest.Config{Host: server.URL})
			passes := func() {
				t.Helper()
				if code, body, err := get(t, p, time.Minute); code != http.StatusTeapot || body != "/path" || err != nil {
					t.Errorf("%d %q %v", code, body, err)
				}
			}
			passes()
			p.Answer(Status(http.StatusInternalServerError, metav1.StatusReasonInternalError, "broke"))
			if code, _, err := get(t, p, time.Minute); code != http.StatusInternalServerError || err != nil {
				t.Errorf("answered in the server's place: %d %v", code, err)
			}
			p.Answer(Slow(100 * time.Millisecond))
			start := time.Now()
			if passes(); time.Since(start) < 100*time.Millisecond {
				t.Errorf("a slow answer took %v", time.Since(start))
			}
			p.Answer(nil)
			passes()
			if asked := p.Asked(); asked != 4 || p.Requests()[0].URL.Path != "/path" {
				t.Errorf("asked %d times: %v", asked, p.Requests())
			}

			before := p.Connections()
			p.Cut()
			if _, _, err := get(t, p, time.Minute); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after a cut: %v", err)
			}
			p.Heal()
			passes()
			if p.Connections() == before {
				t.Error("the connection after the cut is not counted")
			}
			p.Stall()
			if _, _, err := get(t, p, 100*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("in a stall: %v", err)
			}
			p.Heal()
			passes()
		})
	}
}

// A relay holds back bytes in a stall, passes them on afterwards, and resets its connections when it is cut.
func TestRelay(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.URL.Path)
	}))
	t.Cleanup(server.Close)
	relay := NewRelay(t, server.Listener.Addr().String())
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	ask := func() (string, error) {
		response, err := client.Get("http://" + relay.Addr().String() + "/path")
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return string(body), err
	}
	if body, err := ask(); body != "/path" || err != nil {
		t.Fatalf("%q, %v", body, err)
	}
	relay.Stall()
	answered := make(chan error)
	go func() {
		_, err := ask()
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Errorf("an answer in a stall, %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	relay.Heal()
	if err := <-answered; err != nil {
		t.Errorf("after the stall: %v", err)
	}
	relay.Cut()
	if _, err := ask(); err == nil {
		t.Error("an answer after a cut")
	}
	if n := relay.Connections(); n < 2 {
		t.Errorf("%d connections, want that from before the cut and one more", n)
	}
}

// A client gets the old version from the old cache, a refusal of a newer one, and the newest version from the server.
func TestOldCache(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(server.Close)
	p := NewPlain(t, &rest.Config{Host: server.URL})
	old := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "3"}, Data: map[string][]byte{"k": []byte("old")},
	}
	p.Answer(p.OldCache("secrets", old))
	for _, test := range []struct {
		query string
		code  int
		// old means that the answer has the old version. stays means that the watch continues.
		old, stays bool
	}{
		{"watch=true&sendInitialEvents=true&resourceVersion=0", http.StatusOK, true, true},
		{"watch=true&sendInitialEvents=true&resourceVersion=3", http.StatusOK, true, true},
		{"watch=true&sendInitialEvents=true&resourceVersion=4", http.StatusGatewayTimeout, false, false},
		{"watch=true&resourceVersion=4", http.StatusOK, false, true},
		{"watch=true&sendInitialEvents=true", http.StatusTeapot, false, false},
	} {
		response, err := http.Get(p.Config().Host + "/api/v1/namespaces/ns/secrets?" + test.query)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != test.code {
			t.Errorf("%s: %s, want %d", test.query, response.Status, test.code)
		}
		if test.stays {
			testkit.Eventually(t, time.Minute, "the watch to be open, and to end", func() bool { return p.Say(nil) == 1 })
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || strings.Contains(string(body), "old") != test.old {
			t.Errorf("%s: %q, %v", test.query, body, err)
		}
	}
}

// Data that is sent during a stall arrives afterwards, and a cut resets the connection.
func TestNetwork(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := newNetwork(l)
	defer n.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := n.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	n.Stall()
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	got := make(chan byte)
	go func() {
		b := make([]byte, 1)
		_, _ = server.Read(b)
		got <- b[0]
	}()
	select {
	case <-got:
		t.Error("a byte came through in a stall")
	case <-time.After(50 * time.Millisecond):
	}
	n.Heal()
	if b := <-got; b != 'x' {
		t.Errorf("got %q", b)
	}
	n.Cut()
	if _, err := client.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a cut is %v, want a reset", err)
	}
}
