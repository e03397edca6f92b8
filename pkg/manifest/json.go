// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// jsonValues returns where each value of a text ends that consists of JSON values alone. If the text does not, problem
// says why and bad is the offset of the first byte that is wrong.
func jsonValues(text string) (ends []int, bad int, problem string) {
	decoder := json.NewDecoder(strings.NewReader(text))
	for {
		var value json.RawMessage
		err := decoder.Decode(&value)
		var syntax *json.SyntaxError
		switch {
		case errors.Is(err, io.EOF):
			return ends, 0, ""
		case errors.As(err, &syntax):
			return nil, max(0, int(syntax.Offset)-1), syntax.Error()
		case err != nil:
			return nil, len(strings.TrimRight(text, " \t\r\n")), "unexpected end of the text"
		}
		ends = append(ends, int(decoder.InputOffset()))
	}
}

var beginsLikeJSON = regexp.MustCompile(`^\s*(\{\s*"|\[\s*\{\s*")`)

// isMeantAsJSON reports whether the author of a text that is neither JSON nor YAML wants to know what is wrong with the
// JSON.
func isMeantAsJSON(file, text string) bool {
	return strings.EqualFold(filepath.Ext(file), ".json") || beginsLikeJSON.MatchString(text)
}

// readJSON reads the one value of a document that is known to be JSON.
func (d *Document) readJSON() *Document {
	d.JSON = true
	r := jsonReader{doc: d, decoder: json.NewDecoder(strings.NewReader(d.Text))}
	r.decoder.UseNumber()
	root, err := r.value(0)
	if err != nil {
		d.Err = d.syntaxError(int(r.decoder.InputOffset()), "this is not JSON: "+err.Error())
		return d
	}
	d.Root = root
	return d
}

type jsonReader struct {
	doc     *Document
	decoder *json.Decoder
}

func (r *jsonReader) value(depth int) (*Node, error) {
	if depth > maxDepth {
		return nil, errTooDeep
	}
	rest := r.doc.Text[r.decoder.InputOffset():]
	start := len(r.doc.Text) - len(strings.TrimLeft(rest, " \t\r\n,:"))
	token, err := r.decoder.Token()
	if err != nil {
		return nil, err
	}
	n := &Node{kind: scalar, start: start, doc: r.doc, quoted: true}
	switch token := token.(type) {
	case json.Delim:
		n.flow = true
		if n.kind = list; token == '{' {
			n.kind = mapping
		}
		for r.decoder.More() {
			child, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			if n.kind == list {
				n.items = append(n.items, child)
				continue
			}
			value, err := r.value(depth + 1)
			if err != nil {
				return nil, err
			}
			if e := (Entry{Name: child.text, Key: child, Value: value}); n.set(e) {
				n.repeated = append(n.repeated, e)
			}
		}
		if _, err := r.decoder.Token(); err != nil {
			return nil, err
		}
	case json.Number:
		n.text, n.value, n.quoted = token.String(), jsonNumber(token.String()), false
	case string:
		n.text, n.value = token, token
	default: // a boolean, or null
		n.value, n.text, n.quoted = token, r.doc.Text[start:r.decoder.InputOffset()], false
	}
	return n, nil
}

// jsonNumber has the types that the YAML decoder gives numbers.
func jsonNumber(text string) any {
	if value, err := strconv.Atoi(text); err == nil {
		return value
	}
	if value, err := strconv.ParseUint(text, 10, 64); err == nil {
		return value
	}
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return text
	}
	return value
}
