// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	fieldRule    = "an item of the downward API needs exactly one of fieldRef and resourceFieldRef"
	resourceRule = "must be limits. or requests. followed by cpu, memory, ephemeral-storage or hugepages-<size>, such as limits.memory"
)

// fieldPaths are the fields of a pod that can be projected. The Kubernetes API lets volumes have those of metadata only, and environment
// variables the others; here all can be files, which follow the pod.
func fieldPaths() []string {
	return []string{
		"metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations",
		"metadata.labels['<key>']", "metadata.annotations['<key>']",
		"spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
	}
}

// validateField says what is wrong with the key of an item of the Pod. at is the place of the item.
func validateField(at *field.Path, item Item) field.ErrorList {
	if item.Key == "" {
		return field.ErrorList{field.Required(at, fieldRule)}
	}
	if isResource(item.Key) {
		return validateResource(at.Child("resourceFieldRef"), item)
	}
	at = at.Child("fieldRef", "fieldPath")
	if item.Container != "" || item.Divisor != "" {
		return field.ErrorList{field.Invalid(at, short(item.Key), "a field has neither container nor divisor")}
	}
	if base, key, ok := subscript(item.Key); ok && (base == "metadata.labels" || base == "metadata.annotations") {
		if base == "metadata.annotations" {
			key = strings.ToLower(key) // as in the validation of annotations
		}
		if len(key) > 2*validation.DNS1123SubdomainMaxLength { // before any regular expression sees it
			return field.ErrorList{field.TooLong(at, "", 2*validation.DNS1123SubdomainMaxLength)}
		}
		var errs field.ErrorList
		for _, problem := range validation.IsQualifiedName(key) {
			errs = append(errs, field.Invalid(at, short(item.Key), problem))
		}
		return errs
	}
	if strings.Contains(item.Key, "<") || !slices.Contains(fieldPaths(), item.Key) {
		return field.ErrorList{field.NotSupported(at, short(item.Key), fieldPaths())}
	}
	return nil
}

// subscript splits base['key'].
func subscript(path string) (base, key string, ok bool) {
	base, rest, found := strings.Cut(path, "['")
	key, closed := strings.CutSuffix(rest, "']")
	return base, key, found && closed
}

// isResource reports whether the key of an item of the Pod is a resource.
func isResource(key string) bool {
	kind, name, ok := strings.Cut(key, ".")
	return ok && (kind == "limits" || kind == "requests") && name != ""
}

// validateResource applies the rules of the Kubernetes API for resourceFieldRef in a volume.
func validateResource(at *field.Path, item Item) field.ErrorList {
	var errs field.ErrorList
	_, name, _ := strings.Cut(item.Key, ".")
	size, huge := strings.CutPrefix(name, "hugepages-")
	if huge {
		_, err := resource.ParseQuantity(size)
		huge = err == nil
	}
	divisors := []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}
	switch {
	case name == "cpu":
		divisors = []string{"1", "1m"}
	case !huge && name != "memory" && name != "ephemeral-storage":
		errs = append(errs, field.Invalid(at.Child("resource"), short(item.Key), resourceRule))
	}
	if item.Container == "" {
		errs = append(errs, field.Required(at.Child("containerName"), "name the container whose resource it is"))
	} else if len(item.Container) > validation.DNS1123LabelMaxLength || len(validation.IsDNS1123Label(item.Container)) > 0 {
		errs = append(errs, field.Invalid(at.Child("containerName"), short(item.Container), "must be the name of a container of the pod"))
	}
	// "0" is what the API server fills in.
	if d := item.Divisor; d != "" && d != "0" && !slices.Contains(divisors, d) {
		errs = append(errs, field.Invalid(at.Child("divisor"), short(d), fmt.Sprintf("must be one of %s", strings.Join(divisors, ", "))))
	}
	return errs
}
