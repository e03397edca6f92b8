// SPDX-License-Identifier: Apache-2.0

package reliability

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestPromisesHaveEachTheirID(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range Promises() {
		if seen[p.ID] || p.Fault == "" || p.Text == "" || strings.ContainsAny(p.Fault+p.Text, "|\n") {
			t.Errorf("promise %+v: the id is taken, or a text is empty or has more than one line or a |", p)
		}
		seen[p.ID] = true
	}
}

func TestWhatATestShowsIsOnThePage(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(Directory, dir)
	for _, p := range Promises() {
		t.Run(p.ID, func(t *testing.T) { Shown(t, p.ID, "figure of "+p.ID) })
	}
	t.Run("once more", func(t *testing.T) { Shown(t, "F-01", "another figure") })
	var page bytes.Buffer
	if err := Render(&page, dir, Machine{Kernel: "6.1", Go: "go1.26", CPUs: 2, Date: "2026-01-02",
		Took: 47*time.Minute + 20*time.Second}); err != nil {
		t.Fatal(err)
	}
	for _, p := range Promises() {
		if want := "figure of " + p.ID; !strings.Contains(page.String(), want) || !strings.Contains(page.String(), p.Text) {
			t.Errorf("the page lacks %q, or its text", want)
		}
	}
	if want := "This run: 2026-01-02, Linux 6.1, 2 CPUs, go1.26, 47 minutes."; !strings.Contains(page.String(), want) {
		t.Errorf("the page lacks %q", want)
	}
	if want := "`internal/reliability TestWhatATestShowsIsOnThePage/F-01`<br>`internal/reliability " +
		"TestWhatATestShowsIsOnThePage/once_more` | figure of F-01<br>another figure |"; !strings.Contains(page.String(),
		want) {
		t.Errorf("the page lacks %q:\n%s", want, page.String())
	}
}

func TestAPromiseThatNoTestShowedIsAnError(t *testing.T) {
	dir := t.TempDir()
	if err := Render(&bytes.Buffer{}, dir, Machine{}); err == nil || !strings.Contains(err.Error(), Directory) {
		t.Errorf("a directory without a run: %v", err)
	}
	t.Setenv(Directory, dir)
	t.Run("one", func(t *testing.T) { Shown(t, "F-02", "a figure") })
	t.Run("a test that failed", func(t *testing.T) {
		failed := &failedTest{TB: t}
		Shown(failed, "F-03", "a figure")
		for _, f := range failed.cleanups {
			f()
		}
	})
	err := Render(&bytes.Buffer{}, dir, Machine{})
	if err == nil || !strings.HasPrefix(err.Error(), "no test showed F-01, F-03, F-04") {
		t.Errorf("the missing promises are not told: %v", err)
	}
}

// failedTest is a test that fails after it has called Shown.
type failedTest struct {
	testing.TB
	cleanups []func()
}

func (f *failedTest) Failed() bool           { return true }
func (f *failedTest) Cleanup(cleanup func()) { f.cleanups = append(f.cleanups, cleanup) }
