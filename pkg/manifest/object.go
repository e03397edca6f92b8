// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"strings"
)

// Object is a Kubernetes object in a document, on its own or in a List.
type Object struct {
	Node  Node
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
	Node Node
}

// Path puts a field of the pod into the words of its document.
func (p Pod) Path(field string) string {
	return p.Object.Path(strings.TrimPrefix(p.Field+"."+field, "."))
}

// Spec is the pod's spec.
func (p Pod) Spec() Node { return p.Node.Get("spec") }

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

// Pods returns the object's pod, or its pod templates. Kinds that it does not know count too: a template is recognised by its containers, below
// a key "template" or "podTemplate" wherever that is.
func (o Object) Pods() (pods []Pod) {
	if o.Kind() == "Pod" {
		if o.Node.Get("spec").IsMapping() {
			pods = append(pods, Pod{Object: o, Node: o.Node})
		}
		return pods
	}
	o.Node.Walk(func(path string, n Node) bool {
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
