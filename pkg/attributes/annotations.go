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

// These annotations of pods and namespaces tell the admission policy to convert a pod's volumes to this driver's.
const (
	AnnotationPrefix  = Driver + "/"
	AnnotationFSUser  = AnnotationPrefix + "fs-user"
	AnnotationFSGroup = AnnotationPrefix + "fs-group"
	// AnnotationNone is the value for no conversion, or for no group, if the namespace has another value.
	AnnotationNone = "none"

	// The policy allow reads these annotations of the CSIDriver and of namespaces.
	annotationAllow           = AnnotationPrefix + "allow-"
	annotationAllowUIDs       = annotationAllow + "uids"
	annotationAllowGIDs       = annotationAllow + "gids"
	annotationAllowSecrets    = annotationAllow + "secrets"
	annotationAllowConfigMaps = annotationAllow + "configmaps"
)

// Annotated is a kind of object with annotations.
type Annotated string

// The kinds of annotated objects. A pod template counts as a pod.
const (
	OnPod       Annotated = "a pod"
	OnNamespace Annotated = "a namespace"
	OnCSIDriver Annotated = "the CSIDriver"
)

// annotations returns the known annotations, with the kinds of objects on which they have an effect.
func annotations() map[string][]Annotated {
	who, rule := []Annotated{OnPod, OnNamespace}, []Annotated{OnNamespace, OnCSIDriver}
	return map[string][]Annotated{
		AnnotationFSUser: who, AnnotationFSGroup: who,
		annotationAllowUIDs: rule, annotationAllowGIDs: rule, annotationAllowSecrets: rule, annotationAllowConfigMaps: rule,
	}
}

// ValidateAnnotations returns the problems of an object's annotations. It ignores annotations that are not this
// driver's. An unknown name, or one that has no effect on the object, is an error. Each problem names its place as
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

// annotationProblem returns the problem with the value of a known annotation, or "" for a valid value. The rules for
// allow are those of the policy. A test compares them.
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
