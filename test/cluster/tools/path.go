// SPDX-License-Identifier: Apache-2.0

package tools

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const rootModule = "github.com/fsuser-csi/fsuser-csi"

// Path returns the path of the binary of a tool, for a cluster of this Kubernetes. If the binary has not been built,
// the error explains how to build it.
func Path(k Kubernetes, name string) (string, error) {
	t, err := Lookup(k, name)
	if err != nil {
		return "", err
	}
	path, err := t.Binary()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s %s is not built (no %s): run: make %s%s",
			t.Name, t.Version, path, t.Target, k.makeArgument())
	} else if err != nil {
		return "", fmt.Errorf("find %s: %w", t.Name, err)
	}
	return path, nil
}

// Binary returns the path of the tool's binary, which need not be built yet.
func (t Tool) Binary() (string, error) {
	cache, err := Cache()
	if err != nil {
		return "", err
	}
	return filepath.Join(cache, "bin", t.Name+"-"+t.Version, t.Name), nil
}

// ModuleDir returns the folder of the tool's module.
func (t Tool) ModuleDir() (string, error) {
	root, err := Repository()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "test", "cluster", t.Dir), nil
}

// Cache returns the cache folder; see the package comment.
func Cache() (string, error) {
	if dir := os.Getenv("FSUSER_CACHE"); dir != "" {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return "", fmt.Errorf("resolve FSUSER_CACHE: %w", err)
		}
		return abs, nil
	}
	root, err := Repository()
	if err != nil {
		return "", fmt.Errorf("%w (FSUSER_CACHE can name the cache folder instead)", err)
	}
	return filepath.Join(root, ".cache"), nil
}

// Repository finds the root of the repository above the working directory, which for a test is its package's folder.
// runtime.Caller is not enough, because it has no folders after a build with -trimpath.
func Repository() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the repository: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("find the repository: %w", err)
		}
		for line := range strings.Lines(string(content)) {
			if strings.TrimSpace(line) == "module "+rootModule {
				return dir, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the repository: neither %s nor a folder above it is module %s", start, rootModule)
		}
	}
}
