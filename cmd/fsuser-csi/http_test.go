// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestAnswerOfAHealthCheck(t *testing.T) {
	for _, test := range []struct {
		err  error
		code int
		body string
	}{
		{nil, http.StatusOK, "ok"},
		{errors.New("kubelet has not registered the driver"), http.StatusServiceUnavailable, "kubelet has not registered the driver"},
	} {
		w := httptest.NewRecorder()
		answer(func(context.Context) error { return test.err })(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
		body, err := io.ReadAll(w.Result().Body)
		if err != nil || w.Code != test.code || strings.TrimSpace(string(body)) != test.body {
			t.Errorf("%v: %d %q, %v", test.err, w.Code, body, err)
		}
	}
}

func TestHealthAndMetricsAreServedAtOneAddressOnly(t *testing.T) {
	for _, address := range []string{":9808", "0.0.0.0:9808", "[::]:9808", "127.0.0.1", "127.0.0.1:port"} {
		if stop, err := serveHTTP(address, "", nil, nil); err == nil {
			stop()
			t.Errorf("%s is served", address)
		}
	}
	stop, err := serveHTTP("", "", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop()
}
