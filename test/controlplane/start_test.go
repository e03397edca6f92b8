// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStartFailures(t *testing.T) {
	requireBinaries(t)
	notEmpty := t.TempDir()
	if err := os.WriteFile(filepath.Join(notEmpty, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, test := range map[string]struct {
		ctx     context.Context
		options Options
		cache   string // FSUSER_CACHE
		want    string
	}{
		"the binaries are missing": {
			cache: t.TempDir(), want: "run: make control-plane",
		},
		"the folder is not empty": {
			options: Options{Dir: notEmpty}, want: "not empty",
		},
		"the context has ended": {
			ctx: cancelled, want: "context canceled",
		},
		"the API server ends by itself": {
			options: Options{ExtraArgs: []string{"--no-such-flag"}}, want: "unknown flag: --no-such-flag",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			if test.cache != "" {
				t.Setenv("FSUSER_CACHE", test.cache)
			}
			if test.ctx == nil {
				test.ctx = testContext(t)
			}
			cp, err := Start(test.ctx, test.options)
			if err == nil {
				cp.Stop()
				t.Fatal("Start succeeded")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not say %q", err, test.want)
			}
			left, err := os.ReadDir(os.Getenv("TMPDIR"))
			if err != nil {
				t.Fatal(err)
			}
			if len(left) > 0 {
				t.Errorf("left %s", left[0].Name())
			}
		})
	}
}

func TestDirAndLog(t *testing.T) {
	ctx := testContext(t)
	dir := filepath.Join(t.TempDir(), "sub", "folder")
	var log bytes.Buffer
	cp, err := Start(ctx, Options{Dir: dir, Log: &log, ExtraArgs: []string{"--v=1"}})
	if err != nil {
		t.Fatal(err)
	}
	cp.Stop()
	if _, err := os.Stat(filepath.Join(dir, "etcd")); err != nil {
		t.Errorf("look for the data in the caller's folder: %v", err)
	}
	if !strings.Contains(log.String(), "--v=") {
		t.Errorf("the log has not the API server's flags:\n%s", log.String())
	}
	if _, err := Start(ctx, Options{Dir: dir}); !errors.Is(err, errNotEmpty) {
		t.Errorf("start in the same folder: error %v, want %v", err, errNotEmpty)
	}
}
