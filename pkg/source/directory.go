// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/klog/v2"
	"sigs.k8s.io/yaml"
)

// Directory reads Secrets and ConfigMaps from the manifests in a directory, and reads them again when a file changes. It
// stands in for an API server in the demo and where there is no cluster. Safe for concurrent use.
type Directory struct {
	path string
	registry
	watcher *fsnotify.Watcher
	running sync.WaitGroup

	mu sync.Mutex
	// files are the objects by file name: a file that can't be read keeps what it gave before.
	files map[string]map[Ref]Content
	// versions counts up with each change, and is what resource versions are made of.
	versions int
}

// NewDirectory reads the manifests (*.yaml, *.yml, *.json) in the directory at path and watches it until Close. Manifests
// that can't be parsed are an error now, and later a line in the log.
func NewDirectory(path string) (*Directory, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch directory of manifests: %w", err)
	}
	d := &Directory{path: path, registry: newRegistry(0), watcher: watcher, files: map[string]map[Ref]Content{}}
	d.keep = d.show
	// Watch first, read then: a change in between is read twice rather than missed.
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

// show tells an object what the manifests say; from then on read does.
func (d *Directory) show(o *object) (stop func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tell(o)
	return func() {}
}

// settleTime is for how long nothing may happen in the directory before it is read: who writes a file in place empties it first.
const settleTime = 20 * time.Millisecond

func (d *Directory) run() {
	settled := time.NewTimer(settleTime)
	settled.Stop() // until something happens
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
			klog.ErrorS(err, "Watch of the directory of manifests", "directory", d.path)
			settled.Reset(settleTime) // events may have been lost
		case <-settled.C:
			if err := d.read(); err != nil {
				klog.ErrorS(err, "Manifests can't be read; what they gave before stays", "directory", d.path)
			}
		}
	}
}

// movedIn reports whether a file appeared with content: it was written elsewhere and renamed, and is whole.
func movedIn(event fsnotify.Event) bool {
	if !event.Has(fsnotify.Create) {
		return false
	}
	st, err := os.Stat(event.Name)
	return err == nil && st.Size() > 0
}

// read reads all manifests and tells the watched objects what came of it.
func (d *Directory) read() error {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return fmt.Errorf("list manifests: %w", err)
	}
	var failed []error
	present := map[string]map[Ref]Content{}
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".yaml", ".yml", ".json":
		default:
			continue
		}
		objects, err := parseFile(filepath.Join(d.path, e.Name()))
		if err != nil {
			failed = append(failed, fmt.Errorf("manifest %s: %w", e.Name(), err))
		}
		present[e.Name()] = objects // nil if it failed
	}

	// The registry's lock first, as in Watch.
	d.registry.mu.Lock()
	defer d.registry.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.all()
	for name, objects := range present {
		if objects == nil {
			present[name] = d.files[name]
		}
	}
	for _, objects := range present {
		for ref, content := range objects {
			if old, ok := before[ref]; ok && maps.EqualFunc(old.Data, content.Data, bytes.Equal) {
				objects[ref] = old
				continue
			}
			d.versions++
			content.ResourceVersion = strconv.Itoa(d.versions)
			objects[ref] = content
		}
	}
	d.files = present
	for _, o := range d.objects {
		d.tell(o)
	}
	return errors.Join(failed...)
}

// all are the objects of all files; of two with one name that of the file that sorts last. d.mu is held.
func (d *Directory) all() map[Ref]Content {
	all := map[Ref]Content{}
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		maps.Copy(all, d.files[name])
	}
	return all
}

// tell sets the state of one watched object. d.mu is held.
func (d *Directory) tell(o *object) {
	ref := o.ref
	ref.Newest = false // all that is read is
	if content, ok := d.all()[ref]; ok {
		o.found(content)
	} else {
		o.missing()
	}
}

// parseFile returns the Secrets and ConfigMaps of a file of YAML or JSON documents. Other kinds are passed over.
func parseFile(path string) (map[Ref]Content, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	objects := map[Ref]Content{}
	documents := yamlutil.NewYAMLReader(bufio.NewReader(f))
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		ref, content, ok, err := parseDocument(document)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if ok {
			objects[ref] = content
		}
	}
}

func parseDocument(document []byte) (ref Ref, content Content, ok bool, err error) {
	var head metav1.TypeMeta
	if err := yaml.Unmarshal(document, &head); err != nil {
		return Ref{}, Content{}, false, err
	}
	var obj interface {
		GetNamespace() string
		GetName() string
	}
	switch {
	case head.APIVersion == "v1" && head.Kind == string(Secret):
		secret := &corev1.Secret{}
		err = yaml.UnmarshalStrict(document, secret)
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		for key, value := range secret.StringData {
			secret.Data[key] = []byte(value)
		}
		obj = secret
	case head.APIVersion == "v1" && head.Kind == string(ConfigMap):
		configMap := &corev1.ConfigMap{}
		err = yaml.UnmarshalStrict(document, configMap)
		obj = configMap
	default:
		return Ref{}, Content{}, false, nil
	}
	if err != nil {
		return Ref{}, Content{}, false, fmt.Errorf("%s: %w", head.Kind, err)
	}
	ref = Ref{Kind: Kind(head.Kind), Namespace: obj.GetNamespace(), Name: obj.GetName()}
	if ref.Name == "" {
		return Ref{}, Content{}, false, fmt.Errorf("%s: metadata.name must be set", head.Kind)
	}
	if ref.Namespace == "" {
		ref.Namespace = metav1.NamespaceDefault
	}
	content, _ = contentOf(ref.Kind, obj)
	return ref, content, true, nil
}
