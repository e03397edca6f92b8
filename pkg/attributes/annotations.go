// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"fmt"
	"maps"
	"regexp"
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

	// What the policy allow goes by, on the CSIDriver and on namespaces.
	annotationAllow           = AnnotationPrefix + "allow-"
	annotationAllowUIDs       = annotationAllow + "uids"
	annotationAllowGIDs       = annotationAllow + "gids"
	annotationAllowSecrets    = annotationAllow + "secrets"
	annotationAllowConfigMaps = annotationAllow + "configmaps"
)

// Annotated is what an annotation stands on.
type Annotated string

// Annotated objects. A pod template is a pod.
const (
	OnPod       Annotated = "a pod"
	OnNamespace Annotated = "a namespace"
	OnCSIDriver Annotated = "the CSIDriver"
)

// annotations are those that there are, with where each counts.
func annotations() map[string][]Annotated {
	who, rule := []Annotated{OnPod, OnNamespace}, []Annotated{OnNamespace, OnCSIDriver}
	return map[string][]Annotated{
		AnnotationFSUser: who, AnnotationFSGroup: who,
		annotationAllowUIDs: rule, annotationAllowGIDs: rule, annotationAllowSecrets: rule, annotationAllowConfigMaps: rule,
	}
}

// ValidateAnnotations says what is wrong with an object's annotations that are this driver's. It passes over all
// others. A name that is not known, or not there, is an error, since it has no effect. Each problem names its place as
// annotations[key].
func ValidateAnnotations(on Annotated, values map[string]string) field.ErrorList {
	var known []string
	for key, places := range annotations() {
		if slices.Contains(places, on) {
			known = append(known, key)
		}
	}
	slices.Sort(known)
	var errs field.ErrorList
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !strings.HasPrefix(key, AnnotationPrefix) {
			continue
		}
		at, value := field.NewPath("annotations").Key(key), values[key]
		if places := annotations()[key]; len(places) > 0 && !slices.Contains(places, on) {
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("has no effect on %s: it belongs on %s or %s", on, places[0],
				places[1])))
			continue
		}
		if !slices.Contains(known, key) {
			guess := ""
			if near := nearest(key, known); near != "" {
				guess = fmt.Sprintf("; the nearest known one is %q", near)
			}
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("unknown annotation%s (known: %s)", guess,
				strings.Join(known, ", "))))
			continue
		}
		if problem := annotationProblem(key, value); problem != "" {
			errs = append(errs, field.Invalid(at, short(value), problem))
		}
	}
	return errs
}

// annotationProblem says what is wrong with the value of a known annotation; "" if nothing is. The rules of allow are
// those of the policy, which a test compares.
func annotationProblem(key, value string) string {
	switch key {
	case annotationAllowUIDs, annotationAllowGIDs:
		if !regexp.MustCompile(`^( *([0-9]{1,10}( *- *[0-9]{1,10})? *)?(,|$))*$`).MatchString(value) {
			return "must be numbers and ranges with commas, like 0,1000-1999"
		}
	case annotationAllowSecrets, annotationAllowConfigMaps:
		if !regexp.MustCompile(`^( *([a-z0-9][-.a-z0-9]*[*]?|[*])? *(,|$))*$`).MatchString(value) {
			return "must be names and name* with commas, like tls,ssh-*"
		}
	default:
		if value == AnnotationNone {
			return ""
		}
		if _, problem := idFromText(value); problem != "" {
			return problem + fmt.Sprintf(", or %q", AnnotationNone)
		}
	}
	return ""
}
