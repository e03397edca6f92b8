// SPDX-License-Identifier: Apache-2.0

package site

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// TestDefects shows that each check of TestPages fails for a page that has the defect.
func TestDefects(t *testing.T) {
	b := newBrowser(t)
	const image = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E"
	for name, test := range map[string]struct {
		body string
		want []string // how the defects begin
	}{
		"none": {`<a href="#here" id="here">here</a><a href="` + repository + `/tree/main/docs/">docs</a>`, nil},
		"missing page": {`<a href="gone">gone</a>`,
			[]string{"gone: log: Failed to load resource"}},
		"missing anchor": {`<a href="#gone">gone</a>`,
			[]string{": link to , which has no anchor gone"}},
		"missing file": {`<a href="` + repository + `/blob/main/gone.md">gone</a>`,
			[]string{": link to gone.md, which is no file"}},
		"missing image": {`<img src="/gone.png" alt="gone">`,
			[]string{": log: Failed to load", ": the image gone.png is missing"}},
		"no alternative": {`<img src="` + image + `">`,
			[]string{": the image data:"}},
		"console": {`<script>console.error("no")</script>`,
			[]string{`: console: "no"`}},
		"exception": {`<script>missing()</script>`,
			[]string{`: exception "Uncaught"`}},
		"other host": {`<link rel="stylesheet" href="http://localhost.invalid/x.css">`,
			[]string{": log: Failed to load", ": request to http://localhost.invalid/x.css"}},
		"wide": {`<div style="width: 500px">wide</div>`,
			[]string{": 500 pixels wide on a screen of 360"}},
		"contrast": {`<p style="color: #888">grey</p>`,
			[]string{`: low contrast (desktop, light): P "grey"`, `: low contrast (phone, dark): P "grey"`}},
		"contrast in dark": {`<style>@media (prefers-color-scheme: dark) { p { background: #000 } }</style><p>dark</p>`,
			[]string{`: low contrast (phone, dark): P "dark"`}},
		"repeated id": {`<p id="a">1</p><p id="a">2</p>`,
			[]string{": two elements have the id a"}},
		"two headings": {`<h1>two</h1>`,
			[]string{": 2 h1 and 1 main"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				body := test.body
				if r.URL.Path != "/" {
					w.WriteHeader(http.StatusNotFound)
					body = ""
				}
				_, _ = fmt.Fprintf(w, `<!doctype html><link rel="icon" href="data:,"><style>body { margin: 0 }</style>`+
					`<main><h1>Page</h1>%s</main>`, body)
			}))
			t.Cleanup(server.Close)
			base, err := url.Parse(server.URL + "/")
			if err != nil {
				t.Fatal(err)
			}
			_, defects := crawl(t, b, base)
			slices.Sort(defects)
			if !slices.EqualFunc(defects, test.want, strings.HasPrefix) {
				t.Errorf("defects are %q, want %q", defects, test.want)
			}
		})
	}
}
