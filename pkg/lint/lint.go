// SPDX-License-Identifier: Apache-2.0

// Package lint finds problems in manifests that would prevent a pod with volumes of this driver from starting, or from
// reading its files. It does not ask a cluster. Each problem has its place, the rule and the remedy.
//
// The rules for attributes are those of pkg/attributes, which the driver itself applies. This package adds the rules
// that concern the whole pod, or the way in which values are written.
package lint

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// Severity is the severity of a problem.
type Severity string

const (
	// Error is a value that the API server or the driver refuses, or that can't work.
	Error Severity = "error"
	// Warning is a value that works, but is probably a mistake.
	Warning Severity = "warning"
)

// Problem is one problem in a manifest.
type Problem struct {
	File     string   `json:"file"`
	Line     int      `json:"line"`   // from 1
	Column   int      `json:"column"` // in characters, from 1
	Severity Severity `json:"severity"`
	Object   string   `json:"object,omitempty"` // such as Deployment/web
	Field    string   `json:"field,omitempty"`  // such as spec.template.spec.volumes[0].csi.readOnly
	Message  string   `json:"message"`          // the rule and the remedy
}

// String returns the problem in one line, in the format of compilers.
func (p Problem) String() string {
	place := strings.TrimSpace(p.Object + " " + p.Field)
	if place != "" {
		place += ": "
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s%s", p.File, p.Line, p.Column, p.Severity, place, p.Message)
}

// Result is the result of checking a file.
type Result struct {
	Problems []Problem // sorted by line
	Volumes  int       // the number of checked volumes of the driver
	// Unreadable means that a document cannot be read. Problems has the reason.
	Unreadable bool
}

// File checks all objects of a file.
func File(f *manifest.File) Result {
	l := linter{file: f.Name}
	for _, d := range f.Documents {
		if d.Err != nil {
			l.result.Unreadable = true
			l.result.Problems = append(l.result.Problems,
				Problem{File: f.Name, Line: d.Err.Line, Column: d.Err.Column, Severity: Error, Message: d.Err.Message})
			continue
		}
		for _, object := range d.Objects() {
			l.object(object)
		}
		d.Elsewhere(l.elsewhere)
	}
	slices.SortStableFunc(l.result.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return l.result
}

type linter struct {
	file   string
	result Result
}

// report adds a problem. Its place is the first existing value of at, or else the object.
func (l *linter) report(o manifest.Object, severity Severity, fieldPath string, message string, at ...*manifest.Node) {
	p := Problem{File: l.file, Severity: severity, Object: o.Name(), Field: fieldPath, Message: message}
	for _, n := range append(at, o.Node) {
		if n.Kind != manifest.Absent {
			p.Line, p.Column = n.Position()
			break
		}
	}
	l.result.Problems = append(l.result.Problems, p)
}

func (l *linter) object(o manifest.Object) {
	switch o.Kind() {
	case "Namespace":
		l.annotations(o, attributes.OnNamespace, "metadata.annotations", o.Node)
	case "CSIDriver":
		if o.Node.Get("metadata", "name").String() == attributes.Driver {
			l.annotations(o, attributes.OnCSIDriver, "metadata.annotations", o.Node)
		}
	case "PersistentVolume":
		if at := o.Node.Get("spec", "csi", "driver"); at.String() == attributes.Driver {
			l.report(o, Error, o.Path("spec.csi.driver"), inlineOnly, at)
		}
	case "StorageClass":
		if at := o.Node.Get("provisioner"); at.String() == attributes.Driver {
			l.report(o, Error, o.Path("provisioner"), inlineOnly, at)
		}
	}
	pods := o.Pods()
	for _, pod := range pods {
		l.annotations(o, attributes.OnPod, pod.Path("metadata.annotations"), pod.Node)
		l.pod(pod)
	}
	if len(pods) > 0 {
		l.misplaced(o, pods)
	}
}

// misplaced finds annotations of this driver on an object with pod templates, where the templates should have them.
func (l *linter) misplaced(o manifest.Object, pods []manifest.Pod) {
	o.Node.Walk(func(path string, n *manifest.Node) bool {
		if slices.ContainsFunc(pods, func(pod manifest.Pod) bool { return pod.Node == n }) {
			return false
		}
		above, isAnnotations := strings.CutSuffix(path, "metadata.annotations")
		if !isAnnotations {
			return true
		}
		isBelow := func(pod manifest.Pod) bool { return strings.HasPrefix(pod.Field, above) }
		pod := pods[max(0, slices.IndexFunc(pods, isBelow))]
		for _, e := range n.Entries {
			if strings.HasPrefix(e.Name, attributes.AnnotationPrefix) || almostAnnotation(e.Name) {
				l.report(o, Warning, o.Path(path+"["+e.Name+"]"), "has no effect here: it is read from pods and "+
					"namespaces; put it under "+pod.Field+".metadata.annotations", e.Key)
			}
		}
		return false
	})
}

// almostAnnotation reports whether an annotation is probably a misspelt annotation of the driver.
func almostAnnotation(name string) bool {
	prefix, _, found := strings.Cut(name, "/")
	return found && almost(prefix)
}

// almost reports whether a name is probably a misspelt name of the driver: it begins with the driver's first word
// except for case and hyphens, or two letters are wrong.
func almost(name string) bool {
	bare := strings.ReplaceAll(strings.ToLower(name), "-", "")
	return name != attributes.Driver && len(name) <= 2*len(attributes.Driver) &&
		(strings.Contains(bare, "fsuser") || attributes.EditDistance(bare, attributes.Driver) <= 2)
}

// elsewhere finds volumes of the driver outside of known pods. Nobody has checked them, and the result must not suggest
// otherwise.
func (l *linter) elsewhere(o manifest.Object, path string, n *manifest.Node) {
	driver := n.Get("csi", "driver")
	if driver.String() == attributes.Driver && o.Kind() != "PersistentVolume" { // a PersistentVolume has its own message
		l.report(o, Warning, path, "is a volume of "+attributes.Driver+" and was not checked, since it is in no pod, "+
			"and in no pod template with containers: give lint the complete manifest, such as the output "+
			"of kustomize build", driver)
	}
}

const inlineOnly = attributes.Driver + " has no persistent volumes: put the volume into the pod itself, under " +
	"spec.volumes[].csi"

// annotations checks the annotations of a pod, a pod template, a namespace or the CSIDriver.
func (l *linter) annotations(o manifest.Object, on attributes.Annotated, path string, n *manifest.Node) {
	all := n.Get("metadata", "annotations")
	values := map[string]string{}
	for _, e := range all.Entries {
		at := path + "[" + e.Name + "]"
		if strings.HasPrefix(e.Name, attributes.AnnotationPrefix) {
			values[e.Name], _ = l.text(o, at, e, func(text string) bool {
				return len(attributes.ValidateAnnotations(on, map[string]string{e.Name: text})) == 0
			})
		} else if almostAnnotation(e.Name) {
			l.report(o, Warning, at, fmt.Sprintf("has no effect: annotations of this driver begin with %q",
				attributes.AnnotationPrefix), e.Key)
		}
	}
	for _, err := range attributes.ValidateAnnotations(on, values) {
		l.report(o, Error, path+strings.TrimPrefix(err.Field, "annotations"), err.ErrorBody(), place(all, err))
	}
}

// text reads an attribute or annotation. It reports a value that is no string, and then returns the probably intended
// string, if accepts accepts it.
func (l *linter) text(o manifest.Object, path string, e manifest.Entry, accepts func(string) bool) (string, bool) {
	var text string
	wrong := e.Value.Decode(&text)
	if len(wrong) == 0 {
		return text, true
	}
	suggestion, remedy := meant(e, accepts), ""
	if suggestion != "" {
		remedy = fmt.Sprintf(": write %q", suggestion)
	}
	l.report(o, Error, path, wrong[0].Message+remedy, e.Value)
	return cmp.Or(suggestion, e.Value.Text), false
}

// meant returns the string that the author probably intended with a value that is no string, or "" if accepts does not
// accept the string.
func meant(e manifest.Entry, accepts func(text string) bool) string {
	text := e.Value.Text
	name, _, _ := strings.Cut(e.Name, "/")
	value, isInteger := e.Value.Integer()
	truth, isBool := e.Value.Value.(bool)
	digits, err := strconv.ParseInt(text, 8, 64)
	looksLikeMode := err == nil && manifest.IsUsualMode(digits) // true for 400; false for 256 and 0o400, which are 0400
	switch {
	case (name == "mode" || name == "dirMode") && isInteger && manifest.IsUsualMode(value) && !looksLikeMode:
		text = fmt.Sprintf("%04o", value)
	case (name == "uid" || name == "gid" || name == attributes.Driver) && isInteger:
		text = strconv.FormatInt(value, 10) // for 1e3 and 1_000
	case e.Name == "optional" && isBool:
		text = strconv.FormatBool(truth) // In other attributes, "on" is a name.
	}
	if text == "" || !accepts(text) {
		return ""
	}
	return text
}

// acceptable reports whether the driver accepts the text for an attribute of this name.
func acceptable(name, text string) bool {
	values := map[string]string{"secretName": "any", name: text}
	if name == "configMapName" || name == "volume" {
		delete(values, "secretName")
	}
	_, errs := attributes.Parse(values, false)
	return len(errs) == 0
}

// place returns the value that an error of pkg/attributes is about.
func place(all *manifest.Node, err *field.Error) *manifest.Node {
	for _, e := range all.Entries {
		if !strings.HasSuffix(err.Field, "["+e.Name+"]") && !strings.HasSuffix(err.Field, "["+strconv.Quote(e.Name)+"]") {
			continue
		}
		if err.Type == field.ErrorTypeForbidden {
			return e.Key // The name is wrong.
		}
		return e.Value
	}
	return all
}
