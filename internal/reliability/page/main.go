// SPDX-License-Identifier: Apache-2.0

// Command page writes docs/reliability.md from the results of the tests of a run.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
)

func main() {
	out := flag.String("o", "docs/reliability.md", "page to write")
	started := flag.Int64("started", 0, "when the tests were started, in seconds since 1970")
	flag.Parse()
	if flag.NArg() != 1 || *started <= 0 {
		fmt.Fprintln(os.Stderr, "usage: page [-o PAGE] -started SECONDS DIRECTORY")
		os.Exit(2)
	}
	if err := write(*out, flag.Arg(0), time.Unix(*started, 0)); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
}

func write(path, dir string, started time.Time) error {
	m, err := reliability.ThisMachine(started)
	if err != nil {
		return err
	}
	var page bytes.Buffer
	if err := reliability.Render(&page, dir, m); err != nil {
		return err
	}
	return os.WriteFile(path, page.Bytes(), 0o644)
}
