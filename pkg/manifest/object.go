// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Object is a Kubernetes object in a document, which may be a member of a List.
type Object struct {
	Node  *Node
	Field string // its path in the document: "" or items[2]
	// kind is the kind of the objects of a list, which need not have a kind themselves in a PodList.
	kind string
}

// Kind returns the kind of the object, or "" if it has none.
func (o Object) Kind() string {
	if kind := o.Node.Get("kind"); kind.Kind != Absent {
		return kind.String()
	}
	return o.kind
}

// Name returns the usual name of the object: Deployment/web, or Deployment/default/web if it has a namespace. It is ""
// if there is no object.
func (o Object) Name() string {
	if o.Node.Kind == Absent {
		return ""
	}
	name := o.Node.Get("metadata", "name").Text
	if name == "" {
		name = o.Node.Get("metadata", "generateName").Text + "*"
	}
	if namespace := o.Node.Get("metadata", "namespace").Text; namespace != "" {
		name = namespace + "/" + name
	}
	return o.Kind() + "/" + name
}

// Path returns the path of a field in the document.
func (o Object) Path(field string) string {
	return below(o.Field, field)
}

// Pod is a pod or a pod template.
type Pod struct {
	Object Object
	// Field is the path of the pod in the object: "" for a pod, spec.template for a Deployment.
	Field string
	// Node has the pod's metadata and spec.
	Node *Node
	// Spec is the spec as the API server reads it, without the values that the API server refuses.
	Spec corev1.PodSpec
	// Wrong are the refused values, with their paths in the spec.
	Wrong []Mismatch
}

func newPod(o Object, path string, n *Node) Pod {
	p := Pod{Object: o, Field: path, Node: n}
	p.Wrong = n.Get("spec").Decode(&p.Spec)
	return p
}

// Path returns the path of a field of the pod in the document.
func (p Pod) Path(field string) string { return p.Object.Path(below(p.Field, field)) }

// Volumes returns the list of the pod's volumes.
func (p Pod) Volumes() *Node { return p.Node.Get("spec", "volumes") }

// maxListDepth is the deepest nesting of Lists.
const maxListDepth = 8

// Objects returns the objects of a document in their order, with the members of Lists.
func (d *Document) Objects() []Object {
	var objects []Object
	var walk func(o Object, depth int)
	walk = func(o Object, depth int) {
		if o.Node.Kind != Mapping || o.Kind() == "" {
			return
		}
		kind, isList := strings.CutSuffix(o.Kind(), "List")
		if items := o.Node.Get("items"); isList && items.Kind == List && depth < maxListDepth {
			for i, item := range items.Items {
				walk(Object{Node: item, Field: o.Path(fmt.Sprintf("items[%d]", i)), kind: kind}, depth+1)
			}
			return
		}
		objects = append(objects, o)
	}
	walk(Object{Node: d.Root}, 0)
	return objects
}

// Pods returns the object's pod, or its pod templates. In an unknown kind, a template is a value with containers, at
// any depth below a key "template" or "podTemplate".
func (o Object) Pods() (pods []Pod) {
	if o.Kind() == "Pod" {
		if o.Node.Get("spec").Kind == Mapping {
			pods = append(pods, newPod(o, "", o.Node))
		}
		return pods
	}
	o.Node.Walk(func(path string, n *Node) bool {
		switch path[strings.LastIndexByte(path, '.')+1:] {
		case "template", "podTemplate":
			if n.Get("spec", "containers").Kind == List {
				pods = append(pods, newPod(o, path, n))
				return false
			}
		}
		return true
	})
	return pods
}

// Elsewhere visits the values of a document that are no volume of a pod, such as those of a patch. o is the object of
// the value, if there is one.
func (d *Document) Elsewhere(visit func(o Object, path string, n *Node)) {
	objects, volumes := d.Objects(), map[*Node]bool{}
	for _, o := range objects {
		for _, pod := range o.Pods() {
			for _, v := range pod.Volumes().Items {
				volumes[v] = true
			}
		}
	}
	d.Root.Walk(func(path string, n *Node) bool {
		within := Object{Node: &Node{}}
		for _, o := range objects {
			if o.Field == "" || strings.HasPrefix(path, o.Field+".") {
				within = o
			}
		}
		if !volumes[n] {
			visit(within, path, n)
		}
		return !volumes[n]
	})
}

// Mount is an entry of a container's volumeMounts.
type Mount struct {
	Container string // the path of the container in the pod: spec.containers[0]
	Field     string // the path of the mount in the pod: spec.containers[0].volumeMounts[1]
	Node      *Node
}

// Mounts returns the mounts of the init, main and ephemeral containers.
func (p Pod) Mounts() (all []Mount) {
	for _, list := range []string{"initContainers", "containers", "ephemeralContainers"} {
		for i, c := range p.Node.Get("spec", list).Items {
			for j, mount := range c.Get("volumeMounts").Items {
				container := fmt.Sprintf("spec.%s[%d]", list, i)
				all = append(all, Mount{container, fmt.Sprintf("%s.volumeMounts[%d]", container, j), mount})
			}
		}
	}
	return all
}

// IsWindows reports whether the pod requires Windows.
func (p Pod) IsWindows() bool {
	return p.Spec.OS != nil && p.Spec.OS.Name == corev1.Windows ||
		p.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows)
}

// IsKnative reports whether the pod template belongs to Knative Serving.
func (p Pod) IsKnative() bool {
	return strings.HasPrefix(p.Object.Node.Get("apiVersion").String(), "serving.knative.dev/")
}
