// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

func TestContent(t *testing.T) {
	admin := newClient(t)
	api := newAPI(t, controlPlane.AdminConfig())
	yes := true
	for name, test := range map[string]struct {
		kind attributes.Kind
		make object
		want map[string]string
	}{
		"a secret gives its data": {
			attributes.Secret,
			&corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Name: "content-1"},
				Data:       map[string][]byte{"binary": {0, 0xff, '\n'}, "empty": {}}, StringData: map[string]string{"text": "é"},
			},
			map[string]string{"binary": "\x00\xff\n", "empty": "", "text": "é"},
		},
		"a config map gives data and binaryData together": {
			attributes.ConfigMap,
			&corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: "content-1"},
				Data:       map[string]string{"text": "é"}, BinaryData: map[string][]byte{"binary": {0, 0xff, '\n'}},
			},
			map[string]string{"binary": "\x00\xff\n", "text": "é"},
		},
		"an object without keys exists": {
			attributes.Secret, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "content-2"}}, map[string]string{},
		},
		"an immutable object says so": {
			attributes.ConfigMap,
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "content-2"}, Data: map[string]string{"a": "b"},
				Immutable: &yes},
			map[string]string{"a": "b"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			admin.create(t, test.make)
			t.Cleanup(func() { cleanUp(admin, test.make) })
			ref := source.Ref{Kind: test.kind, Namespace: namespace, Name: test.make.GetName()}
			watched(t, api, ref)
			content, err := api.Get(ref)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for key, value := range content.Data {
				got[key] = string(value)
			}
			if !maps.Equal(got, test.want) {
				t.Errorf("data %q, want %q", got, test.want)
			}
			if content.UID == "" || content.ResourceVersion == "" {
				t.Errorf("UID %q, resource version %q, want both", content.UID, content.ResourceVersion)
			}
			if want := name == "an immutable object says so"; content.Immutable != want {
				t.Errorf("immutable %v, want %v", content.Immutable, want)
			}
		})
	}
}

// TestLife follows a secret from before its creation to its deletion.
func TestLife(t *testing.T) {
	admin := newClient(t)
	api := newAPI(t, controlPlane.AdminConfig())
	ref := secretRef("life")

	if _, err := api.Get(ref); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("Get of what nobody watches: error %v, want %v", err, source.ErrUnavailable)
	}
	changes := watched(t, api, ref)
	notified := func(want int64) {
		t.Helper()
		testkit.Eventually(t, soon, fmt.Sprintf("notification %d", want), func() bool { return changes.Load() >= want })
		if got := changes.Load(); got != want {
			t.Errorf("%d notifications, want %d", got, want)
		}
	}
	notified(1)
	if _, err := api.Get(ref); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("Get before it exists: error %v, want %v", err, source.ErrNotFound)
	}

	admin.create(t, secret("life", "one"))
	notified(2)
	if got := value(api, ref); got != "one" {
		t.Errorf("created: %q", got)
	}
	first, err := api.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	admin.update(t, secret("life", "two"))
	notified(3)
	second, err := api.Get(ref)
	if err != nil || string(second.Data["key"]) != "two" || second.SameVersion(first) || second.UID != first.UID {
		t.Errorf("updated: error %v, UID and version %s %s, before %s %s", err, second.UID, second.ResourceVersion, first.UID,
			first.ResourceVersion)
	}
	if string(first.Data["key"]) != "one" {
		t.Error("the update changed what Get returned before")
	}
	admin.delete(t, secret("life", ""))
	notified(4)
	if _, err := api.Get(ref); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("Get after the deletion: error %v, want %v", err, source.ErrNotFound)
	}
	admin.create(t, secret("life", "two"))
	notified(5)
	third, err := api.Get(ref)
	if err != nil || string(third.Data["key"]) != "two" || third.UID == second.UID {
		t.Errorf("created again: error %v, UID %s, before %s", err, third.UID, second.UID)
	}

	api.Unsubscribe(ref, subscriber)
	if _, err := api.Get(ref); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("Get after Unsubscribe: error %v, want %v", err, source.ErrUnavailable)
	}
	admin.delete(t, secret("life", ""))
}

