// SPDX-License-Identifier: Apache-2.0

// Package site checks the site of the documents in a browser.
package site

import (
	"context"
	_ "embed"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// stepTimeout limits how long the browser may need for one step, for example to open a page.
const stepTimeout = 30 * time.Second

// view is a screen and a color scheme.
type view struct {
	name          string
	width, height int64
	scheme        string
}

var (
	desktop = view{"desktop, light", 1400, 720, "light"}
	phone   = view{"phone, dark", 360, 740, "dark"}
)

// page is the result of audit.js.
type page struct {
	Links         []string `json:"links"`
	IDs           []string `json:"ids"`
	RepeatedIDs   []string `json:"repeatedIDs"`
	BrokenImages  []string `json:"brokenImages"`
	NoAlternative []string `json:"noAlternative"`
	Headings      int      `json:"headings"`
	Mains         int      `json:"mains"`
	Width         int64    `json:"width"`
	LowContrast   []string `json:"lowContrast"`
}

//go:embed audit.js
var auditScript string

// browser is a tab of Chromium.
type browser struct {
	ctx context.Context

	mu       sync.Mutex
	requests []string
	problems []string
}

// newBrowser starts Chromium, and ends it after the test.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	b := &browser{}
	options := []chromedp.ContextOption{chromedp.WithListener(b.observe)}
	if os.Geteuid() == 0 {
		// Chromium does not start its sandbox as root.
		options = append(options, chromedp.WithAllocatorOptions(chromedp.NoSandbox))
	}
	ctx, stop := chromedp.NewContext(context.Background(), options...)
	t.Cleanup(stop)
	b.ctx = ctx
	// The first run starts Chromium, which must not end with the context of a step.
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	return b
}

// observe records the requests of the page, and the errors that the page writes to the console.
func (b *browser) observe(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, e.Request.URL)
	case *runtime.EventExceptionThrown:
		b.problems = append(b.problems, (&chromedp.ExceptionError{ExceptionDetails: e.ExceptionDetails}).Error())
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError {
			b.problems = append(b.problems, fmt.Sprintf("console: %s", e.Args[0].Value))
		}
	case *cdplog.EventEntryAdded:
		if e.Entry.Level == cdplog.EntryLevelError {
			b.problems = append(b.problems, fmt.Sprintf("log: %s %s", e.Entry.Text, e.Entry.URL))
		}
	}
}

// observed returns the records of observe since the last call.
func (b *browser) observed() (requests, problems []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	requests, problems = b.requests, b.problems
	b.requests, b.problems = nil, nil
	return requests, problems
}

// do takes steps that return nothing.
func (b *browser) do(t *testing.T, what string, steps ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, stepTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// run takes one step, and returns its result.
func run[T any](t *testing.T, b *browser, what string, step chromedp.Action[T]) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, stepTimeout)
	defer cancel()
	result, err := chromedp.Run(ctx, step)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return result
}

// show sets the screen and the color scheme.
func (b *browser) show(t *testing.T, v view) {
	t.Helper()
	b.do(t, "show the page on a "+v.name, chromedp.EmulateViewport(v.width, v.height),
		func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
			return cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: v.scheme}},
			})
		})
}

func (b *browser) open(t *testing.T, address string) {
	t.Helper()
	b.do(t, "open "+address, chromedp.Navigate(address))
}

// press presses and releases a key. Other than chromedp.KeyEvent it leaves to the browser whether the key types its
// text: a script can prevent that.
func press(key string) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		down := input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyDown, Key: key, Text: key}
		if result, err := cdp.Call(ctx, target, input.DispatchKeyEvent, down); err != nil {
			return result, err
		}
		up := input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyUp, Key: key}
		return cdp.Call(ctx, target, input.DispatchKeyEvent, up)
	}
}

