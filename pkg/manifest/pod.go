// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"fmt"
	"path"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Container is a container of a pod.
type Container struct {
	Field  string // in the pod: spec.containers[0]
	Node   Node
	Mounts []Mount
}

// Mount is a volume mounted in a container.
type Mount struct {
	Field  string // in the pod: spec.containers[0].volumeMounts[1]
	Node   Node
	Volume string
	Path   string // in the container, cleaned
}

// Containers returns the init, main and ephemeral containers, in the order in which kubelet visits them.
func (p Pod) Containers() []Container {
	var all []Container
	for _, list := range []string{"initContainers", "containers", "ephemeralContainers"} {
		for i, node := range p.Spec().Get(list).Items() {
			c := Container{Field: fmt.Sprintf("spec.%s[%d]", list, i), Node: node}
			for j, mount := range node.Get("volumeMounts").Items() {
				c.Mounts = append(c.Mounts, Mount{
					Field: fmt.Sprintf("%s.volumeMounts[%d]", c.Field, j), Node: mount,
					Volume: mount.Get("name").Text(), Path: path.Clean("/" + mount.Get("mountPath").String()),
				})
			}
			all = append(all, c)
		}
	}
	return all
}

// Mounts reports whether some container mounts the volume of this name.
func (p Pod) Mounts(volume string) bool {
	for _, c := range p.Containers() {
		for _, m := range c.Mounts {
			if m.Volume == volume {
				return true
			}
		}
	}
	return false
}

// Windows reports whether the pod says that it is for Windows.
func (p Pod) Windows() bool {
	return p.Spec().Get("os", "name").String() == "windows" || p.Spec().Get("nodeSelector", "kubernetes.io/os").String() == "windows"
}

// Sets reports whether the pod has an init or main container of this name, and whether that asks for some of a resource, such as limits.cpu.
func (p Pod) Sets(container, of string) (known, sets bool) {
	kind, name, _ := strings.Cut(of, ".")
	for _, list := range []string{"initContainers", "containers"} {
		for _, c := range p.Spec().Get(list).Items() {
			if c.Get("name").String() != container {
				continue
			}
			value := c.Get("resources", kind, name)
			quantity, err := resource.ParseQuantity(value.Text())
			return true, value.Scalar() != nil && (err != nil || !quantity.IsZero())
		}
	}
	return false, false
}

// Nested is a mount beneath a mount of another volume, in the same container.
type Nested struct {
	Mount
	Relative string // where, from the root of the outer volume
}

// SuppliedBy reports whether a volume with files at these paths has something there to mount on.
func (n Nested) SuppliedBy(files []string) bool {
	for _, file := range files {
		if file == n.Relative || strings.HasPrefix(file, n.Relative+"/") {
			return true
		}
	}
	return false
}

// MountedBeneath returns the mounts of other volumes that lie within a mount of the volume of this name. A subPath mount of the volume
// does not count, since its root is not the volume's.
func (p Pod) MountedBeneath(volume string) []Nested {
	var all []Nested
	for _, c := range p.Containers() {
		for _, outer := range c.Mounts {
			if outer.Volume != volume || outer.Node.Get("subPath").String()+outer.Node.Get("subPathExpr").String() != "" {
				continue
			}
			for _, inner := range c.Mounts {
				if relative, beneath := strings.CutPrefix(inner.Path, strings.TrimSuffix(outer.Path, "/")+"/"); beneath && inner.Path != outer.Path {
					all = append(all, Nested{Mount: inner, Relative: relative})
				}
			}
		}
	}
	return all
}

// RunAs is of the pod's spec what says who its containers run as, and nothing else: each container is there with its runAsUser.
func (p Pod) RunAs() *corev1.PodSpec {
	spec := &corev1.PodSpec{}
	if user := runAsUser(p.Spec()); user != nil {
		spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: user}
	}
	for _, c := range p.Containers() {
		context := &corev1.SecurityContext{RunAsUser: runAsUser(c.Node)}
		// For the rule an init container is like any other, but an ephemeral one does not count.
		if strings.HasPrefix(c.Field, "spec.ephemeralContainers[") {
			spec.EphemeralContainers = append(spec.EphemeralContainers,
				corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{SecurityContext: context}})
		} else {
			spec.Containers = append(spec.Containers, corev1.Container{SecurityContext: context})
		}
	}
	return spec
}

func runAsUser(n Node) *int64 {
	if user, ok := n.Get("securityContext", "runAsUser").Scalar().(int); ok {
		value := int64(user)
		return &value
	}
	return nil
}

// Anchored reports whether a value is used in other places too, or might be: it has an anchor or is in something that has one, or it
// is reached by an alias.
func (d *Document) Anchored(n Node) bool {
	if !d.anchors {
		return false
	}
	plain := false
	var walk func(node *yaml.Node) bool
	walk = func(node *yaml.Node) bool {
		if node.Anchor != "" || node.Kind == yaml.AliasNode {
			return false
		}
		if node == n.node {
			plain = true
			return true
		}
		for _, child := range node.Content {
			if walk(child) {
				return true
			}
		}
		return false
	}
	if d.Root.node != nil {
		walk(d.Root.node)
	}
	return !plain
}