func TestSubscribers(t *testing.T) {
	admin := newClient(t)
	admin.create(t, secret("shared", "one"))
	t.Cleanup(func() { cleanUp(admin, secret("shared", "")) })
	config, requests := counted(controlPlane.AdminConfig())
	api := newAPI(t, config)
	ref := secretRef("shared")
	var first, second atomic.Int64
	api.Subscribe(ref, "first", false, func() { first.Add(1) })
	waitKnown(t, api, ref)
	api.Subscribe(ref, "second", false, func() { second.Add(1) })
	if got := second.Load(); got != 1 {
		t.Errorf("%d notifications of the second subscriber at Subscribe, want one, because the content was known", got)
	}
	if got := first.Load(); got != 1 {
		t.Errorf("%d notifications of the first subscriber, want one", got)
	}
	if n := len(requests.all()); n != 1 || requests.open.Load() != 1 || api.Watched() != 1 {
		t.Errorf("%d requests, %d open, %d watched: want one for both subscribers", n, requests.open.Load(), api.Watched())
	}

	api.Unsubscribe(ref, "first")
	admin.update(t, secret("shared", "two"))
	testkit.Eventually(t, soon, "the notification of the second subscriber", func() bool { return second.Load() == 2 })
	if got := first.Load(); got != 1 {
		t.Errorf("%d notifications of the subscriber that unsubscribed, want one", got)
	}
	api.Unsubscribe(ref, "nobody")
	if requests.open.Load() != 1 {
		t.Error("the watch ended while it had a subscriber")
	}
	api.Unsubscribe(ref, "second")
	testkit.Eventually(t, soon, "the watch to end with its last subscriber",
		func() bool { return requests.open.Load() == 0 })
	if n := len(requests.all()); n != 1 || api.Watched() != 0 {
		t.Errorf("%d requests, %d watched: want 1, 0", n, api.Watched())
	}
	noGoroutinesLeft(t)
}

func TestImmutable(t *testing.T) {
	admin := newClient(t)
	yes := true
	immutable := secret("immutable", "one")
	immutable.Immutable = &yes
	admin.create(t, immutable)
	t.Cleanup(func() { cleanUp(admin, immutable) })
	config, requests := counted(controlPlane.AdminConfig())
	api := newAPI(t, config)
	ref := secretRef("immutable")
	changes := watched(t, api, ref)
	testkit.Eventually(t, soon, "the watch of an immutable object to end",
		func() bool { return requests.open.Load() == 0 })
	noGoroutinesLeft(t)
	if got := value(api, ref); got != "one" {
		t.Errorf("content %q after the watch ended", got)
	}
	if n := len(requests.all()); n != 1 || changes.Load() != 1 {
		t.Errorf("%d requests and %d notifications, want one of each", n, changes.Load())
	}

	t.Run("a new subscriber notices that the object was created again", func(t *testing.T) {
		admin.delete(t, immutable)
		anew := secret("immutable", "two")
		anew.Immutable = &yes
		admin.create(t, anew)
		if got := value(api, ref); got != "one" {
			t.Errorf("content %q before the new subscriber", got)
		}
		api.Subscribe(ref, "another", false, func() {})
		waitKnown(t, api, ref)
		if got := value(api, ref); got != "two" || changes.Load() != 2 {
			t.Errorf("content %q, %d notifications of the first subscriber; want the new content and 2", got, changes.Load())
		}
	})
	t.Run("an object that becomes immutable is not watched on", func(t *testing.T) {
		testkit.Eventually(t, soon, "the watches of other tests to end", func() bool { return requests.open.Load() == 0 })
		admin.create(t, secret("settling", "one"))
		t.Cleanup(func() { cleanUp(admin, secret("settling", "")) })
		ref := secretRef("settling")
		watched(t, api, ref)
		if requests.open.Load() != 1 {
			t.Fatalf("%d watches open, want 1", requests.open.Load())
		}
		settled := secret("settling", "two")
		settled.Immutable = &yes
		admin.update(t, settled)
		waitValue(t, api, ref, soon, "two")
		testkit.Eventually(t, soon, "the watch to end", func() bool { return requests.open.Load() == 0 })
	})
}