// waitFor waits until a condition in JavaScript is true. It evaluates the condition again after an error, because the
// browser may be between two pages.
func (b *browser) waitFor(t *testing.T, condition string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, stepTimeout)
	defer cancel()
	for {
		met, err := chromedp.Run(ctx, chromedp.Evaluate[bool](condition))
		switch {
		case met:
			return
		case ctx.Err() != nil:
			t.Fatalf("this did not become true in %v (%v): %s", stepTimeout, err, condition)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// reporter records a defect of the page at an address.
type reporter func(address, format string, a ...any)

// crawl opens all pages that links lead to from base, and returns the addresses of the pages and their defects.
func crawl(t *testing.T, b *browser, base *url.URL, more ...string) (visited, defects []string) {
	t.Helper()
	pages := map[string]page{}
	var report reporter = func(address, format string, a ...any) {
		defects = append(defects, strings.TrimPrefix(address, base.String())+": "+fmt.Sprintf(format, a...))
	}
	queue := []string{base.String()}
	for _, address := range more {
		queue = append(queue, base.String()+address)
	}
	for len(queue) > 0 {
		address := queue[0]
		queue = queue[1:]
		if _, ok := pages[address]; ok {
			continue
		}
		visited = append(visited, strings.TrimPrefix(address, base.String()))
		pages[address] = b.audit(t, base, address, report)
		for _, link := range pages[address].Links {
			if target, _, _ := strings.Cut(link, "#"); strings.HasPrefix(target, base.String()) {
				queue = append(queue, target)
			}
		}
	}
	for _, name := range visited {
		address := base.String() + name
		for _, link := range pages[address].Links {
			if problem := checkLink(link, pages, base); problem != "" {
				report(address, "%s", problem)
			}
		}
	}
	return visited, defects
}

// audit opens a page, and reports its defects, other than of its links.
func (b *browser) audit(t *testing.T, base *url.URL, address string, report reporter) page {
	t.Helper()
	b.observed()
	b.open(t, address)
	var last page
	for _, v := range []view{desktop, phone} {
		b.show(t, v)
		last = run(t, b, "audit "+address, chromedp.Evaluate[page](auditScript))
		if last.Width > v.width {
			report(address, "%d pixels wide on a screen of %d", last.Width, v.width)
		}
		for _, text := range last.LowContrast {
			report(address, "low contrast (%s): %s", v.name, text)
		}
	}
	for _, id := range last.RepeatedIDs {
		report(address, "two elements have the id %s", id)
	}
	for _, image := range last.BrokenImages {
		report(address, "the image %s is missing", strings.TrimPrefix(image, base.String()))
	}
	for _, image := range last.NoAlternative {
		report(address, "the image %s has no alternative text", strings.TrimPrefix(image, base.String()))
	}
	if last.Headings != 1 || last.Mains != 1 {
		report(address, "%d h1 and %d main, want one each", last.Headings, last.Mains)
	}
	requests, problems := b.observed()
	for _, request := range requests {
		if u, err := url.Parse(request); err != nil || u.Scheme != "data" && u.Host != base.Host {
			report(address, "request to %s", request)
		}
	}
	for _, problem := range problems {
		report(address, "%s", problem)
	}
	return last
}

// checkLink returns the problem of a link: a missing page, anchor or file of the repository; or "".
func checkLink(link string, pages map[string]page, base *url.URL) string {
	address, anchor, _ := strings.Cut(link, "#")
	if file, ok := cutAny(address, repository+"/blob/main/", repository+"/tree/main/"); ok {
		if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(file))); err != nil {
			return fmt.Sprintf("link to %s, which is no file of the repository", file)
		}
		return ""
	}
	target, ok := pages[address]
	if !ok || anchor == "" {
		return "" // another site, or a page that has been opened
	}
	anchor, err := url.PathUnescape(anchor)
	if err != nil || !slices.Contains(target.IDs, anchor) {
		return fmt.Sprintf("link to %s, which has no anchor %s", strings.TrimPrefix(address, base.String()), anchor)
	}
	return ""
}

func cutAny(s string, prefixes ...string) (string, bool) {
	for _, prefix := range prefixes {
		if after, ok := strings.CutPrefix(s, prefix); ok {
			return after, true
		}
	}
	return s, false
}
