// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	maxPath    = 4096 // bytes; AtomicWriter's limit, and the kernel's PATH_MAX
	maxElement = 255  // bytes; AtomicWriter's limit, and the kernel's NAME_MAX

	// maxProblems bounds the list and with it the message that travels to kubelet, which cuts events at 1 KiB anyway.
	maxProblems = 32
)

// Validate applies the rules of the vocabulary to a Spec that does not come from Parse, such as a record read back from disk. It
// returns an empty list for a good Spec; else all problems, each at the place Parse would name, in the order of Parse.
//
// A zero Object is good: it means that the content comes with the request. No defaults are applied, so the zero Spec is not good.
func Validate(s Spec) field.ErrorList {
	return present(validate(s))
}

func validate(s Spec) field.ErrorList {
	errs := validateObject(s.Object)
	errs = append(errs, validateNumber(attribute("dirMode"), &s.DirMode, "%04o", modeProblem)...)
	errs = append(errs, validateNumber(attribute("gid"), s.GID, "%d", idProblem)...)
	errs = append(errs, validateItems(attribute("items"), s.Items)...)
	errs = append(errs, validateNumber(attribute("mode"), &s.Mode, "%04o", modeProblem)...)
	if s.Refresh != RefreshWatch && s.Refresh != RefreshOff {
		errs = append(errs, field.Invalid(attribute("refresh"), short(string(s.Refresh)), `must be exactly "watch" or "off"`))
	}
	return append(errs, validateNumber(attribute("uid"), s.UID, "%d", idProblem)...)
}

func validateNumber(path *field.Path, number *uint32, format string, problem func(uint64) string) field.ErrorList {
	if number == nil {
		return nil
	}
	if p := problem(uint64(*number)); p != "" {
		return field.ErrorList{field.Invalid(path, fmt.Sprintf(format, *number), p)}
	}
	return nil
}

// validateObject keeps everything out of the request's URL that the API server would not take for a name.
func validateObject(o Object) field.ErrorList {
	var path *field.Path
	switch {
	case o == Object{}:
		return nil
	case o.Kind == Secret:
		path = attribute("secretName")
	case o.Kind == ConfigMap:
		path = attribute("configMapName")
	default:
		return field.ErrorList{field.NotSupported(root(), short(string(o.Kind)), []Kind{Secret, ConfigMap})}
	}
	if len(o.Name) > validation.DNS1123SubdomainMaxLength { // before any regular expression sees it
		return field.ErrorList{field.Invalid(path, short(o.Name), validation.MaxLenError(validation.DNS1123SubdomainMaxLength))}
	}
	var errs field.ErrorList
	for _, problem := range validation.IsDNS1123Subdomain(o.Name) {
		if strings.Contains(o.Name, "/") {
			problem = "give the name alone: the object is always read from the pod's own namespace; " + problem
		}
		errs = append(errs, field.Invalid(path, short(o.Name), problem))
	}
	return errs
}

func validateItems(path *field.Path, items []Item) field.ErrorList {
	if len(items) > maxItems {
		return field.ErrorList{field.TooMany(path, len(items), maxItems)}
	}
	var errs field.ErrorList
	conflicts := pathConflicts(items)
	for i, item := range items {
		at := path.Index(i)
		errs = append(errs, validateNumber(at.Child("gid"), item.GID, "%d", idProblem)...)
		errs = append(errs, validateKey(at.Child("key"), item.Key)...)
		errs = append(errs, validateNumber(at.Child("mode"), item.Mode, "%04o", modeProblem)...)
		if item.Path == "" {
			errs = append(errs, field.Required(at.Child("path"), "an item needs a path; it is usually the same as its key"))
		} else {
			for _, problem := range ValidatePath(item.Path) {
				errs = append(errs, field.Invalid(at.Child("path"), short(item.Path), problem))
			}
		}
		if conflicts[i] != "" {
			errs = append(errs, field.Invalid(at.Child("path"), short(item.Path), conflicts[i]))
		}
		errs = append(errs, validateNumber(at.Child("uid"), item.UID, "%d", idProblem)...)
	}
	return errs
}

func validateKey(path *field.Path, key string) field.ErrorList {
	if key == "" {
		return field.ErrorList{field.Required(path, "an item needs the key whose value becomes the file")}
	}
	if len(key) > validation.DNS1123SubdomainMaxLength {
		return field.ErrorList{field.Invalid(path, short(key), validation.MaxLenError(validation.DNS1123SubdomainMaxLength))}
	}
	var errs field.ErrorList
	for _, problem := range validation.IsConfigMapKey(key) {
		errs = append(errs, field.Invalid(path, short(key), problem))
	}
	return errs
}

