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
// No defaults are applied, so the zero Spec is not good.
func Validate(s Spec) field.ErrorList {
	return present(validate(s, len(s.Sources) > 1 || len(s.Sources) == 1 && s.Sources[0].Object.Kind == Pod))
}

// validate names the places of a list of sources, or of one source that is not in a list.
func validate(s Spec, listed bool) field.ErrorList {
	errs := validateNumber(attribute("dirMode"), &s.DirMode, "%04o", modeProblem)
	errs = append(errs, validateNumber(attribute("gid"), s.GID, "%d", idProblem)...)
	errs = append(errs, validateSources(s.Sources, listed)...)
	if s.Refresh != RefreshWatch && s.Refresh != RefreshOff {
		errs = append(errs, field.Invalid(attribute("refresh"), short(string(s.Refresh)), `must be exactly "watch" or "off"`))
	}
	return append(errs, validateNumber(attribute("uid"), s.UID, "%d", idProblem)...)
}

func validateSources(sources []Source, listed bool) field.ErrorList {
	if len(sources) == 0 {
		return field.ErrorList{field.Required(attribute("sources"), "there is no object to project")}
	}
	if len(sources) > maxSources {
		return field.ErrorList{field.TooMany(attribute("sources"), len(sources), maxSources)}
	}
	total := 0
	for _, source := range sources {
		total += len(source.Items)
	}
	if listed && total > maxItems {
		return field.ErrorList{field.TooMany(attribute("sources"), total, maxItems)}
	}
	var errs field.ErrorList
	where := places(sources, listed)
	conflicts := conflictsBetween(sources, where)
	for i, source := range sources {
		errs = append(errs, validateObject(where[i], source)...)
		errs = append(errs, validateItems(where[i].items, source, conflicts[i])...)
		// One attribute says the mode of all.
		if i == 0 || source.Mode != sources[0].Mode {
			errs = append(errs, validateNumber(attribute("mode"), &source.Mode, "%04o", modeProblem)...)
		}
	}
	return errs
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

func validateObject(where place, source Source) field.ErrorList {
	o := source.Object
	switch {
	case where.entry == nil && o == Object{}:
		return nil
	case where.entry != nil && o.Kind == Pod:
		if o.Name != "" || source.Optional {
			return field.ErrorList{field.Invalid(where.entry, short(o.Name), "the pod is there, and is the volume's own: it has neither name nor optional")}
		}
		return nil
	case o.Kind != Secret && o.Kind != ConfigMap:
		at := root()
		if where.entry != nil {
			at = where.entry
		}
		return field.ErrorList{field.NotSupported(at, short(string(o.Kind)), []Kind{Secret, ConfigMap})}
	case where.entry != nil && o.Name == "":
		return field.ErrorList{field.Required(where.name, "name the object to project")}
	}
	return validateName(where.name, o.Name)
}

// validateName keeps everything out of the request's URL that the API server would not take for a name.
func validateName(path *field.Path, name string) field.ErrorList {
	if len(name) > validation.DNS1123SubdomainMaxLength { // before any regular expression sees it
		return field.ErrorList{field.Invalid(path, short(name), validation.MaxLenError(validation.DNS1123SubdomainMaxLength))}
	}
	var errs field.ErrorList
	for _, problem := range validation.IsDNS1123Subdomain(name) {
		if strings.Contains(name, "/") {
			problem = "give the name alone: the object is always read from the pod's own namespace; " + problem
		}
		errs = append(errs, field.Invalid(path, short(name), problem))
	}
	return errs
}

func validateItems(path *field.Path, source Source, conflicts []string) field.ErrorList {
	items := source.Items
	if len(items) > maxItems {
		return field.ErrorList{field.TooMany(path, len(items), maxItems)}
	}
	var errs field.ErrorList
	if source.Object.Kind == Pod && len(items) == 0 {
		errs = append(errs, field.Required(path, "list the fields to project, as in [{path: labels, fieldRef: {fieldPath: metadata.labels}}]"))
	}
	for i, item := range items {
		at := path.Index(i)
		errs = append(errs, validateNumber(at.Child("gid"), item.GID, "%d", idProblem)...)
		if source.Object.Kind == Pod {
			errs = append(errs, validateField(at, item)...)
		} else {
			errs = append(errs, validateKey(at.Child("key"), item.Key)...)
			if item.Container != "" || item.Divisor != "" {
				errs = append(errs, field.Invalid(at, short(item.Container), "a key has neither container nor divisor"))
			}
		}
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

// namedPath is the path of a file, and where it stands, for messages.
type namedPath struct{ path, name string }

// pathConflicts returns, by index, what is wrong with a path that is that of an earlier file, lies below it or above it.
// For secret volumes the API lets both pass; then the last one wins, or the order of a map decides.
func pathConflicts(files []namedPath) []string {
	type entry struct {
		key   string // path whose separators sort before all else, so that what lies below a file follows it at once
		index int
	}
	var entries []entry
	for i, file := range files {
		if len(ValidatePath(file.path)) == 0 { // so it is clean, and holds no NUL
			entries = append(entries, entry{strings.ReplaceAll(file.path, "/", "\x00"), i})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(strings.Compare(a.key, b.key), cmp.Compare(a.index, b.index))
	})
	conflicts := make([]string, len(files))
	for i, file := 1, 0; i < len(entries); i++ {
		first, other := entries[file], entries[i]
		same := other.key == first.key
		if !same && !strings.HasPrefix(other.key, first.key+"\x00") {
			file = i
			continue
		}
		a, b := files[first.index], files[other.index]
		blamed := max(first.index, other.index)
		if same {
			conflicts[blamed] = fmt.Sprintf("%s and %s have the same path: give each its own", a.name, b.name)
		} else if conflicts[blamed] == "" {
			conflicts[blamed] = fmt.Sprintf("%s makes %q a file, but %s needs it to be a directory for %q: rename one", a.name, short(a.path), b.name, short(b.path))
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

// withoutKnown returns those errs that concern neither a field that known already complains about nor a part or the whole of one.
func withoutKnown(errs, known field.ErrorList) field.ErrorList {
	wholes := func(part string) []string { // part itself first; never the root
		all := []string{part}
		for i := len(part) - 1; i > len(root().String()); i-- {
			if part[i] == '.' || part[i] == '[' {
				all = append(all, part[:i])
			}
		}
		return all
	}
	complained, within := map[string]bool{}, map[string]bool{}
	for _, err := range known {
		complained[err.Field] = err.Field != root().String()
		for _, whole := range wholes(err.Field) {
			within[whole] = err.Field != root().String()
		}
	}
	return slices.DeleteFunc(errs, func(err *field.Error) bool {
		return within[err.Field] || slices.ContainsFunc(wholes(err.Field), func(whole string) bool { return complained[whole] })
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
