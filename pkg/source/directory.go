// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// Directory reads Secrets, ConfigMaps, Pods and a Node from the manifests in a directory, and reads them again after a
// file changes. It replaces the API server in the demo and in tests without a cluster. It is safe for concurrent use.
type Directory struct {
	path    string
	scheme  *runtime.Scheme
	watcher *fsnotify.Watcher
	running sync.WaitGroup
	registry

	// files has the objects by file name. The registry's lock guards it.
	files map[string]manifests
}

// manifests are the objects of one file or of all files.
type manifests map[Ref]manifest

type manifest struct {
	object  runtime.Object
	content Content
}

// NewDirectory reads the manifests (*.yaml, *.yml, *.json) in the directory at path and watches the directory until
// Close. A manifest that cannot be parsed is an error of NewDirectory. Later, such a manifest is logged.
func NewDirectory(path string) (*Directory, error) {
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(corev1.SchemeGroupVersion,
		&corev1.Secret{}, &corev1.ConfigMap{}, &corev1.Pod{}, &corev1.Node{})
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch directory of manifests: %w", err)
	}
	d := &Directory{path: path, scheme: scheme, watcher: watcher, registry: newRegistry(0)}
	d.start = func(o *object) (stop func()) {
		d.show(o, d.all())
		return func() {}
	}
	// The watch begins before the first read, so that a change in between is read twice rather than missed.
	if err := watcher.Add(path); err != nil {
		return nil, errors.Join(fmt.Errorf("watch directory of manifests %s: %w", path, err), watcher.Close())
	}
	if err := d.read(); err != nil {
		return nil, errors.Join(err, watcher.Close())
	}
	d.running.Go(d.run)
	return d, nil
}

// Close ends the watch and waits for its goroutine.
func (d *Directory) Close() {
	d.watcher.Close()
	d.running.Wait()
}

// Pod returns the pod of a manifest. The error is ErrNotFound if the manifest has another uid; most manifests have no
// uid. The error is an *Error.
func (d *Directory) Pod(_ context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	ref := Ref{Kind: attributes.Pod, Namespace: namespace, Name: name}
	pod, ok := d.manifest(ref).(*corev1.Pod)
	if !ok {
		return nil, &Error{Ref: ref, Reason: ErrNotFound, Detail: "add the Pod's manifest to " + d.path}
	}
	if pod.UID != "" && string(pod.UID) != uid {
		return nil, anotherPod(ref)
	}
	return pod, nil
}

// Read returns the content of an object that has a manifest. The error is an *Error.
func (d *Directory) Read(_ context.Context, ref Ref) (Content, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m, ok := d.all()[ref]
	if !ok {
		return Content{}, &Error{Ref: ref, Reason: ErrNotFound}
	}
	return m.content, nil
}

// Allocatable returns status.allocatable of the Node's manifest. The error is an *Error.
func (d *Directory) Allocatable(context.Context) (corev1.ResourceList, error) {
	n, ok := d.manifest(Ref{Kind: node}).(*corev1.Node)
	if !ok {
		return nil, &Error{Ref: Ref{Kind: node}, Reason: ErrNotFound, Detail: "add the Node's manifest to " + d.path}
	}
	return n.Status.Allocatable, nil
}

// manifest returns the object of ref, or nil.
func (d *Directory) manifest(ref Ref) runtime.Object {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all()[ref].object
}

// settleTime is the time without changes after which the directory is read: a program that writes a file in place
// empties the file first.
const settleTime = 20 * time.Millisecond

func (d *Directory) run() {
	settled := time.NewTimer(settleTime)
	settled.Stop() // The first change starts the timer.
	for {
		select {
		case event, ok := <-d.watcher.Events:
			if !ok {
				return
			}
			if movedIn(event) {
				settled.Reset(0)
			} else {
				settled.Reset(settleTime)
			}
		case err, ok := <-d.watcher.Errors:
			if !ok {
				return
			}
			klog.ErrorS(err, "Watch of the directory of manifests failed", "directory", d.path)
			settled.Reset(settleTime) // Events may have been lost.
		case <-settled.C:
			if err := d.read(); err != nil {
				klog.ErrorS(err, "Manifests can't be read; their earlier objects stay", "directory", d.path)
			}
		}
	}
}

