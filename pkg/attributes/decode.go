// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v2"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	// maxItems bounds how many files an attribute can name, in all sources of a volume together.
	maxItems    = 1024
	maxListText = 64 << 10 // bytes, checked before anything is decoded
	// maxOpenings bounds how often a list or mapping may begin in the text, and so its depth: per item a dash, a brace, a reference's
	// brace, and some for the sources. YAML's own limit, a depth of 10000, costs 20 ms and 16 MiB of stack.
	maxOpenings = 3*maxItems + 6*maxSources
)

// list describes an attribute whose value is a list in YAML or JSON.
type list struct {
	rule    string // what the value must be
	example string // of a list with one entry
	empty   string // what to do instead of giving an empty text
}

// decode reads the list, strictly. As in the Kubernetes API an empty list, like null, is as good as none.
func (l list) decode(path *field.Path, text string) ([]any, field.ErrorList) {
	if len(text) > maxListText {
		return nil, field.ErrorList{field.TooLong(path, "", maxListText)}
	}
	entries, err := l.entries(text)
	if err != nil {
		return nil, field.ErrorList{field.Invalid(path, short(text), l.rule+": "+oneLine(err.Error()))}
	}
	return entries, nil
}

// entries decodes exactly one YAML document that holds a list. JSON is YAML. It uses the decoder beneath sigs.k8s.io/yaml, the
// one kubectl reads manifests with, so that 0400 means here what it means there; sigs.k8s.io/yaml itself stops after the first
// document and would not notice what follows it.
func (l list) entries(text string) ([]any, error) {
	if hasAnchor(text) {
		return nil, errors.New(`YAML anchors and aliases ("&name", "*name") are not accepted, write the value out`)
	}
	if openings(text) > maxOpenings {
		return nil, fmt.Errorf("more than %d items, or nested too deeply", maxItems)
	}
	decoder := yaml.NewDecoder(strings.NewReader(text))
	decoder.SetStrict(true) // a field given twice is an error
	var document any
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil, errors.New("there is nothing in it; " + l.empty)
	} else if err != nil {
		return nil, err
	}
	// Never after an error: the decoder would panic.
	var more any
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the list")
	}
	switch decoded := document.(type) {
	case nil:
		return nil, nil
	case []any:
		return decoded, nil
	case map[any]any:
		return nil, errors.New("this is a single mapping; put it in a list, as in " + l.example)
	}
	return nil, errors.New("this is no list")
}

// hasAnchor reports whether text might define a YAML anchor. Without anchors there are no aliases, and without aliases a document
// cannot become larger than its text. An '&' begins an anchor only before a letter, digit, '_' or '-', and not within a word, so
// "a&b" and "R & D" pass. Within quotes this refuses a little too much ("R &D"): telling quotes apart takes a full YAML scanner.
func hasAnchor(text string) bool {
	for i := range len(text) - 1 {
		next := text[i+1]
		if text[i] == '&' && (isAlnum(next) || next == '_' || next == '-') && (i == 0 || !isAlnum(text[i-1])) {
			return true
		}
	}
	return false
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// openings counts what may begin a list or mapping: brackets, braces, and dash or question mark before white space. Where block
// mappings nest by indentation alone, the text grows with the square of the depth, which its size already bounds.
func openings(text string) int {
	count := 0
	for i := range len(text) {
		switch text[i] {
		case '[', '{':
			count++
		case '-', '?':
			// YAML 1.1 also breaks lines at NEL, LS and PS, which begin with these two bytes.
			if i+1 == len(text) || bytes.IndexByte([]byte(" \t\r\n\xc2\xe2"), text[i+1]) >= 0 {
				count++
			}
		}
	}
	return count
}

// readEach reads each entry of a list that may have that many.
func readEach[T any](path *field.Path, decoded []any, most int, read func(*field.Path, any) (T, field.ErrorList)) ([]T, field.ErrorList) {
	if len(decoded) > most {
		return nil, field.ErrorList{field.TooMany(path, len(decoded), most)}
	}
	var (
		all  []T
		errs field.ErrorList
	)
	for i, entry := range decoded {
		one, oneErrs := read(path.Index(i), entry)
		all = append(all, one)
		errs = append(errs, oneErrs...)
	}
	return all, errs
}

// mapping reads the fields of one decoded mapping and collects what is wrong with them. A field that is null counts as absent.
type mapping struct {
	path   *field.Path
	fields map[any]any
	errs   field.ErrorList
}

// readMapping returns the mapping that decoded is, or none and the error that says so. example is what it could look like.
func readMapping(path *field.Path, decoded any, example string) (*mapping, field.ErrorList) {
	fields, ok := decoded.(map[any]any)
	if !ok {
		return nil, field.ErrorList{field.Invalid(path, describe(decoded), "must be a mapping, such as "+example)}
	}
	return &mapping{path: path, fields: fields}, nil
}

func (m *mapping) has(name string) bool { return m.fields[name] != nil }

func (m *mapping) text(name string) string {
	value, isText := m.fields[name].(string)
	if !isText && m.has(name) {
		m.errs = append(m.errs, field.Invalid(m.path.Child(name), describe(m.fields[name]),
			"must be a string: put it in quotes (YAML takes 1 for a number, y or no for a boolean)"))
	}
	return value
}

func (m *mapping) number(name string, read func(any) (*uint32, string)) *uint32 {
	value, problem := read(m.fields[name])
	if problem != "" {
		m.errs = append(m.errs, field.Invalid(m.path.Child(name), describe(m.fields[name]), problem))
	}
	return value
}

// truth reads a boolean. As in the attribute, it may be a string.
func (m *mapping) truth(name string) bool {
	switch value := m.fields[name]; value {
	case nil, false, "false":
		return false
	case true, "true":
		return true
	default:
		m.errs = append(m.errs, field.Invalid(m.path.Child(name), describe(value), "must be true or false"))
		return false
	}
}

func (m *mapping) list(name string) []any {
	value, isList := m.fields[name].([]any)
	if !isList && m.has(name) {
		m.errs = append(m.errs, field.Invalid(m.path.Child(name), describe(m.fields[name]), "must be a list"))
	}
	return value
}

// child reads a field that is itself a mapping; nil if it is absent or is none.
func (m *mapping) child(name, example string) *mapping {
	if !m.has(name) {
		return nil
	}
	child, errs := readMapping(m.path.Child(name), m.fields[name], example)
	m.errs = append(m.errs, errs...)
	return child
}

// only complains of each field that is not among known. Null or not: its name is what is wrong.
func (m *mapping) only(known ...string) {
	var unknown []string
	for name := range maps.Keys(m.fields) {
		if text, isText := name.(string); !isText || !slices.Contains(known, text) {
			unknown = append(unknown, fmt.Sprint(name))
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		m.errs = append(m.errs, field.Forbidden(m.path.Child(printable(name)), unknownName("field", name, known)))
	}
}

// describe names a decoded value for a message: scalars by their text, the rest by its kind.
func describe(decoded any) string {
	switch v := decoded.(type) {
	case nil:
		return "null"
	case []any:
		return "a list"
	case map[any]any:
		return "a mapping"
	default:
		return short(fmt.Sprint(v))
	}
}
