// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Annotations of pods and namespaces, for which the admission policy converts a pod's volumes to this driver's.
const (
	AnnotationPrefix  = Driver + "/"
	AnnotationFSUser  = AnnotationPrefix + "fs-user"
	AnnotationFSGroup = AnnotationPrefix + "fs-group"
	// AnnotationNone is the value that says not to convert, or to set no group, where a namespace says otherwise.
	AnnotationNone = "none"
)

// ValidateAnnotations says what is wrong with the annotations of a pod or namespace that are this driver's. It passes over all others. A
// name that is not known is an error, since a misspelt one has no effect. Each problem names its place as annotations[key].
func ValidateAnnotations(annotations map[string]string) field.ErrorList {
	known := []string{AnnotationFSUser, AnnotationFSGroup}
	var errs field.ErrorList
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, AnnotationPrefix) {
			continue
		}
		at, value := field.NewPath("annotations").Key(key), annotations[key]
		if !slices.Contains(known, key) {
			guess := ""
			if near := nearest(key, known); near != "" {
				guess = fmt.Sprintf("; the nearest known one is %q", near)
			}
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("unknown annotation%s (known: %s)", guess, strings.Join(known, ", "))))
			continue
		}
		if value == AnnotationNone {
			continue
		}
		if _, problem := idFromText(value); problem != "" {
			errs = append(errs, field.Invalid(at, short(value), problem+fmt.Sprintf(", or %q", AnnotationNone)))
		}
	}
	return errs
}