// movedIn reports whether a file appeared with its content: a rename moved the complete file here.
func movedIn(event fsnotify.Event) bool {
	if !event.Has(fsnotify.Create) {
		return false
	}
	st, err := os.Stat(event.Name)
	return err == nil && st.Size() > 0
}

// read reads all manifests and updates the objects that have subscribers.
func (d *Directory) read() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("list manifests: %w", err)
	}
	files := map[string]manifests{}
	var failed []error
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".yaml", ".yml", ".json":
		default:
			continue
		}
		objects, err := d.parseFile(filepath.Join(d.path, e.Name()))
		if err != nil {
			failed = append(failed, fmt.Errorf("manifest %s: %w", e.Name(), err))
		}
		files[e.Name()] = objects // objects is nil if parsing failed. Then the earlier objects stay.
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, objects := range files {
		if objects == nil {
			files[name] = d.files[name]
		}
	}
	d.files = files
	all := d.all()
	for _, o := range d.objects {
		d.show(o, all)
	}
	return errors.Join(failed...)
}

// all returns the objects of all files. If two files have the same object, the object of the file whose name sorts last
// counts. The caller holds the lock.
func (d *Directory) all() manifests {
	all := manifests{}
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		maps.Copy(all, d.files[name])
	}
	return all
}

// show sets the state of an object that has subscribers. The caller holds the lock.
func (d *Directory) show(o *object, all manifests) {
	e := event{kind: missing}
	if m, ok := all[o.ref]; ok {
		e = event{kind: found, content: m.content}
	}
	d.apply(o, e)
}

// parseFile returns the objects of a file of YAML or JSON documents. It ignores other kinds. A panic in reading one
// file does not end the driver.
func (d *Directory) parseFile(path string) (_ manifests, err error) {
	defer recovered(&err, "file", path)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	objects := manifests{}
	documents := yaml.NewYAMLReader(bufio.NewReader(f))
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err == nil {
			err = d.parseDocument(document, objects)
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
	}
}

// parseDocument adds the object of a document to objects.
func (d *Directory) parseDocument(document []byte, objects manifests) error {
	serializer := json.NewSerializerWithOptions(json.DefaultMetaFactory, d.scheme, d.scheme, json.SerializerOptions{
		Yaml: !yaml.IsJSONBuffer(document), Strict: true,
	})
	decoded, gvk, err := serializer.Decode(document, nil, nil)
	switch {
	case runtime.IsMissingKind(err), runtime.IsMissingVersion(err), runtime.IsNotRegisteredError(err):
		return nil
	case err != nil && gvk != nil:
		return fmt.Errorf("%s: %w", gvk.Kind, err)
	case err != nil:
		return err
	}
	ref := Ref{Kind: attributes.Kind(gvk.Kind)}
	if ref.Kind != node { // The Node is the only one, so its name does not matter.
		object := decoded.(metav1.Object)
		if object.GetName() == "" {
			return fmt.Errorf("%s: metadata.name must be set", gvk.Kind)
		}
		object.SetNamespace(cmp.Or(object.GetNamespace(), metav1.NamespaceDefault))
		ref.Namespace, ref.Name = object.GetNamespace(), object.GetName()
	}
	if secret, ok := decoded.(*corev1.Secret); ok {
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		maps.Copy(secret.Data, bytesOf(secret.StringData))
	}
	content, _ := contentOf(ref.Kind, decoded)
	content.ResourceVersion = digest(content.Data)
	objects[ref] = manifest{decoded, content}
	return nil
}
