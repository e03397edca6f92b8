// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
)

// TestAccess uses a user without a role, then gives it a role for one name, and withdraws the role.
func TestAccess(t *testing.T) {
	t.Parallel() // A refusal counts after ten seconds.
	const user = "source-reader"
	admin := newClient(t)
	for _, name := range []string{"granted", "not-granted"} {
		admin.create(t, secret(name, "one"))
		t.Cleanup(func() { cleanUp(admin, secret(name, "")) })
	}
	p := faultproxy.NewPlain(t, userConfig(t, user))
	api := newAPI(t, p.Config())
	ref := secretRef("granted")
	changes := watched(t, api, ref)
	_, err := api.Get(ref)
	if !errors.Is(err, source.ErrForbidden) {
		t.Fatalf("Get without a role: error %v, want %v", err, source.ErrForbidden)
	}
	for _, part := range []string{ref.String(),
		`secrets "granted" is forbidden: User "source-reader" cannot watch resource "secrets"`} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if changes.Load() != 1 {
		t.Errorf("%d notifications, want 1 of the refusal", changes.Load())
	}

	role, binding := grant(user, "granted")
	admin.create(t, role)
	t.Cleanup(func() { cleanUp(admin, role) })
	admin.create(t, binding)
	t.Cleanup(func() { cleanUp(admin, binding) })
	start := time.Now()
	waitValue(t, api, ref, time.Minute, "one")
	t.Logf("recovered %v after the role was bound", time.Since(start))
	if changes.Load() < 2 {
		t.Error("no notification of the recovery")
	}
	other := secretRef("not-granted")
	watched(t, api, other)
	if _, err := api.Get(other); !errors.Is(err, source.ErrForbidden) {
		t.Errorf("Get of a name that the role does not have: error %v, want %v", err, source.ErrForbidden)
	}
	admin.update(t, secret("granted", "two"))
	waitValue(t, api, ref, soon, "two")

	notified := changes.Load()
	admin.delete(t, binding)
	// The API server learns of the deletion with a watch, and authorizes a watch only at its start.
	waitRefused(t, userConfig(t, user), "granted")
	if got := value(api, ref); got != "two" {
		t.Errorf("while the watch lasts: %q", got)
	}
	if p.Say(nil) == 0 {
		t.Fatal("no watch to cut")
	}
	testkit.Eventually(t, time.Minute, "the refusal to be noticed", func() bool {
		content, err := api.Get(ref)
		if err != nil && len(content.Data) > 0 {
			t.Fatal("content next to an error")
		}
		return errors.Is(err, source.ErrForbidden)
	})
	if changes.Load() != notified+1 {
		t.Errorf("%d notifications of the refusal, want one", changes.Load()-notified)
	}
	admin.create(t, binding)
	// Without a new subscriber, the next attempt may be minutes away.
	testkit.Eventually(t, soon, "the right that was given back to be noticed", func() bool {
		api.Subscribe(ref, "another", false, func() {})
		defer api.Unsubscribe(ref, "another")
		waitKnown(t, api, ref)
		return value(api, ref) == "two"
	})
}

func TestUnauthorized(t *testing.T) {
	config := controlPlane.AdminConfig()
	config.BearerToken = "wrong"
	api := newAPI(t, config)
	ref := secretRef("any")
	watched(t, api, ref)
	if _, err := api.Get(ref); !errors.Is(err, source.ErrUnavailable) || !strings.Contains(err.Error(), "Unauthorized") {
		t.Errorf("error %v, want %v with the server's message", err, source.ErrUnavailable)
	}
}

// TestAuthenticationOutage uses an API server that does not know the driver for a while, because its token has expired,
// or the keys are being rotated.
func TestAuthenticationOutage(t *testing.T) {
	t.Parallel() // An outage counts after ten seconds.
	admin := newClient(t)
	admin.create(t, secret("unknown-user", "one"))
	t.Cleanup(func() { cleanUp(admin, secret("unknown-user", "")) })
	p := faultproxy.NewPlain(t, controlPlane.AdminConfig())
	api := newAPI(t, p.Config())
	ref := secretRef("unknown-user")
	changes := watched(t, api, ref)
	testkit.Eventually(t, soon, "the watch", func() bool { return p.Watches() == 1 })

	p.Answer(faultproxy.Status(http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "Unauthorized"))
	p.Say(nil)
	testkit.Eventually(t, time.Minute, "the outage to be noticed", func() bool {
		_, err := api.Outage(ref)
		return errors.Is(err, source.ErrUnavailable) && strings.Contains(err.Error(), "Unauthorized")
	})
	api.Subscribe(ref, "new", false, func() {})
	waitKnown(t, api, ref)
	if got := value(api, ref); got != "one" || changes.Load() != 1 {
		t.Errorf("in the outage: %q, %d notifications; want the last known content, and one", got, changes.Load())
	}
	fresh := secretRef("unknown-user-fresh")
	watched(t, api, fresh)
	if _, err := api.Get(fresh); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("of an object that was never read: error %v, want %v", err, source.ErrUnavailable)
	}

	admin.update(t, secret("unknown-user", "two"))
	p.Answer(nil)
	waitValue(t, api, ref, time.Minute, "two")
	if _, err := api.Outage(ref); err != nil {
		t.Errorf("after the outage: %v", err)
	}
	reliability.Shown(t, "F-51", "the content stays readable for more than 10 s of 401, and follows afterwards")
}

func userConfig(t testing.TB, user string) *rest.Config {
	t.Helper()
	config, err := controlPlane.UserConfig(user)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// grant returns the driver's rights: get, list and watch of one name.
func grant(user, secretName string) (*rbacv1.Role, *rbacv1.RoleBinding) {
	return &rbacv1.Role{
			ObjectMeta: metav1.ObjectMeta{Name: user},
			Rules: []rbacv1.PolicyRule{{
				APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{secretName},
				Verbs: []string{"get", "list", "watch"},
			}},
		}, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: user},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
		}
}

// waitRefused waits until the API server refuses a new watch.
func waitRefused(t testing.TB, config *rest.Config, name string) {
	t.Helper()
	ref := secretRef(name)
	testkit.Eventually(t, soon, "the API server to know that the role is gone", func() bool {
		api, err := source.NewAPI(config, source.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer api.Close()
		api.Subscribe(ref, subscriber, false, func() {})
		waitKnown(t, api, ref)
		_, err = api.Get(ref)
		return errors.Is(err, source.ErrForbidden)
	})
}
