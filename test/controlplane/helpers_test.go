// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/test/cluster/tools"
)

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// requireBinaries fails a test if binaries are missing, with a clearer message than a start would give.
func requireBinaries(t *testing.T) {
	t.Helper()
	for _, name := range []string{"etcd", "kube-apiserver"} {
		if _, err := tools.Path(tools.Newest(), name); err != nil {
			t.Fatal(err)
		}
	}
}

func userConfig(t *testing.T, cp *ControlPlane, user string, groups ...string) *rest.Config {
	t.Helper()
	config, err := cp.UserConfig(user, groups...)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func coreClient(t *testing.T, config *rest.Config) *rest.RESTClient {
	t.Helper()
	return restClient(t, config, "/api", corev1.SchemeGroupVersion)
}

func restClient(t *testing.T, config *rest.Config, path string, version schema.GroupVersion) *rest.RESTClient {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, rbacv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatalf("fill scheme: %v", err)
		}
	}
	config = rest.CopyConfig(config)
	config.APIPath = path
	config.GroupVersion = &version
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		t.Fatalf("make client: %v", err)
	}
	return client
}

func createSecret(ctx context.Context, t *testing.T, client *rest.RESTClient, name, value string) {
	t.Helper()
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		StringData: map[string]string{"key": value},
	}
	err := client.Post().Namespace(metav1.NamespaceDefault).Resource("secrets").Body(secret).Do(ctx).Error()
	if err != nil {
		t.Fatalf("create secret: %v", err)
	}
}

func getSecret(ctx context.Context, client *rest.RESTClient, name string) (*corev1.Secret, error) {
	secret := &corev1.Secret{}
	err := client.Get().Namespace(metav1.NamespaceDefault).Resource("secrets").Name(name).Do(ctx).Into(secret)
	return secret, err
}

// watchSecret watches one secret by its name. The channel is closed when the
// server ends the watch.
func watchSecret(ctx context.Context, t *testing.T, client *rest.RESTClient, name, version string) <-chan watch.Event {
	t.Helper()
	watcher, err := client.Get().Namespace(metav1.NamespaceDefault).Resource("secrets").
		Param("watch", "true").
		Param("fieldSelector", fields.OneTermEqualSelector("metadata.name", name).String()).
		Param("resourceVersion", version).
		Watch(ctx)
	if err != nil {
		t.Fatalf("watch secret: %v", err)
	}
	t.Cleanup(watcher.Stop)
	return watcher.ResultChan()
}

func nextEvent(ctx context.Context, t *testing.T, events <-chan watch.Event) watch.Event {
	t.Helper()
	select {
	case event, ok := <-events:
		if !ok {
			t.Fatal("the watch ended")
		}
		return event
	case <-ctx.Done():
		t.Fatal("no event of the watch before the test's end")
	}
	return watch.Event{}
}

// grantSecret gives a user the right to read one secret, and waits until the authorizer has learned of the role with
// its watch.
func grantSecret(ctx context.Context, t *testing.T, cp *ControlPlane, user, secret string) {
	t.Helper()
	client := restClient(t, cp.AdminConfig(), "/apis", rbacv1.SchemeGroupVersion)
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: user},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{secret},
			Verbs: []string{"get", "list", "watch"},
		}},
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}
	for resource, object := range map[string]runtime.Object{"roles": role, "rolebindings": binding} {
		err := client.Post().Namespace(metav1.NamespaceDefault).Resource(resource).Body(object).Do(ctx).Error()
		if err != nil {
			t.Fatalf("create %s: %v", resource, err)
		}
	}
	userClient := coreClient(t, userConfig(t, cp, user))
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-ticker.C {
		_, err := getSecret(ctx, userClient, secret)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("wait for the role of %s to be known: after 10 s: %v", user, err)
		}
	}
}

// alive reports whether a process exists and is no zombie, because the new parent of an orphan may be slow to wait for
// it.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || !strings.Contains(string(status), "\nState:\tZ")
}
