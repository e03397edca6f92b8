// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	reader     = "reader"
	secretName = "seen"
)

// TestControlPlane is a sequence of parts with one control plane, because a start takes seconds. Each part uses the
// result of the previous ones.
func TestControlPlane(t *testing.T) {
	ctx := testContext(t)
	begin := time.Now()
	cp, err := Start(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cp.Stop)
	t.Logf("started in %.1f s", time.Since(begin).Seconds())

	admin := coreClient(t, cp.AdminConfig())
	t.Run("the admin makes a secret", func(t *testing.T) {
		createSecret(ctx, t, admin, secretName, "one")
		createSecret(ctx, t, admin, "other", "one")
	})
	t.Run("a user may do what a role grants", func(t *testing.T) { testRole(ctx, t, cp) })
	t.Run("a user without a role is refused", func(t *testing.T) {
		nobody := coreClient(t, userConfig(t, cp, "nobody"))
		if _, err := getSecret(ctx, nobody, secretName); !apierrors.IsForbidden(err) {
			t.Errorf("get secret: error %v, want 403 Forbidden", err)
		}
	})
	t.Run("a user of another authority is not authenticated", func(t *testing.T) {
		stranger := *cp.pki
		other, err := newPKI()
		if err != nil {
			t.Fatal(err)
		}
		stranger.cert, stranger.key = other.cert, other.key
		pair, err := stranger.client("admin", []string{"system:masters"})
		if err != nil {
			t.Fatal(err)
		}
		config := cp.config()
		config.CertData, config.KeyData = pair.cert, pair.key
		if _, err := getSecret(ctx, coreClient(t, config), secretName); !apierrors.IsUnauthorized(err) {
			t.Errorf("get secret: error %v, want 401 Unauthorized", err)
		}
	})
	t.Run("the node authorizer refuses a node a secret of no pod of its", func(t *testing.T) {
		node := coreClient(t, userConfig(t, cp, "system:node:n1", "system:nodes"))
		_, err := getSecret(ctx, node, secretName)
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "no relationship found") {
			t.Errorf("get secret: error %v, want 403 Forbidden for want of a relationship", err)
		}
	})
	t.Run("etcd forgets older versions", func(t *testing.T) {
		first := map[string]any{"key": []byte{0}, "limit": 1, "revision": "2"}
		if err := cp.askEtcd(ctx, "range", first, nil); err != nil {
			t.Fatal(err)
		}
		if err := cp.Compact(ctx); err != nil {
			t.Fatal(err)
		}
		if err := cp.askEtcd(ctx, "range", first, nil); err == nil || !strings.Contains(err.Error(), "compacted") {
			t.Errorf("error %v, want one that it is compacted", err)
		}
	})
	t.Run("a user needs a name", func(t *testing.T) {
		if _, err := cp.UserConfig("", "system:masters"); err == nil {
			t.Error("UserConfig without a name succeeded")
		}
	})
	t.Run("a kubeconfig is enough to connect", func(t *testing.T) { testKubeconfig(ctx, t, cp) })
	t.Run("a watch outlives the serving certificate", func(t *testing.T) { testRotation(ctx, t, cp) })
	t.Run("the API server comes back after an outage", func(t *testing.T) { testOutage(ctx, t, cp) })
	t.Run("stopping leaves nothing", func(t *testing.T) { testStop(ctx, t, cp) })
}

func testRole(ctx context.Context, t *testing.T, cp *ControlPlane) {
	grantSecret(ctx, t, cp, reader, secretName)
	admin := coreClient(t, cp.AdminConfig())
	user := coreClient(t, userConfig(t, cp, reader))

	secret, err := getSecret(ctx, user, secretName)
	if err != nil {
		t.Fatalf("get the granted secret: %v", err)
	}
	if _, err := getSecret(ctx, user, "other"); !apierrors.IsForbidden(err) {
		t.Errorf("get another secret: error %v, want 403 Forbidden", err)
	}

	events := watchSecret(ctx, t, user, secretName, secret.ResourceVersion)
	secret.StringData = map[string]string{"key": "two"}
	if err := admin.Put().Namespace(metav1.NamespaceDefault).Resource("secrets").Name(secretName).
		Body(secret).Do(ctx).Error(); err != nil {
		t.Fatalf("update secret: %v", err)
	}
	event := nextEvent(ctx, t, events)
	changed, ok := event.Object.(*corev1.Secret)
	if !ok || event.Type != watch.Modified || string(changed.Data["key"]) != "two" {
		t.Errorf("watch saw %s %v, want MODIFIED with the new value", event.Type, event.Object)
	}
}

