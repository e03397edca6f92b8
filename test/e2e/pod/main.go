// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command pod is the program in the pods of the end-to-end tests:
//
//	pod                 do nothing until SIGTERM
//	pod get <url>       print the answer of an HTTP server
//	pod watch <file>... print each file as `<file> <content>` now, whenever ..data of its directory is replaced, and when
//	                    its name appears, which for a new key is a moment after ..data, as in kubelet
//	pod reload <file>   print the file as `<file> <content>` now and at each SIGHUP
//	pod list <path>...  print the tree below each path, as JSON of a []tree.Entry
//
// Like a reloader in a container, watch uses only inotify events. The program ends at SIGTERM.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/fsuser-csi/fsuser-csi/test/tree"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	var err error
	switch {
	case len(os.Args) == 1:
		<-ctx.Done()
	case os.Args[1] == "watch":
		err = watch(ctx, os.Args[2:])
	case os.Args[1] == "reload" && len(os.Args) == 3:
		reload(ctx, os.Args[2])
	case os.Args[1] == "get" && len(os.Args) == 3:
		err = get(ctx, os.Args[2])
	case os.Args[1] == "list":
		err = list(os.Args[2:])
	default:
		err = errors.New("say nothing, or: get <url>, or: watch <file>..., or: reload <file>, or: list <path>...")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}

// get replaces wget of the static busybox, which crashes without a DNS server.
func get(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}

func list(paths []string) error {
	all := map[string][]tree.Entry{}
	for _, path := range paths {
		entries, err := tree.Read(path)
		if err != nil {
			entries = []tree.Entry{{Path: ".", Type: "?", Text: err.Error()}}
		}
		all[path] = entries
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}

func watch(ctx context.Context, files []string) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	for _, file := range files {
		if err := w.Add(filepath.Dir(file)); err != nil {
			return err
		}
	}
	for _, file := range files {
		show(file)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-w.Errors:
			return err
		case e := <-w.Events:
			if !e.Has(fsnotify.Create) {
				continue
			}
			for _, file := range files {
				if e.Name == file || e.Name == filepath.Join(filepath.Dir(file), "..data") {
					show(file)
				}
			}
		}
	}
}

func reload(ctx context.Context, file string) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	for {
		show(file)
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
	}
}

func show(file string) {
	content, err := os.ReadFile(file)
	if err != nil {
		fmt.Printf("%s error: %v\n", file, err)
		return
	}
	fmt.Printf("%s %s\n", file, strings.TrimSpace(string(content)))
}
