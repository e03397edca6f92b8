// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

const threeSources = `
- secret: {name: a, optional: true}
- configMap: {name: b, items: [{key: k, path: conf/k, mode: 0600, uid: 7}]}
- downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: app, fieldRef: {fieldPath: "metadata.labels['app']"}}]}
`

func configMapRef(name string) source.Ref {
	return source.Ref{Kind: source.ConfigMap, Namespace: namespace, Name: name}
}

// pod gives the pod of a request its fields. version is that of the object; the digest is that of the fields.
func (w *world) pod(r Request, version string, fields content) {
	w.fake.answer(source.Ref{Kind: source.PodKind, Namespace: namespace, Name: r.Pod.Name}, func(o *fakeObject) {
		digest := ""
		for _, key := range slices.Sorted(maps.Keys(fields)) {
			digest += key + "=" + fields[key] + "\n"
		}
		o.err, o.content = nil, source.Content{Data: fields.bytes(), UID: r.Pod.UID, ResourceVersion: version, Digest: digest}
	})
}

// newThree returns a world with a volume of three sources, running, and its request.
func newThree(t *testing.T) (*world, Request) {
	w := newFakeWorld(t)
	w.secret("a", content{"id": "1"})
	w.fake.set(configMapRef("b"), content{"k": "v", "unused": "x"})
	r := w.request("v", "sources", threeSources, "uid", "1000", "gid", "2000")
	w.pod(r, "1", content{"metadata.labels": `app="web"`, "metadata.labels['app']": "web"})
	w.publish(r)
	w.run()
	return w, r
}

func (w *world) eventuallyShows(r Request, what string, want content) {
	w.t.Helper()
	testkit.Eventually(w.t, patience, what, func() bool {
		for name, data := range want {
			if b, err := os.ReadFile(filepath.Join(r.Target, name)); err != nil || string(b) != data {
				return false
			}
		}
		entries, err := os.ReadDir(r.Target)
		return err == nil && len(slices.DeleteFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), "..") })) == len(topLevel(want))
	})
}

func topLevel(c content) map[string]bool {
	names := map[string]bool{}
	for path := range c {
		name, _, _ := strings.Cut(path, "/")
		names[name] = true
	}
	return names
}

func TestSeveralSourcesMakeOneVolume(t *testing.T) {
	w, r := newThree(t)
	w.present(r, content{"id": "1", "conf/k": "v", "labels": `app="web"`, "app": "web"})
	for path, want := range map[string][3]uint32{"id": {0o400, 1000, 2000}, "conf/k": {0o600, 7, 2000}, "labels": {0o444, 1000, 2000}} {
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join(r.Target, path), &st))
		if got := [3]uint32{st.Mode & 0o7777, st.Uid, st.Gid}; got != want {
			t.Errorf("%s: mode, uid and gid are %v, want %v", path, got, want)
		}
	}
	w.unpublish(r)
	if got := w.watches(); len(got) > 0 {
		t.Errorf("watched after unpublish: %q", got)
	}
}

func TestAChangeOfAnySourceRefreshesTheVolume(t *testing.T) {
	w, r := newThree(t)
	w.secret("a", content{"id": "2"})
	w.eventuallyShows(r, "the Secret's change", content{"id": "2", "conf/k": "v", "labels": `app="web"`, "app": "web"})
	w.fake.set(configMapRef("b"), content{"k": "w"})
	w.eventuallyShows(r, "the ConfigMap's change", content{"id": "2", "conf/k": "w", "labels": `app="web"`, "app": "web"})
	w.pod(r, "2", content{"metadata.labels": "", "metadata.labels['other']": "x"})
	w.eventuallyShows(r, "the change of the pod's labels", content{"id": "2", "conf/k": "w", "labels": "", "app": ""})
	w.unpublish(r)
}

func TestAnOptionalSourceComesAndGoes(t *testing.T) {
	w, r := newThree(t)
	rest := content{"conf/k": "v", "labels": `app="web"`, "app": "web"}
	w.removeSecret("a")
	w.eventuallyShows(r, "the optional Secret to go", rest)
	if v := w.get(r.ID); v.stale != nil {
		t.Errorf("stale: %v", v.stale)
	}
	w.secret("a", content{"id": "again"})
	w.eventuallyShows(r, "the optional Secret to come back", content{"id": "again", "conf/k": "v", "labels": `app="web"`, "app": "web"})
	w.unpublish(r)
}

func TestASourceThatIsMissingFailsThePublishAndLeavesNothing(t *testing.T) {
	w := newFakeWorld(t)
	w.secret("a", content{"id": "1"})
	r := w.request("v", "sources", threeSources)
	w.pod(r, "1", content{})
	before := w.snapshot()
	isErr(t, w.Publish(t.Context(), r), source.ErrNotFound, `ConfigMap "ns/b"`)
	w.unchanged(before)
	w.absent(r)
}

