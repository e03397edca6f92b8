// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxSources bounds what one volume has watched.
const maxSources = 64

// sourceKinds are the entries of projected.sources in the Kubernetes API that this driver projects, by the name of their field.
func sourceKinds() map[string]Kind {
	return map[string]Kind{"secret": Secret, "configMap": ConfigMap, "downwardAPI": Pod}
}

// parseSources reads the attribute sources, a list in YAML or JSON shaped like projected.sources, strictly. Sources that could not be
// read stay in their place, empty.
func parseSources(path *field.Path, text string) ([]Source, field.ErrorList) {
	decoded, errs := list{
		rule: "must be a YAML or JSON list shaped like projected.sources", example: "[{secret: {name: a}}]",
		empty: "list the objects to project",
	}.decode(path, text)
	switch {
	case len(errs) > 0:
		return nil, errs
	case len(decoded) == 0:
		return nil, field.ErrorList{field.Required(path, "list the objects to project, as in [{secret: {name: a}}, {configMap: {name: b}}]")}
	}
	return readEach(path, decoded, maxSources, parseSource)
}

// parseSource reads one decoded entry.
func parseSource(path *field.Path, decoded any) (Source, field.ErrorList) {
	m, errs := readMapping(path, decoded, "{secret: {name: a}}")
	if m == nil {
		return Source{}, errs
	}
	var source Source
	var given []string
	for _, name := range []string{"configMap", "downwardAPI", "secret"} {
		if !m.has(name) {
			continue
		}
		given = append(given, name)
		if name == "downwardAPI" {
			source = m.downwardAPI()
		} else {
			source = m.object(name)
		}
	}
	for _, name := range []string{"clusterTrustBundle", "podCertificate", "serviceAccountToken"} {
		if m.has(name) {
			given = append(given, name)
			errs = append(errs, field.Forbidden(path.Child(name), "stays with Kubernetes: put it in a projected volume of its own, "+
				"beside this one; its file belongs to the pod's runAsUser already"))
		}
	}
	m.only("configMap", "downwardAPI", "secret", "clusterTrustBundle", "podCertificate", "serviceAccountToken")
	errs = append(errs, m.errs...)
	if len(given) != 1 && len(m.errs) == 0 {
		errs = append(errs, field.Invalid(path, strings.Join(given, ", "), "must have exactly one of secret, configMap and downwardAPI: give each its own entry"))
	}
	return source, errs
}

// object reads a secret or configMap of an entry.
func (m *mapping) object(name string) Source {
	source := Source{Object: Object{Kind: sourceKinds()[name]}}
	child := m.child(name, "{name: a}")
	if child == nil {
		return source
	}
	source.Object.Name = child.text("name")
	source.Optional = child.truth("optional")
	var errs field.ErrorList
	source.Items, errs = readItems(child.path.Child("items"), child.list("items"), parseItem)
	child.only("name", "items", "optional")
	m.errs = append(append(m.errs, child.errs...), errs...)
	return source
}

// downwardAPI reads the downwardAPI of an entry.
func (m *mapping) downwardAPI() Source {
	source := Source{Object: Object{Kind: Pod}}
	child := m.child("downwardAPI", "{items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}")
	if child == nil {
		return source
	}
	var errs field.ErrorList
	source.Items, errs = readItems(child.path.Child("items"), child.list("items"), parseFieldItem)
	child.only("items")
	m.errs = append(append(m.errs, child.errs...), errs...)
	return source
}

