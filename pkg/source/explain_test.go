// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

func TestExplain(t *testing.T) {
	resource := schema.GroupResource{Resource: "secrets"}
	refused := apierrors.NewForbidden(resource, "a", errors.New("no\nrole"))
	byNode := apierrors.NewForbidden(resource, "a", errors.New("no relationship found between node 'n' and this object"))
	by := func(user string) error {
		return apierrors.NewForbidden(resource, "a", fmt.Errorf("User %q cannot list it", user))
	}
	const actAsNode = "; the driver may not act as its node: access node needs Kubernetes 1.36 or later, and the " +
		"driver's ClusterRole fsuser-csi-node with its ClusterRoleBinding; otherwise install with --set access=namespaces"
	for name, test := range map[string]struct {
		node   bool
		kind   attributes.Kind
		err    error
		reason error
		want   string
	}{
		"refused by RBAC": {false, attributes.Secret, by("system:serviceaccount:kube-system:a.b-c"), ErrForbidden,
			`secrets "a" is forbidden: User "system:serviceaccount:kube-system:a.b-c" cannot list it; let the driver read it: ` +
				`kubectl -n ns create rolebinding fsuser-csi --clusterrole=fsuser-csi-reader --serviceaccount=kube-system:a.b-c`},
		"refused by RBAC, and the driver is no service account": {false, attributes.Secret, by("admin"), ErrForbidden,
			`secrets "a" is forbidden: User "admin" cannot list it; let the driver read it: bind the ClusterRole ` +
				`fsuser-csi-reader to the driver's service account in namespace ns`},
		"refused, and the message names nobody": {false, attributes.Secret, refused, ErrForbidden,
			`secrets "a" is forbidden: no role; let the driver read it: bind the ClusterRole fsuser-csi-reader to the ` +
				`driver's service account in namespace ns`},
		"refused, and the message has no valid name of a service account": {false, attributes.Secret,
			by("system:serviceaccount:ns:a b"), ErrForbidden,
			`secrets "a" is forbidden: User "system:serviceaccount:ns:a b" cannot list it; let the driver read it: bind the ` +
				`ClusterRole fsuser-csi-reader to the driver's service account in namespace ns`},
		"no right to be a user, as before 1.36": {true, attributes.Secret,
			apierrors.NewForbidden(schema.GroupResource{Resource: "users"}, "system:node:n", errors.New("no")), ErrForbidden,
			`users "system:node:n" is forbidden: no` + actAsNode},
		"no right to be the node": {true, attributes.Pod,
			apierrors.NewForbidden(schema.GroupResource{Group: "authentication.k8s.io", Resource: "nodes"}, "n",
				errors.New("no")), ErrForbidden,
			`nodes.authentication.k8s.io "n" is forbidden: no` + actAsNode},
		"no right to read as the node": {true, attributes.ConfigMap,
			apierrors.NewForbidden(resource, "a", errors.New("User cannot impersonate-on:associated-node:list it")),
			ErrForbidden,
			`secrets "a" is forbidden: User cannot impersonate-on:associated-node:list it` + actAsNode},
		"a secret refused by the Node authorizer": {true, attributes.Secret, refused, ErrForbidden,
			`secrets "a" is forbidden: no role; with access node the pod must declare the object: add the volume {name: x, ` +
				`secret: {secretName: a}} to the pod and use the attribute volume: x in place of secretName. To use secretName ` +
				`alone: is the declare-references policy installed, and was the pod created after it?`},
		"a config map refused by the Node authorizer": {true, attributes.ConfigMap, refused, ErrForbidden,
			`secrets "a" is forbidden: no role; with access node the pod must declare the object: add the volume {name: x, ` +
				`configMap: {name: a}} to the pod and use the attribute volume: x in place of configMapName. To use ` +
				`configMapName alone: is the declare-references policy installed, and was the pod created after it?`},
		"a pod refused by the Node authorizer": {true, attributes.Pod, byNode, ErrForbidden,
			`secrets "a" is forbidden: no relationship found between node 'n' and this object`},
		"a pod refused without the Node authorizer": {true, attributes.Pod, refused, ErrForbidden,
			`secrets "a" is forbidden: no role; access node needs the Node authorizer (--authorization-mode of the API ` +
				`server); otherwise install with --set access=namespaces`},
		"not authenticated": {false, attributes.Secret, apierrors.NewUnauthorized("who?"), ErrUnavailable, "who?"},
		"a path that does not exist": {false, attributes.Secret, apierrors.NewNotFound(resource, "a"), ErrUnavailable,
			`secrets "a" not found`},
		"any other error, in one line": {true, attributes.Secret, errors.New("odd\nthing"), ErrUnavailable, "odd thing"},
	} {
		t.Run(name, func(t *testing.T) {
			ref := Ref{Kind: test.kind, Namespace: "ns", Name: "a"}
			e := (&API{options: Options{Impersonate: test.node}}).explain(ref, test.err)
			if e.Ref != ref || e.Reason != test.reason || e.Detail != test.want {
				t.Errorf("%v of %v: %q; want %v: %q", e.Reason, e.Ref, e.Detail, test.reason, test.want)
			}
			want := test.node && test.reason == ErrForbidden && !strings.HasSuffix(test.want, actAsNode)
			if e.Undeclared != want {
				t.Errorf("undeclared: %v, want %v: only the Node authorizer looks for a declaration", e.Undeclared, want)
			}
		})
	}
	t.Run("with the error number of a system call", func(t *testing.T) {
		dial := &url.Error{Op: "Get", URL: "https://host",
			Err: &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", unix.EMFILE)}}
		e := (&API{}).explain(Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}, dial)
		if !errors.Is(e, unix.EMFILE) || !errors.Is(e, ErrUnavailable) ||
			e.Detail != "dial tcp: socket: too many open files" {
			t.Errorf("%#v", e)
		}
		if e := (&API{}).explain(Ref{}, errors.New("odd")); e.Number != 0 || !errors.Is(e, ErrUnavailable) {
			t.Errorf("%#v", e)
		}
	})
	t.Run("never too long, and never without the whole remedy", func(t *testing.T) {
		ref := Ref{Kind: attributes.ConfigMap, Namespace: strings.Repeat("n", 63), Name: strings.Repeat("a", 253)}
		account := strings.Repeat("m", 63) + ":" + strings.Repeat("b", 253)
		long := apierrors.NewForbidden(resource, ref.Name,
			fmt.Errorf("User %q cannot %s", "system:serviceaccount:"+account, strings.Repeat("x", 5000)))
		for end, api := range map[string]*API{"=" + account: {}, "created after it?": {options: Options{Impersonate: true}}} {
			text := api.explain(ref, long).Error()
			if !strings.HasSuffix(text, end) || len(text) > maxText+len("…") || !strings.Contains(text, "…;") {
				t.Errorf("%d bytes: %s", len(text), text)
			}
		}
	})
}
