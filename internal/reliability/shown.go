// SPDX-License-Identifier: Apache-2.0

package reliability

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const (
	// Directory is the environment variable that names the directory of the results. Without it, Shown writes nothing.
	Directory = "FSUSER_RELIABILITY"
	// fileName is the file of all packages of a run. Each line is written with one call (write(2), O_APPEND).
	fileName = "shown.jsonl"
	module   = "github.com/fsuser-csi/fsuser-csi/"
)

// line records that one test has shown one promise.
type line struct {
	ID      string `json:"id"`
	Package string `json:"package"`
	Test    string `json:"test"`
	Figure  string `json:"figure"`
}

// Shown records that t has shown a promise, with a figure in a few words: a number, a duration ("612 kills at 31
// points"). It has no effect if t has failed by its end. Several tests may show one promise. Call it from the test
// itself, at its end.
func Shown(t testing.TB, id, figure string) {
	t.Helper()
	if !slices.ContainsFunc(Promises(), func(p Promise) bool { return p.ID == id }) {
		t.Fatalf("there is no promise %s; add it to reliability.Promises", id)
	}
	if figure == "" || strings.ContainsAny(figure, "|\n") {
		t.Fatalf("the figure %q for %s must be one line of text without |", figure, id)
	}
	dir := os.Getenv(Directory)
	if dir == "" {
		return
	}
	l := line{ID: id, Package: callingPackage(), Test: t.Name(), Figure: figure}
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		if err := l.appendTo(filepath.Join(dir, fileName)); err != nil {
			t.Errorf("write what was shown: %v", err)
		}
	})
}

// callingPackage returns the package of the test that called Shown, relative to the module.
func callingPackage() string {
	pc, _, _, _ := runtime.Caller(2)
	name := runtime.FuncForPC(pc).Name()
	slash := strings.LastIndexByte(name, '/') + 1
	pkg, _, _ := strings.Cut(name[slash:], ".")
	return strings.TrimPrefix(name[:slash]+pkg, module)
}

func (l line) appendTo(path string) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}

// read returns the results of the tests of a run.
func read(dir string) ([]line, error) {
	f, err := os.Open(filepath.Join(dir, fileName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no %s: did the tests run with %s set to it?", dir, fileName, Directory)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var lines []line
	for d := json.NewDecoder(bufio.NewReader(f)); ; {
		var l line
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			return lines, nil
		} else if err != nil {
			return nil, fmt.Errorf("read %s: %w", f.Name(), err)
		}
		lines = append(lines, l)
	}
}
