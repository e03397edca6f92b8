// SPDX-License-Identifier: Apache-2.0

package convert

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// flow is how a source in brackets is laid out.
type flow struct {
	start, end int    // of the brackets
	several    bool   // its entries have lines of their own
	colon, sep string // behind a key and between entries: ": " and ", ", or without the space
	quote      string // around a key
	nl         string
	inner      string // indentation of its entries, if it has several lines
	outer      string // of the closing bracket
	unit       string // between the two
}

func newFlow(text string, key, source manifest.Node) (flow, error) {
	end, ok := source.End()
	if !ok {
		return flow{}, errNotEditable
	}
	f := flow{start: source.Start(), end: end, colon: ": ", sep: ", ", nl: newline(text)}
	if key.Style() == manifest.Double || source.Document().JSON {
		f.quote = `"`
		if colon, ok := afterColon(text, key); ok && text[colon:f.start] == "" {
			f.colon, f.sep = ":", ","
		}
	}
	body := text[f.start:f.end]
	f.several = strings.Contains(body, "\n")
	if !f.several {
		return f, nil
	}
	first, _, _ := strings.Cut(body, "\n")
	f.inner, f.outer = indentation(text, nextLine(text, f.start)), indentation(text, f.end-1)
	unit, deeper := strings.CutPrefix(f.inner, f.outer)
	// Else its lines are not laid out in a way that could be found again.
	if strings.TrimSpace(first) != "{" || !deeper || unit == "" || strings.TrimSpace(text[lineStart(text, f.end):f.end]) != "}" {
		return flow{}, errNotEditable
	}
	f.unit = unit
	return f, nil
}

func (f flow) entry(name, value string) string { return f.quote + name + f.quote + f.colon + value }

// wrap puts the brackets of a CSI volume around those of the source, which become those of volumeAttributes.
func (f flow) wrap() []edit {
	driver, readOnly := f.entry("driver", f.quote+attributes.Driver+f.quote), f.entry("readOnly", "true")
	if !f.several {
		return []edit{
			{from: f.start, to: f.start, text: "{" + driver + f.sep + readOnly + f.sep + f.entry("volumeAttributes", "")},
			{from: f.end, to: f.end, text: "}"},
		}
	}
	in := f.nl + f.inner
	return []edit{
		{from: f.start, to: f.start, text: "{" + in + driver + "," + in + readOnly + "," + in + f.entry("volumeAttributes", "")},
		{from: f.end, to: f.end, text: f.nl + f.outer + "}"},
	}
}

// add puts one more entry behind the value that ends at offset, deeper by unit than the entries are.
func (f flow) add(offset int, name, value, unit string) edit {
	entry := "," + f.nl + f.inner + unit + f.entry(name, value)
	if !f.several {
		entry = f.sep + f.entry(name, value)
	}
	return edit{from: offset, to: offset, text: entry}
}

func jsonString(text string) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // a string can always be encoded
	return strings.TrimSuffix(out.String(), "\n")
}
