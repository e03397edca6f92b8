// SPDX-License-Identifier: Apache-2.0

package repository

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A rebuild of a release must have the same bytes, in any directory.
func TestTheBuildIsReproducible(t *testing.T) {
	list, err := exec.Command("git", "ls-files", "-z", "--", "Makefile", "go.mod", "go.sum", "cmd", "internal",
		"pkg").Output()
	if err != nil {
		t.Fatal(err)
	}
	build := func(dir string) []byte {
		t.Helper()
		for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
			source, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			to := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, source, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("make", "build", "VERSION=v0")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make build: %v\n%s", err, out)
		}
		binary, err := os.ReadFile(filepath.Join(dir, "bin", "fsuser-csi"))
		if err != nil {
			t.Fatal(err)
		}
		return binary
	}
	here := t.TempDir()
	there := filepath.Join(t.TempDir(), "somewhere", "else")
	first, second := build(here), build(there)
	if !bytes.Equal(first, second) {
		t.Errorf("the builds in two directories differ: %d and %d bytes", len(first), len(second))
	}
	if bytes.Contains(first, []byte(here)) {
		t.Error("the binary has the path of its source in it")
	}
}

// TestLicences checks that the licence of each module in the driver's binary permits redistribution, and is permissive.
func TestLicences(t *testing.T) {
	out, err := exec.Command("go", "list", "-tags", "grpcnotrace", "-deps", "-f",
		"{{with .Module}}{{.Path}}\t{{.Dir}}{{end}}", "./cmd/fsuser-csi").Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if path, dir, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			modules[path] = dir
		}
	}
	if len(modules) < 30 {
		t.Fatalf("only %d modules were found", len(modules))
	}
	for path, dir := range modules {
		if text := licence(t, dir); !permissive(text) {
			t.Errorf("%s: no permissive licence is known in %.200q", path, text)
		}
	}
}

// licence returns the text of all licence files at the top of a module.
func licence(t *testing.T, dir string) (text string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := strings.ToUpper(e.Name()); e.IsDir() || !strings.HasPrefix(name, "LICENSE") &&
			!strings.HasPrefix(name, "LICENCE") && name != "COPYING" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		text += string(b)
	}
	return strings.Join(strings.Fields(text), " ")
}

// permissive recognises Apache 2.0, MIT, ISC, and BSD with two or three clauses (also in a choice of licences), by a
// sentence that no other licence contains.
func permissive(text string) bool {
	for _, sentence := range []string{
		"SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only", // libcap; the project chooses BSD
		"Apache License Version 2.0, January 2004",
		"Permission is hereby granted, free of charge, to any person obtaining a copy",
		"Permission to use, copy, modify, and distribute this software for any purpose with or without fee is hereby granted",
		"Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby " +
			"granted",
		"Redistribution and use in source and binary forms, with or without modification, are permitted provided that the " +
			"following conditions are met",
	} {
		if strings.Contains(text, sentence) {
			return true
		}
	}
	return false
}
