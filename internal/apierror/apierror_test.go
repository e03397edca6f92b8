// SPDX-License-Identifier: Apache-2.0

package apierror

import (
	"errors"
	"fmt"
	"net/url"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestMessage(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"the API server's message, without the wrapping error": {
			fmt.Errorf("outer: %w", apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "a",
				errors.New("no\nrole"))),
			"secrets \"a\" is forbidden: no\nrole",
		},
		"the connection's error, without the URL": {
			&url.Error{Op: "Get", URL: "https://host/path?token=x", Err: errors.New("connection refused")}, "connection refused",
		},
		"only the code of an answer that does not come from the API server": {
			apierrors.NewGenericServerResponse(502, "get", schema.GroupResource{Resource: "secrets"}, "a",
				"Authorization: Bearer x", 0, true), "the server answered 502 Bad Gateway",
		},
		"any other error": {errors.New("odd"), "odd"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Message(test.err); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