// pathConflicts returns, by index, what is wrong with an item whose path is that of an earlier item, lies below it or above it.
// For secret volumes the API lets both pass; then the last one wins, or the order of a map decides.
func pathConflicts(items []Item) []string {
	type entry struct {
		key   string // path whose separators sort before all else, so that what lies below a file follows it at once
		index int
	}
	var entries []entry
	for i, item := range items {
		if len(ValidatePath(item.Path)) == 0 { // so it is clean, and holds no NUL
			entries = append(entries, entry{strings.ReplaceAll(item.Path, "/", "\x00"), i})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(strings.Compare(a.key, b.key), cmp.Compare(a.index, b.index))
	})
	conflicts := make([]string, len(items))
	for i, file := 1, 0; i < len(entries); i++ {
		first, other := entries[file], entries[i]
		same := other.key == first.key
		if !same && !strings.HasPrefix(other.key, first.key+"\x00") {
			file = i
			continue
		}
		blamed := max(first.index, other.index)
		if same {
			conflicts[blamed] = fmt.Sprintf("items[%d] and items[%d] have the same path: give each its own", first.index, other.index)
		} else if conflicts[blamed] == "" {
			conflicts[blamed] = fmt.Sprintf("items[%d] makes %q a file, but items[%d] needs it to be a directory for %q: rename one",
				first.index, short(items[first.index].Path), other.index, short(items[other.index].Path))
		}
	}
	return conflicts
}

// ValidatePath says what is wrong with a path of a file within a volume: an item's path, or a key that serves as one. It returns
// nothing for a good path, and otherwise messages that say the rule and do not repeat the path.
//
// The rules are those of items[].path in the Kubernetes API (relative, no "..", no leading "..", which is what the atomic writer's
// own entries begin with), the atomic writer's limits (255 bytes an element, 4096 in all), and, so that each file has one spelling
// that any program can print: valid UTF-8, no control character, backslash or colon, no "." and no empty element.
func ValidatePath(path string) []string {
	switch {
	case path == "":
		return []string{"must not be empty"}
	case len(path) > maxPath:
		return []string{fmt.Sprintf("must be at most %d bytes long", maxPath)}
	}
	var problems []string
	refuse := func(broken bool, problem string) {
		if broken {
			problems = append(problems, problem)
		}
	}
	relative := strings.TrimPrefix(path, "/")
	elements := strings.Split(relative, "/")
	refuse(!utf8.ValidString(path), "must be valid UTF-8")
	refuse(strings.ContainsFunc(path, unicode.IsControl), "must not contain control characters, such as NUL or a line break")
	refuse(strings.ContainsAny(path, `\:`), `must not contain '\' or ':'`)
	refuse(relative != path, "must be relative to the volume: remove the leading '/'")
	refuse(slices.Contains(elements, ".."), "must not contain the element '..'")
	refuse(elements[0] != ".." && strings.HasPrefix(elements[0], ".."), "must not start with '..'")
	refuse(slices.Contains(elements, "."), "must not contain the element '.': leave it out")
	refuse(slices.Contains(elements, ""), "must not contain an empty element: remove the surplus '/'")
	refuse(slices.ContainsFunc(elements, func(e string) bool { return len(e) > maxElement }),
		fmt.Sprintf("must not contain an element of more than %d bytes", maxElement))
	return problems
}

// withoutKnown returns those errs that concern neither a field that known already complains about nor a part of one.
func withoutKnown(errs, known field.ErrorList) field.ErrorList {
	complained := map[string]bool{}
	for _, err := range known {
		complained[err.Field] = true
	}
	return slices.DeleteFunc(errs, func(err *field.Error) bool {
		parent := err.Field[:max(0, strings.LastIndexByte(err.Field, '.'))]
		return complained[err.Field] || complained[parent]
	})
}

// present sorts errs by attribute, keeping the order within each, and cuts the list to a length that can be sent.
func present(errs field.ErrorList) field.ErrorList {
	attributeOf := func(err *field.Error) string {
		name, _, _ := strings.Cut(strings.TrimPrefix(err.Field, root().String()), "]")
		return name
	}
	slices.SortStableFunc(errs, func(a, b *field.Error) int { return strings.Compare(attributeOf(a), attributeOf(b)) })
	if total := len(errs); total > maxProblems {
		errs = append(errs[:maxProblems:maxProblems], &field.Error{
			Type: field.ErrorTypeTooMany, Field: root().String(), BadValue: total,
			Detail: fmt.Sprintf("problems; only the first %d are listed", maxProblems),
		})
	}
	return errs
}
