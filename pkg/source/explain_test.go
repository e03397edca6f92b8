// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestMessage(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"the API server's message, without what wraps it": {
			fmt.Errorf("outer: %w", apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "a", errors.New("no\nrole"))),
			"secrets \"a\" is forbidden: no\nrole",
		},
		"the connection's error, without the URL": {
			&url.Error{Op: "Get", URL: "https://host/path?token=x", Err: errors.New("connection refused")}, "connection refused",
		},
		"any other error": {errors.New("odd"), "odd"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := message(test.err); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	resource := schema.GroupResource{Resource: "secrets"}
	refused := apierrors.NewForbidden(resource, "a", errors.New("no\nrole"))
	for name, test := range map[string]struct {
		node   bool
		kind   Kind
		err    error
		reason error
		want   string
	}{
		"refused, by RBAC": {false, Secret, refused, ErrForbidden,
			`secrets "a" is forbidden: no role; let the driver read it: kubectl -n ns create rolebinding fsuser-csi --clusterrole=fsuser-csi-reader --serviceaccount=fsuser-csi:fsuser-csi`},
		"a secret refused, by the Node authorizer": {true, Secret, refused, ErrForbidden,
			`secrets "a" is forbidden: no role; with access node the pod must declare the object: is the declare-references policy installed, or was the pod made before it was? Else add an unmounted volume, {name: x, secret: {secretName: a, optional: true}}, to the pod`},
		"a config map refused, by the Node authorizer": {true, ConfigMap, refused, ErrForbidden,
			`secrets "a" is forbidden: no role; with access node the pod must declare the object: is the declare-references policy installed, or was the pod made before it was? Else add an unmounted volume, {name: x, configMap: {name: a, optional: true}}, to the pod`},
		"a pod refused, by the Node authorizer":         {true, PodKind, refused, ErrForbidden, `secrets "a" is forbidden: no role`},
		"not known at all: no role would help":          {false, Secret, apierrors.NewUnauthorized("who?"), ErrForbidden, "who?"},
		"not there":                                     {false, Secret, apierrors.NewNotFound(resource, "a"), ErrNotFound, `secrets "a" not found`},
		"anything else, however it is put, in one line": {true, Secret, errors.New("odd\nthing"), ErrUnavailable, "odd thing"},
	} {
		t.Run(name, func(t *testing.T) {
			ref := Ref{test.kind, "ns", "a"}
			e := (&API{node: test.node}).explain(ref, test.err)
			if e.Ref != ref || e.Reason != test.reason || e.Detail != test.want {
				t.Errorf("%v of %v: %q; want %v: %q", e.Reason, e.Ref, e.Detail, test.reason, test.want)
			}
		})
	}
	t.Run("never too long, and the remedy never cut", func(t *testing.T) {
		ref := Ref{ConfigMap, strings.Repeat("n", 63), strings.Repeat("a", 253)}
		long := apierrors.NewForbidden(resource, ref.Name, errors.New(strings.Repeat("x", 5000)))
		for end, api := range map[string]*API{"=fsuser-csi:fsuser-csi": {}, ", to the pod": {node: true}} {
			text := api.explain(ref, long).Error()
			if !strings.HasSuffix(text, end) || len(text) > maxText+len("…") || !strings.Contains(text, "…;") {
				t.Errorf("%d bytes: %s", len(text), text)
			}
		}
	})
}
