// SPDX-License-Identifier: Apache-2.0

package reliability

import (
	_ "embed"
	"fmt"
	"io"
	"runtime"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed page.md.tmpl
var pageTemplate string

// Machine describes the machine and the run of the tests, on which the figures depend.
type Machine struct {
	Kernel, Go, Date string
	CPUs             int
	// Took is the duration of the tests.
	Took time.Duration
}

// ThisMachine describes this machine and a run of tests that began at a time.
func ThisMachine(started time.Time) (Machine, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Machine{}, err
	}
	release, _, _ := strings.Cut(unix.ByteSliceToString(name.Release[:]), "-") // The rest names the builder.
	return Machine{
		Kernel: release, Go: runtime.Version(), CPUs: runtime.NumCPU(), Date: time.Now().UTC().Format(time.DateOnly),
		Took: time.Since(started),
	}, nil
}

// Minutes returns the duration of the tests in whole minutes.
func (m Machine) Minutes() float64 { return m.Took.Round(time.Minute).Minutes() }

type row struct {
	Promise
	Shown []line
}

// Render writes the page from the files that the tests of a run wrote to dir. If a promise was not shown, it returns an
// error.
func Render(w io.Writer, dir string, m Machine) error {
	lines, err := read(dir)
	if err != nil {
		return err
	}
	var rows []row
	var missing []string
	for _, p := range Promises() {
		r := row{Promise: p}
		for _, l := range lines {
			if l.ID == p.ID {
				r.Shown = append(r.Shown, l)
			}
		}
		if r.Shown == nil {
			missing = append(missing, p.ID)
		}
		rows = append(rows, r)
	}
	if missing != nil {
		return fmt.Errorf("no test showed %s", strings.Join(missing, ", "))
	}
	page, err := template.New("page").Parse(pageTemplate)
	if err != nil {
		return err
	}
	return page.Execute(w, struct {
		Machine
		Rows []row
	}{m, rows})
}