func testKubeconfig(ctx context.Context, t *testing.T, cp *ControlPlane) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(cp.token), 0o600); err != nil {
		t.Fatal(err)
	}
	withFile := cp.config()
	withFile.BearerTokenFile = file
	for name, config := range map[string]*rest.Config{
		"token":       cp.AdminConfig(),
		"token file":  withFile,
		"certificate": userConfig(t, cp, reader),
	} {
		path := filepath.Join(t.TempDir(), name)
		if err := cp.Kubeconfig(path, config); err != nil {
			t.Fatal(err)
		}
		loaded, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			t.Fatalf("load kubeconfig: %v", err)
		}
		if _, err := getSecret(ctx, coreClient(t, loaded), secretName); err != nil {
			t.Errorf("get secret with the %s of a kubeconfig: %v", name, err)
		}
	}
}

func testRotation(ctx context.Context, t *testing.T, cp *ControlPlane) {
	admin := coreClient(t, cp.AdminConfig())
	createSecret(ctx, t, admin, "rotated", "one")
	events := watchSecret(ctx, t, admin, "rotated", "")
	nextEvent(ctx, t, events)
	before, err := cp.servedCertificate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := cp.RotateServingCertificate(ctx); err != nil {
		t.Fatal(err)
	}
	after, err := cp.servedCertificate(ctx)
	if err != nil || bytes.Equal(after, before) {
		t.Errorf("a new connection gets the old certificate, or %v", err)
	}
	secret, err := getSecret(ctx, coreClient(t, cp.AdminConfig()), "rotated")
	if err != nil {
		t.Fatal(err)
	}
	secret.StringData = map[string]string{"key": "two"}
	put := admin.Put().Namespace(secret.Namespace).Resource("secrets").Name(secret.Name).Body(secret)
	if err := put.Do(ctx).Error(); err != nil {
		t.Fatal(err)
	}
	if event := nextEvent(ctx, t, events); event.Type != watch.Modified {
		t.Errorf("the watch from before the rotation saw %s %v, want MODIFIED", event.Type, event.Object)
	}
}

func testOutage(ctx context.Context, t *testing.T, cp *ControlPlane) {
	address := cp.APIServerAddress()
	admin := coreClient(t, cp.AdminConfig())
	events := watchSecret(ctx, t, admin, secretName, "")

	for range 2 { // The second call does nothing.
		if err := cp.StopAPIServer(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for range events { // The watch ends.
	}
	if _, err := getSecret(ctx, admin, secretName); err == nil ||
		apierrors.ReasonForError(err) != metav1.StatusReasonUnknown {
		t.Errorf("get secret in the outage: error %v, want one of the connection", err)
	}

	for range 2 {
		begin := time.Now()
		if err := cp.StartAPIServer(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("API server started again in %.1f s", time.Since(begin).Seconds())
	}
	if got := cp.APIServerAddress(); got != address {
		t.Errorf("address after the outage %s, want %s", got, address)
	}
	secret, err := getSecret(ctx, admin, secretName)
	if err != nil || string(secret.Data["key"]) != "two" {
		t.Errorf("get secret after the outage = %v, %v, want the value from before", secret, err)
	}
}

func testStop(ctx context.Context, t *testing.T, cp *ControlPlane) {
	pids := []int{cp.etcd.cmd.Process.Pid, cp.apiServer.cmd.Process.Pid}
	for range 2 {
		cp.Stop()
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d lives", pid)
		}
	}
	if _, err := os.Stat(cp.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("look for temporary folder %s: error %v, want that it is gone", cp.dir, err)
	}
	for _, p := range []port{cp.ports.etcdClient, cp.ports.etcdPeer, cp.ports.apiServer} {
		listener, err := net.Listen("tcp4", p.address)
		if err != nil {
			t.Errorf("use the port again: %v", err)
			continue
		}
		listener.Close()
	}
	if err := cp.StartAPIServer(ctx); !errors.Is(err, errStopped) {
		t.Errorf("start API server after Stop: error %v, want %v", err, errStopped)
	}
}
