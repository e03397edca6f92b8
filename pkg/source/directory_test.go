// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

const soon = 10 * time.Second

func manifestOf(kind attributes.Kind, name, value string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: %s\nmetadata: {name: %s}\n%s: {key: %q}\n", kind, name,
		map[attributes.Kind]string{attributes.Secret: "stringData", attributes.ConfigMap: "data"}[kind], value)
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replaceFile replaces the file at path with a rename.
func replaceFile(t testing.TB, path, content string) {
	t.Helper()
	writeFile(t, path+".new", content)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func newDirectory(t testing.TB, path string) *Directory {
	t.Helper()
	d, err := NewDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// value returns the value of an object's key, or the text of the error.
func value(r *registry, ref Ref) string {
	content, err := r.Get(ref)
	if err != nil {
		return err.Error()
	}
	return string(content.Data["key"])
}

func waitValue(t testing.TB, r *registry, ref Ref, want string) {
	t.Helper()
	testkit.Eventually(t, soon, fmt.Sprintf("%s to hold %q", ref, want), func() bool { return value(r, ref) == want })
}

func TestManifests(t *testing.T) {
	for name, test := range map[string]struct {
		file, content string
		ref           Ref
		want          map[string]string // nil means not found
	}{
		"a secret's data is decoded": {
			"a.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: ns}\ndata: {key: aGk=}\n",
			Ref{Kind: attributes.Secret, Namespace: "ns", Name: "a"}, map[string]string{"key": "hi"},
		},
		"stringData wins over data": {
			"a.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {key: aGk=, b: aGk=}\nstringData: {key: ho}\n",
			Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"}, map[string]string{"key": "ho", "b": "hi"},
		},
		"a config map gives data and binaryData": {
			"a.yml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {key: hi}\nbinaryData: {b: aG8=}\n",
			Ref{Kind: attributes.ConfigMap, Namespace: "default", Name: "a"}, map[string]string{"key": "hi", "b": "ho"},
		},
		"JSON": {
			"a.json", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"key":"hi"}}`,
			Ref{Kind: attributes.ConfigMap, Namespace: "default", Name: "a"}, map[string]string{"key": "hi"},
		},
		"the second of two documents": {
			"a.yaml", "# first\n" + manifestOf(attributes.Secret, "a", "one") + "---\n" +
				manifestOf(attributes.Secret, "b", "two"),
			Ref{Kind: attributes.Secret, Namespace: "default", Name: "b"}, map[string]string{"key": "two"},
		},
		"an object after one of another kind": {
			"a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {}\n---\n" +
				manifestOf(attributes.Secret, "a", "one"),
			Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"}, map[string]string{"key": "one"},
		},
		"no data at all": {
			"a.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n",
			Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"}, map[string]string{},
		},
		"a Secret of another API group is ignored": {
			"a.yaml", "apiVersion: example.com/v1\nkind: Secret\nmetadata: {name: a}\nfoo: bar\n",
			Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"}, nil,
		},
		"a config map is not a secret": {
			"a.yaml", manifestOf(attributes.ConfigMap, "a", "one"),
			Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"}, nil,
		},
		"another namespace is another object": {
			"a.yaml", manifestOf(attributes.Secret, "a", "one"), Ref{Kind: attributes.Secret, Namespace: "n", Name: "a"}, nil,
		},
		"a file with another extension is not read": {
			"a.yaml~", "{", Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"}, nil,
		},
		"an empty file": {"a.yaml", "", Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, test.file), test.content)
			d := newDirectory(t, dir)
			notified := 0
			d.Subscribe(test.ref, "v", false, func() { notified++ })
			if notified != 1 {
				t.Errorf("%d notifications at Subscribe, want one, because the object is known", notified)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			d.Wait(ctx, test.ref)
			content, err := d.Get(test.ref)
			if test.want == nil {
				if !errors.Is(err, ErrNotFound) {
					t.Errorf("error %v, want %v", err, ErrNotFound)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(content.Data) != len(test.want) || content.ResourceVersion == "" {
				t.Errorf("data %q of version %q, want %q of any", content.Data, content.ResourceVersion, test.want)
			}
			for key, want := range test.want {
				if got := string(content.Data[key]); got != want {
					t.Errorf("%s: %q, want %q", key, got, want)
				}
			}
		})
	}
}

func TestBadManifests(t *testing.T) {
	for name, test := range map[string]struct{ content, want string }{
		"not YAML":         {"{", "manifest a.yaml: document 1"},
		"an unknown field": {"apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndta: {}\n", `unknown field "dta"`},
		"no name": {"apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: a}\n",
			"document 1: ConfigMap: metadata.name"},
		"data not base64": {"apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {key: '!'}\n",
			"document 1: Secret: "},
		"the second is bad": {manifestOf(attributes.Secret, "a", "x") + "---\nkind: [\n", "document 2"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "a.yaml"), test.content)
			d, err := NewDirectory(dir)
			if err == nil {
				d.Close()
				t.Fatal("NewDirectory succeeded")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not say %q", err, test.want)
			}
		})
	}
	t.Run("no directory", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "missing")
		if _, err := NewDirectory(path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v, want %v and the path", err, os.ErrNotExist)
		}
	})
}

// TestDirectoryChanges changes the manifests step by step.
func TestDirectoryChanges(t *testing.T) {
	testkit.NothingLeft(t)
	logged := testkit.LogOf(t, 0).Text
	dir := t.TempDir()
	file := filepath.Join(dir, "a.yaml")
	writeFile(t, file, manifestOf(attributes.Secret, "a", "one")+"---\n"+manifestOf(attributes.ConfigMap, "b", "one"))
	d := newDirectory(t, dir)
	a, b, c := Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"},
		Ref{Kind: attributes.ConfigMap, Namespace: "default", Name: "b"},
		Ref{Kind: attributes.Secret, Namespace: "default", Name: "c"}
	var changesA, changesB atomic.Int64
	d.Subscribe(a, "v", false, func() { changesA.Add(1) })
	d.Subscribe(b, "v", false, func() { changesB.Add(1) })
	d.Subscribe(c, "v", false, func() {})
	before, err := d.Get(b)
	if err != nil {
		t.Fatal(err)
	}

	// A slow write in place would show the empty file in between (TestEditInPlace), so the test renames.
	t.Log("replace by rename")
	replaceFile(t, file, manifestOf(attributes.Secret, "a", "two")+"---\n"+manifestOf(attributes.ConfigMap, "b", "one"))
	waitValue(t, &d.registry, a, "two")
	t.Log("once more")
	replaceFile(t, file, manifestOf(attributes.Secret, "a", "three")+"---\n"+manifestOf(attributes.ConfigMap, "b", "one"))
	waitValue(t, &d.registry, a, "three")
	if after, err := d.Get(b); err != nil || !after.SameVersion(before) {
		t.Errorf("the object that did not change has another version: error %v", err)
	}
	if n := changesA.Load(); n != 3 {
		t.Errorf("%d notifications, want 3", n)
	}
	if n := changesB.Load(); n != 1 {
		t.Errorf("%d notifications of the object that did not change, want 1", n)
	}

	t.Log("a file that can't be parsed keeps its earlier objects, and the others change")
	writeFile(t, file, "kind: [\n")
	writeFile(t, filepath.Join(dir, "c.json"),
		`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"c"},"stringData":{"key":"new"}}`)
	waitValue(t, &d.registry, c, "new")
	testkit.Eventually(t, soon, "a line in the log",
		func() bool { return strings.Contains(logged(), "manifest a.yaml: document 1") })
	if got := value(&d.registry, a); got != "three" {
		t.Errorf("content %q", got)
	}
	writeFile(t, file, manifestOf(attributes.Secret, "a", "four"))
	waitValue(t, &d.registry, a, "four")
	testkit.Eventually(t, soon, "the object that is no longer in the file to be missing", func() bool {
		_, err := d.Get(b)
		return errors.Is(err, ErrNotFound)
	})

	t.Log("delete a file")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, soon, "its object to be missing", func() bool {
		_, err := d.Get(a)
		return errors.Is(err, ErrNotFound)
	})
	t.Log("a new file with the earlier content")
	writeFile(t, file, manifestOf(attributes.Secret, "a", "four"))
	waitValue(t, &d.registry, a, "four")
	if got := value(&d.registry, c); got != "new" {
		t.Errorf("the other file's object: %q", got)
	}

	t.Log("unsubscribe")
	d.Unsubscribe(a, "v")
	notified := changesA.Load()
	writeFile(t, file, manifestOf(attributes.Secret, "a", "five")+"---\n"+manifestOf(attributes.ConfigMap, "b", "five"))
	waitValue(t, &d.registry, b, "five")
	if changesA.Load() != notified || d.Watched() != 2 {
		t.Errorf("a notification after Unsubscribe, or %d watched, want 2", d.Watched())
	}
	d.Close()
	d.Close()
}

// TestEditInPlace overwrites a file many times. The content is always a written one, and never the empty file in
// between.
func TestEditInPlace(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.yaml")
	writeFile(t, file, manifestOf(attributes.Secret, "a", "0"))
	d := newDirectory(t, dir)
	ref := Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"}
	var missing, notified atomic.Int64
	d.Subscribe(ref, "v", false, func() {
		notified.Add(1)
	})
	var slowest time.Duration
	for n := range 20 {
		want := fmt.Sprint(n + 1)
		start := time.Now()
		writeFile(t, file, "")
		time.Sleep(time.Millisecond) // An editor is as slow.
		writeFile(t, file, manifestOf(attributes.Secret, "a", want))
		written := time.Now()
		testkit.Eventually(t, soon, ref.String()+" to hold "+want, func() bool {
			got := value(&d.registry, ref)
			if got == (&Error{Ref: ref, Reason: ErrNotFound}).Error() && written.Sub(start) < settleTime/2 {
				missing.Add(1) // Otherwise this machine was too busy to decide.
			}
			return got == want
		})
		slowest = max(slowest, time.Since(written))
	}
	t.Logf("seen after at most %v", slowest)
	if missing.Load() > 0 {
		t.Error("the object was missing while its file was written")
	}
	if notified.Load() < 21 {
		t.Errorf("%d notifications, want 21", notified.Load())
	}
}

// TestTwoFilesOneObject checks that the same file wins at each read.
func TestTwoFilesOneObject(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "a.yaml"), manifestOf(attributes.Secret, "a", "one"))
	writeFile(t, filepath.Join(dir, "b.yaml"), manifestOf(attributes.Secret, "a", "two"))
	ref := Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"}
	other := Ref{Kind: attributes.Secret, Namespace: "default", Name: "other"}
	d := newDirectory(t, dir)
	var notified atomic.Int64
	d.Subscribe(ref, "v", false, func() { notified.Add(1) })
	d.Subscribe(other, "v", false, func() {})
	for n := range 20 {
		if got := value(&d.registry, ref); got != "two" {
			t.Fatalf("content %q, want that of the last file", got)
		}
		replaceFile(t, filepath.Join(dir, "other.yaml"), manifestOf(attributes.Secret, "other", fmt.Sprint(n)))
		waitValue(t, &d.registry, other, fmt.Sprint(n))
	}
	if notified.Load() != 1 {
		t.Errorf("%d notifications, want only the first", notified.Load())
	}
}

func BenchmarkDirectoryUpdate(b *testing.B) {
	dir := b.TempDir()
	file := filepath.Join(dir, "a.yaml")
	writeFile(b, file, manifestOf(attributes.Secret, "a", "0"))
	d := newDirectory(b, dir)
	notified := make(chan struct{}, 10)
	d.Subscribe(Ref{Kind: attributes.Secret, Namespace: "default", Name: "a"}, "v", false,
		func() { notified <- struct{}{} })
	<-notified
	for n := 0; b.Loop(); n++ {
		replaceFile(b, file, manifestOf(attributes.Secret, "a", fmt.Sprint(n+1)))
		<-notified
	}
}

func TestPodAndNodeManifests(t *testing.T) {
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: web}%s}\n" +
		"spec: {containers: [{name: c}], volumes: [{name: keys, secret: {secretName: a}}]}\n"
	const nodes = "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\nstatus: {allocatable: {cpu: 1500m}}\n"
	for name, test := range map[string]struct {
		content, namespace, uid string
		want                    error
		says                    string
	}{
		"a manifest without a uid":        {fmt.Sprintf(pod, ""), "default", "any", nil, ""},
		"a manifest with the uid":         {fmt.Sprintf(pod, ", uid: u"), "default", "u", nil, ""},
		"a manifest with another uid":     {fmt.Sprintf(pod, ", uid: u"), "default", "v", ErrNotFound, "another pod"},
		"a manifest of another namespace": {fmt.Sprintf(pod, ""), "ns", "any", ErrNotFound, "add the Pod's manifest to "},
		"no manifest":                     {"", "default", "any", ErrNotFound, "add the Pod's manifest to "},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, filepath.Join(dir, "a.yaml"), test.content+"---\n"+nodes)
			d := newDirectory(t, dir)
			got, err := d.Pod(t.Context(), test.namespace, "p", test.uid)
			if !errors.Is(err, test.want) || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Fatalf("error %v, want %v that says %q", err, test.want, test.says)
			}
			if test.want == nil {
				if got.Namespace != "default" || got.Spec.Volumes[0].Secret.SecretName != "a" ||
					got.Spec.Volumes[0].Secret.DefaultMode != nil {
					t.Errorf("%+v", got)
				}
			} else if got != nil {
				t.Error("a pod next to an error")
			}
			allocatable, err := d.Allocatable(t.Context())
			if cpu := allocatable["cpu"]; err != nil || cpu.String() != "1500m" {
				t.Errorf("allocatable %v, error %v", allocatable, err)
			}
		})
	}
	t.Run("the downward API", func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "a.yaml")
		writeFile(t, file, fmt.Sprintf(pod, ""))
		d := newDirectory(t, dir)
		ref := Ref{Kind: attributes.Pod, Namespace: "default", Name: "p"}
		d.Subscribe(ref, "v", false, func() {})
		content, err := d.Get(ref)
		if err != nil || content.UID != "" || string(content.Data["metadata.labels['app']"]) != "web" ||
			string(content.Data["metadata.namespace"]) != "default" {
			t.Errorf("%+v, error %v", content, err)
		}
		replaceFile(t, file, strings.ReplaceAll(fmt.Sprintf(pod, ""), "web", "db"))
		testkit.Eventually(t, soon, "the new label", func() bool {
			now, err := d.Get(ref)
			return err == nil && string(now.Data["metadata.labels['app']"]) == "db" && !now.SameVersion(content)
		})
	})
	t.Run("no node", func(t *testing.T) {
		_, err := newDirectory(t, t.TempDir()).Allocatable(t.Context())
		if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "add the Node's manifest to ") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("an unknown field", func(t *testing.T) {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "a.yaml"), strings.ReplaceAll(fmt.Sprintf(pod, ""), "secretName", "secretNam"))
		if d, err := NewDirectory(dir); err == nil ||
			!strings.Contains(err.Error(), `unknown field "spec.volumes[0].secret.secretNam"`) {
			if err == nil {
				d.Close()
			}
			t.Errorf("error %v", err)
		}
	})
}

// TestPanicInManifest makes the decoder panic for one manifest. It captures klog, so it is not parallel.
func TestPanicInManifest(t *testing.T) {
	log := testkit.LogOf(t, 0)
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(corev1.SchemeGroupVersion, &corev1.Secret{})
	scheme.AddKnownTypeWithName(corev1.SchemeGroupVersion.WithKind("ConfigMap"), &panickingObject{})
	d := &Directory{path: t.TempDir(), scheme: scheme, registry: newRegistry(0)}
	writeFile(t, filepath.Join(d.path, "bad.yaml"), manifestOf(attributes.ConfigMap, "bad", "confidential"))
	writeFile(t, filepath.Join(d.path, "good.yaml"), manifestOf(attributes.Secret, "good", "1"))
	const want = "manifest bad.yaml: reading the object panicked with a string"
	if err := d.read(); err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	ref := Ref{Kind: attributes.Secret, Namespace: "default", Name: "good"}
	if content, err := d.Read(t.Context(), ref); err != nil || string(content.Data["key"]) != "1" {
		t.Errorf("the other manifest: %v, %v", content, err)
	}
	line := `"The driver has a bug" err="reading the object panicked with a string" file=`
	if text := log.Text(); strings.Contains(text, "confidential") || !strings.Contains(text, line) {
		t.Errorf("want a line with the type of the panic, and never what was read:\n%s", text)
	}
}

// panickingObject panics with the data that it decodes.
type panickingObject struct{ corev1.ConfigMap }

func (*panickingObject) UnmarshalJSON(data []byte) error { panic(string(data)) }
