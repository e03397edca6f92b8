// SPDX-License-Identifier: Apache-2.0

package site

import (
	"bytes"
	"flag"
	"fmt"
	"image/png"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

const (
	// root is the directory of the repository, whose address on GitHub is repository.
	root       = "../.."
	public     = root + "/site/public"
	repository = "https://github.com/fsuser-csi/fsuser-csi"
	// notFound is the page for an address that the site does not have. No page has a link to it.
	notFound = "404.html"
)

var screenshots = flag.String("screenshots", "", "the directory for the screenshots")

// serve serves the built site on the loopback interface at the path of its address, and returns the home page.
func serve(t *testing.T) *url.URL {
	t.Helper()
	home, err := os.ReadFile(filepath.Join(public, "index.html"))
	if err != nil {
		t.Fatalf("%v: run make site", err)
	}
	canonical := regexp.MustCompile(`<link rel="canonical" href="([^"]+)">`).FindSubmatch(home)
	if canonical == nil {
		t.Fatal("the home page does not name its address")
	}
	address, err := url.Parse(string(canonical[1]))
	if err != nil {
		t.Fatal(err)
	}
	prefix := strings.TrimSuffix(address.Path, "/")
	server := httptest.NewServer(http.StripPrefix(prefix, http.FileServer(http.Dir(public))))
	t.Cleanup(server.Close)
	base, err := url.Parse(server.URL + prefix + "/")
	if err != nil {
		t.Fatal(err)
	}
	return base
}

// TestPages opens each page of the site.
func TestPages(t *testing.T) {
	visited, defects := crawl(t, newBrowser(t), serve(t), notFound)
	for _, defect := range defects {
		t.Error(defect)
	}
	var want []string
	err := filepath.WalkDir(public, func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".html") {
			name, _ := strings.CutPrefix(path, public+"/")
			want = append(want, strings.TrimSuffix(name, "index.html"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	slices.Sort(visited)
	if !slices.Equal(visited, want) {
		t.Errorf("links lead to the pages %q, the site has %q", visited, want)
	}
}

// TestSearch uses the keyboard only: / goes to the field, the arrow keys to a result, Enter opens it.
func TestSearch(t *testing.T) {
	const word = "dirMode"
	b, base := newBrowser(t), serve(t)
	b.show(t, desktop)
	b.open(t, base.String())
	b.do(t, "search for "+word, press("/"), chromedp.KeyEvent(word),
		chromedp.WaitVisible(chromedp.CSS("#search-results li:nth-child(2)")))
	b.screenshot(t, "search.png")

	b.do(t, "go to the second result", chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.ArrowDown))
	chosen := run(t, b, "read the address of the second result",
		chromedp.Evaluate[string](`document.activeElement.href`))
	b.do(t, "open the second result", chromedp.KeyEvent(kb.Enter))
	const section = `(() => {
		const heading = document.getElementById(location.hash.slice(1));
		let text = heading?.textContent ?? "";
		for (let e = heading?.nextElementSibling; e && !/^H[1-6]$/.test(e.tagName); e = e.nextElementSibling) {
			text += e.textContent;
		}
		return text;
	})()`
	b.waitFor(t, fmt.Sprintf(`location.href === %q && document.readyState === "complete"`, chosen))
	if text := run(t, b, "read the section", chromedp.Evaluate[string](section)); !strings.Contains(text, word) {
		t.Errorf("the search for %s opened %s with the text %q", word, chosen, text)
	}

	b.do(t, "search for what no page has", press("/"), chromedp.KeyEvent("nowhere-to-be-found"))
	b.waitFor(t, `document.getElementById("search-found").textContent === "0 sections found"`)
	b.do(t, "leave the search", chromedp.KeyEvent(kb.Escape))
	b.waitFor(t, `document.activeElement.type === "search" && document.getElementById("search-results").hidden`)
	if _, problems := b.observed(); len(problems) > 0 {
		t.Errorf("the browser reports %q", problems)
	}
}

// TestScreenshots shows the home page in both views.
func TestScreenshots(t *testing.T) {
	b, base := newBrowser(t), serve(t)
	b.show(t, desktop)
	b.open(t, base.String())
	b.screenshot(t, "desktop-light.png")
	b.show(t, phone)
	b.screenshot(t, "phone-dark.png")
}

// screenshot writes what the browser shows, if the flag is set.
func (b *browser) screenshot(t *testing.T, name string) {
	t.Helper()
	shot := run(t, b, "take a screenshot", chromedp.CaptureScreenshot())
	if _, err := png.Decode(bytes.NewReader(shot)); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if *screenshots == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(*screenshots, name), shot, 0o644); err != nil {
		t.Error(err)
	}
}
