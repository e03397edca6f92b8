// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"strings"
)

// Object is a Kubernetes object in a document, on its own or in a List.
type Object struct {
	Node  *Node
	Field string // where it is in its document: "" or items[2]
	// kind is that of a list's objects, which need not say theirs in a PodList.
	kind string
}

// Kind of the object; "" if it has none.
func (o Object) Kind() string {
	if kind := o.Node.Get("kind"); kind.Exists() {
		return kind.String()
	}
	return o.kind
}

// Name is how people call the object: Deployment/web, or Deployment/default/web if it says its namespace.
func (o Object) Name() string {
	name := o.Node.Get("metadata", "name").Text()
	if name == "" {
		name = o.Node.Get("metadata", "generateName").Text() + "*"
	}
	if namespace := o.Node.Get("metadata", "namespace").Text(); namespace != "" {
		name = namespace + "/" + name
	}
	return o.Kind() + "/" + name
}

// Path puts a field of the object into the words of its document.
func (o Object) Path(field string) string {
	return strings.TrimPrefix(o.Field+"."+field, ".")
}

// Pod is a pod or the template of one.
type Pod struct {
	Object Object
	// Field of the pod in the object: "" for a pod, spec.template for a Deployment.
	Field string
	// Node has the pod's metadata and spec.
	Node *Node
}

// Path puts a field of the pod into the words of its document.
func (p Pod) Path(field string) string {
	return p.Object.Path(strings.TrimPrefix(p.Field+"."+field, "."))
}

// Spec is the pod's spec.
func (p Pod) Spec() *Node { return p.Node.Get("spec") }

// maxListDepth is how far Lists may be in Lists.
const maxListDepth = 8

// Objects returns the objects of a document in their order, those in Lists among them.
func (d *Document) Objects() []Object {
	var objects []Object
	var walk func(o Object, depth int)
	walk = func(o Object, depth int) {
		if !o.Node.IsMapping() || o.Kind() == "" {
			return
		}
		kind, isList := strings.CutSuffix(o.Kind(), "List")
		if items := o.Node.Get("items"); isList && items.IsList() && depth < maxListDepth {
			for i, item := range items.Items() {
				walk(Object{Node: item, Field: o.Path(fmt.Sprintf("items[%d]", i)), kind: kind}, depth+1)
			}
			return
		}
		objects = append(objects, o)
	}
	walk(Object{Node: d.Root}, 0)
	return objects
}

// Pods returns the object's pod, or its pod templates. In kinds that the package does not know, a template is
// recognised by its containers, at any depth below a key "template" or "podTemplate".
func (o Object) Pods() (pods []Pod) {
	if o.Kind() == "Pod" {
		if o.Node.Get("spec").IsMapping() {
			pods = append(pods, Pod{Object: o, Node: o.Node})
		}
		return pods
	}
	o.Node.Walk(func(path string, n *Node) bool {
		switch path[strings.LastIndexByte(path, '.')+1:] {
		case "template", "podTemplate":
			if n.Get("spec", "containers").IsList() {
				pods = append(pods, Pod{Object: o, Field: path, Node: n})
				return false
			}
		}
		return true
	})
	return pods
}

// Mount is an entry of a container's volumeMounts.
type Mount struct {
	Field     string // in the pod: spec.containers[0].volumeMounts[1]
	Container string // its name
	Volume    *Node  // the name of the volume
	Node      *Node
}

// Mounts returns the mounts of the init, main and ephemeral containers.
func (p Pod) Mounts() (all []Mount) {
	for _, list := range []string{"initContainers", "containers", "ephemeralContainers"} {
		for i, c := range p.Spec().Get(list).Items() {
			for j, mount := range c.Get("volumeMounts").Items() {
				all = append(all, Mount{
					Field: fmt.Sprintf("spec.%s[%d].volumeMounts[%d]", list, i,
						j), Container: c.Get("name").String(), Volume: mount.Get("name"), Node: mount,
				})
			}
		}
	}
	return all
}

// IsWindows reports whether the pod says that it is for Windows.
func (p Pod) IsWindows() bool {
	return p.Spec().Get("os", "name").String() == "windows" || p.Spec().Get("nodeSelector",
		"kubernetes.io/os").String() == "windows"
}

// IsKnative reports whether the pod template belongs to Knative Serving.
func (p Pod) IsKnative() bool {
	return strings.HasPrefix(p.Object.Node.Get("apiVersion").String(), "serving.knative.dev/")
}