// Which files a source has that names no items is known only here.
func TestSourcesThatWantOnePathAreRefused(t *testing.T) {
	const two = "[{secret: {name: a}}, {configMap: {name: b}}]"
	for _, test := range []struct {
		name, sources string
		a, b          content
		says          []string
	}{
		{"the same key twice", two, content{"k": "1"}, content{"k": "2"}, []string{`Secret "ns/a", ConfigMap "ns/b": two of its sources have a file "k"`, "items"}},
		{"a file and a directory", "[{secret: {name: a}}, {configMap: {name: b, items: [{key: k, path: d/k}]}}]", content{"d": "1"}, content{"k": "2"},
			[]string{`one of its sources has a file "d", another "d/k"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newFakeWorld(t)
			w.secret("a", test.a)
			w.fake.set(configMapRef("b"), test.b)
			r := w.request("v", "sources", test.sources)
			before := w.snapshot()
			isErr(t, w.Publish(t.Context(), r), ErrPrecondition, test.says...)
			w.unchanged(before)

			// The same as a refresh keeps what is there, whole.
			w.secret("a", content{"other": "old"})
			w.publish(r)
			w.run()
			was := content{"other": "old"}
			for key, value := range test.b {
				if strings.Contains(test.sources, "d/k") {
					key = "d/" + key
				}
				was[key] = value
			}
			w.secret("a", test.a)
			testkit.Eventually(t, patience, "the volume to be stale", func() bool {
				all, err := w.Status(t.Context())
				return err == nil && strings.Contains(all[0].Stale, test.says[0])
			})
			w.present(r, was)
			w.unpublish(r)
		})
	}
}

func TestAPodsStatusAloneRewritesNothing(t *testing.T) {
	w, r := newThree(t)
	generation := readlink(t, r)
	w.pod(r, "2", content{"metadata.labels": `app="web"`, "metadata.labels['app']": "web"})
	must(t, w.refresh(t.Context(), r.ID))
	if now := readlink(t, r); now != generation {
		t.Errorf("%s became %s", generation, now)
	}
	w.unpublish(r)
}

// A StatefulSet's pod that is made anew has its predecessor's name.
func TestAnotherPodOfTheSameNameIsNotShown(t *testing.T) {
	w, r := newThree(t)
	other := r
	other.Pod.UID = "another"
	w.pod(other, "9", content{"metadata.labels": "another's", "metadata.labels['app']": "another's"})
	testkit.Eventually(t, patience, "the volume to be stale", func() bool {
		all, err := w.Status(t.Context())
		return err == nil && strings.Contains(all[0].Stale, "there is another pod of this name")
	})
	w.present(r, content{"id": "1", "conf/k": "v", "labels": `app="web"`, "app": "web"})
	w.unpublish(r)
}

func TestSourcesSurviveARestart(t *testing.T) {
	w, r := newThree(t)
	w.secret("a", content{"id": "while away"})
	w.restart()
	w.run()
	w.eventuallyShows(r, "what changed while the driver was away", content{"id": "while away", "conf/k": "v", "labels": `app="web"`, "app": "web"})
	w.isThere(r)
	generation := readlink(t, r)
	w.publish(r)
	if now := readlink(t, r); now != generation {
		t.Error("a republish wrote what was there already")
	}
	w.unpublish(r)
}

func TestDownward(t *testing.T) {
	pod := source.Content{Data: content{
		"metadata.name": "web-0", "metadata.labels['a']": "b", "app/": "", "app/limits.cpu": "1500m", "app/requests.cpu": "1m", "app/limits.memory": "100Mi",
		"app/requests.memory": "1025", "app/limits.hugepages-2Mi": "4Mi", "idle/": "", "idle/limits.memory": "0",
	}.bytes()}
	resource := func(container, key, divisor string) attributes.Item {
		return attributes.Item{Key: key, Container: container, Divisor: divisor, Path: "f"}
	}
	for _, test := range []struct {
		name string
		item attributes.Item
		want string
		err  string
	}{
		{"a field", attributes.Item{Key: "metadata.name"}, "web-0", ""},
		{"a label", attributes.Item{Key: "metadata.labels['a']"}, "b", ""},
		{"a label that is not there is empty", attributes.Item{Key: "metadata.labels['x']"}, "", ""},
		{"an address that is not known yet is empty", attributes.Item{Key: "status.podIP"}, "", ""},
		{"CPUs are rounded up", resource("app", "limits.cpu", ""), "2", ""},
		{"the divisor that the API server fills in is 1", resource("app", "limits.cpu", "0"), "2", ""},
		{"CPUs by the thousandth", resource("app", "limits.cpu", "1m"), "1500", ""},
		{"a thousandth of a CPU is one, rounded up", resource("app", "requests.cpu", "1"), "1", ""},
		{"bytes", resource("app", "limits.memory", ""), "104857600", ""},
		{"mebibytes", resource("app", "limits.memory", "1Mi"), "100", ""},
		{"kibibytes are rounded up", resource("app", "requests.memory", "1Ki"), "2", ""},
		{"huge pages", resource("app", "limits.hugepages-2Mi", "1Mi"), "4", ""},
		{"a request that the container does not make is 0", resource("idle", "requests.memory", "1Mi"), "0", ""},
		{"a limit that it does not set is not known", resource("idle", "limits.cpu", ""), "", `sets no limits.cpu for container "idle"`},
		{"a limit of 0 is none", resource("idle", "limits.memory", ""), "", `sets no limits.memory for container "idle"`},
		{"a container that is not there", resource("other", "requests.cpu", ""), "", `has no container "other"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := downward(pod, test.item)
			if string(got) != test.want || (test.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("got %q, %v, want %q, %s", got, err, test.want, test.err)
			}
		})
	}
}
