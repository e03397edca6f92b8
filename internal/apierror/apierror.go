// SPDX-License-Identifier: Apache-2.0

// Package apierror extracts from the error of a request to the API server the part that may be shown.
package apierror

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Message returns the API server's message, or the connection's error without the URL of the request. An answer that is
// no Status may come from a proxy and contain the request with its token, so for such an answer Message returns only
// the code.
func Message(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) && status.Status().Message != "" {
		if code := int(status.Status().Code); apierrors.IsUnexpectedServerError(err) {
			return fmt.Sprintf("the server answered %d %s", code, http.StatusText(code))
		}
		return status.Status().Message
	}
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	return err.Error()
}