// parseFieldItem reads one decoded item of the downward API.
func parseFieldItem(path *field.Path, decoded any) (Item, field.ErrorList) {
	m, errs := readMapping(path, decoded, "{path: labels, fieldRef: {fieldPath: metadata.labels}}")
	if m == nil {
		return Item{}, errs
	}
	item := Item{Path: m.text("path")}
	item.readOwner(m)
	if ref := m.child("fieldRef", "{fieldPath: metadata.labels}"); ref != nil {
		item.Key = ref.text("fieldPath")
		if version := ref.text("apiVersion"); version != "" && version != "v1" {
			ref.errs = append(ref.errs, field.NotSupported(ref.path.Child("apiVersion"), short(version), []string{"v1"}))
		}
		switch {
		case isResource(item.Key):
			ref.errs = append(ref.errs, field.Invalid(ref.path.Child("fieldPath"), short(item.Key), "is a resource: use resourceFieldRef"))
			item.Key = ""
		case item.Key == "" && len(ref.errs) == 0:
			ref.errs = append(ref.errs, field.Required(ref.path.Child("fieldPath"), "name the pod's field, such as metadata.labels"))
		}
		ref.only("apiVersion", "fieldPath")
		m.errs = append(m.errs, ref.errs...)
	}
	if ref := m.child("resourceFieldRef", "{containerName: app, resource: limits.cpu}"); ref != nil {
		item.Key, item.Container, item.Divisor = ref.text("resource"), ref.text("containerName"), ref.quantity("divisor")
		if item.Key != "" && !isResource(item.Key) {
			ref.errs = append(ref.errs, field.Invalid(ref.path.Child("resource"), short(item.Key), resourceRule))
			item.Key = ""
		} else if item.Key == "" && len(ref.errs) == 0 {
			ref.errs = append(ref.errs, field.Required(ref.path.Child("resource"), resourceRule))
		}
		ref.only("containerName", "resource", "divisor")
		m.errs = append(m.errs, ref.errs...)
	}
	if m.has("fieldRef") && m.has("resourceFieldRef") {
		m.errs = append(m.errs, field.Required(path, fieldRule))
	}
	m.only("path", "fieldRef", "resourceFieldRef", "mode", "uid", "gid")
	return item, m.errs
}

// quantity reads a field that is a quantity of the Kubernetes API: a string, or a plain number.
func (m *mapping) quantity(name string) string {
	if value, absent, ok := integer(m.fields[name]); ok && !absent {
		return fmt.Sprint(value)
	}
	return m.text(name)
}

// sourceField is what the entry of a kind is called in sources.
func sourceField(kind Kind) string {
	for name, k := range sourceKinds() {
		if k == kind {
			return name
		}
	}
	return ""
}

// places returns where the parts of each source stand: alone, or in the list.
func places(sources []Source, listed bool) []place {
	var all []place
	for i, source := range sources {
		if !listed {
			p := place{items: attribute("items"), item: "items"}
			switch source.Object.Kind {
			case Secret:
				p.name = attribute("secretName")
			case ConfigMap:
				p.name = attribute("configMapName")
			default:
				p.name = root()
			}
			all = append(all, p)
			continue
		}
		entry := attribute("sources").Index(i)
		all = append(all, place{
			entry: entry,
			name:  entry.Child(sourceField(source.Object.Kind), "name"),
			items: entry.Child(sourceField(source.Object.Kind), "items"),
			item:  fmt.Sprintf("sources[%d].%s.items", i, sourceField(source.Object.Kind)),
		})
	}
	return all
}

// place is where the parts of a source stand in the attributes, for messages.
type place struct {
	entry *field.Path // nil if the source is not in a list
	name  *field.Path // of the object
	items *field.Path
	item  string // items as people would write it
}

// conflictsBetween returns, by source and item, what is wrong with paths that clash.
func conflictsBetween(sources []Source, places []place) [][]string {
	var files []namedPath
	for i, source := range sources {
		for j, item := range source.Items {
			files = append(files, namedPath{path: item.Path, name: fmt.Sprintf("%s[%d]", places[i].item, j)})
		}
	}
	conflicts, next := pathConflicts(files), 0
	var all [][]string
	for _, source := range sources {
		all = append(all, slices.Clone(conflicts[next:next+len(source.Items)]))
		next += len(source.Items)
	}
	return all
}