func TestRequests(t *testing.T) {
	admin := newClient(t)
	admin.create(t, secret("counted", "one"))
	t.Cleanup(func() { cleanUp(admin, secret("counted", "")) })
	for name, test := range map[string]struct {
		ref  source.Ref
		want error
		path string
		// requests is the number of requests: the watch, and a get to confirm that an object is missing.
		requests int
	}{
		"a secret that exists":   {secretRef("counted"), nil, "/api/v1/namespaces/default/secrets", 1},
		"a secret that does not": {secretRef("not-there"), source.ErrNotFound, "/api/v1/namespaces/default/secrets", 2},
		"a config map that does not, in a namespace that does not": {
			source.Ref{Kind: attributes.ConfigMap, Namespace: "no-such", Name: "not-there"}, source.ErrNotFound,
			"/api/v1/namespaces/no-such/configmaps", 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			config, requests := counted(controlPlane.AdminConfig())
			api := newAPI(t, config)
			watched(t, api, test.ref)
			if _, err := api.Get(test.ref); !errors.Is(err, test.want) {
				t.Errorf("Get: error %v, want %v", err, test.want)
			}
			urls := requests.all()
			if len(urls) != test.requests {
				t.Errorf("requests %v, want %d", urls, test.requests)
			}
			if len(urls) > 1 && (urls[1].Path != test.path+"/"+test.ref.Name || urls[1].RawQuery != "") {
				t.Errorf("second request %s, want a plain get of the object", urls[1])
			}
			query := urls[0].Query()
			for key, want := range map[string]string{
				"watch": "true", "sendInitialEvents": "true", "resourceVersion": "0", "resourceVersionMatch": "NotOlderThan",
				"allowWatchBookmarks": "true", "fieldSelector": "metadata.name=" + test.ref.Name,
			} {
				if got := query.Get(key); got != want {
					t.Errorf("%s=%q, want %q", key, got, want)
				}
			}
			if urls[0].Path != test.path {
				t.Errorf("path %s, want %s", urls[0].Path, test.path)
			}
			if requests.open.Load() != 1 {
				t.Errorf("%d requests open, want the watch alone", requests.open.Load())
			}
		})
	}
}

func TestClose(t *testing.T) {
	config, requests := counted(controlPlane.AdminConfig())
	api := newAPI(t, config)
	for n := range 50 {
		watched(t, api, secretRef(fmt.Sprintf("not-there-%d", n)))
	}
	closeSoon(t, api)
	if requests.open.Load() != 0 {
		t.Errorf("%d watches left open", requests.open.Load())
	}
	noGoroutinesLeft(t)
	if _, err := api.Get(secretRef("not-there-0")); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("Get after Close: error %v, want what was last seen: %v", err, source.ErrNotFound)
	}
	before := len(requests.all())
	api.Subscribe(secretRef("too-late"), subscriber, false, func() { t.Error("a notification after Close") })
	api.Close()
	if _, err := api.Get(secretRef("too-late")); !errors.Is(err, source.ErrUnavailable) {
		t.Errorf("Get of what was watched after Close: error %v, want %v", err, source.ErrUnavailable)
	}
	if now := len(requests.all()); now != before {
		t.Errorf("%d requests after Close", now-before)
	}
}

// closeSoon closes api and fails t if that takes two seconds.
func closeSoon(t testing.TB, api *source.API) {
	t.Helper()
	start := time.Now()
	api.Close()
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
}

// cleanUp deletes an object after the test's context has ended.
func cleanUp(c client, o object) {
	rc, resource := c.place(o)
	_ = rc.Delete().Namespace(namespace).Resource(resource).Name(o.GetName()).Do(backgroundContext()).Error()
}
