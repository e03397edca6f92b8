// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestALogInJSON(t *testing.T) {
	testkit.NothingLeft(t)
	manifests := t.TempDir()
	secret := "apiVersion: v1\nkind: Secret\nmetadata: {name: keys, namespace: default}\nstringData: {k: the content}\n"
	if err := os.WriteFile(filepath.Join(manifests, "keys.yaml"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	d := testkit.StartDriver(t, testkit.BuildDriver(t), "--manifests="+manifests, "--log-format=json", "-v=5")
	pod := kubelet.Pod{Namespace: "default", Name: "git", UID: "11111111-1111-1111-1111-111111111111"}
	volume := func(name, uid string) kubelet.Volume {
		return kubelet.Volume{Name: name, Attributes: map[string]string{"secretName": "keys", "uid": uid}}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := d.Publish(ctx, pod, volume("ssh", "1000")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Publish(ctx, pod, volume("bad", "me")); status.Code(err) != codes.InvalidArgument {
		t.Fatal(err)
	}
	if err := d.Unpublish(ctx, pod, "ssh"); err != nil {
		t.Fatal(err)
	}
	d.Stop()
	lines := testkit.JSONLines(t, d.Log())
	id, badID := kubelet.VolumeID(pod, "ssh"), kubelet.VolumeID(pod, "bad")
	for _, want := range []map[string]any{
		{"level": "INFO", "msg": "Starting", "node": "node-1"},
		{"level": "INFO", "msg": "Published", "method": "NodePublishVolume", "volume": id,
			"pod": map[string]any{"name": "git", "namespace": "default"}, "object": `Secret "default/keys"`, "uid": int64(1000)},
		{"level": "DEBUG", "msg": "Call", "method": "NodePublishVolume", "volume": id},
		{"level": "ERROR", "msg": "Call failed", "method": "NodePublishVolume", "volume": badID},
		{"level": "INFO", "msg": "Unpublished", "method": "NodeUnpublishVolume", "volume": id},
	} {
		has(t, lines, want)
	}
}

// has checks that one of the lines has these fields.
func has(t *testing.T, lines []map[string]any, fields map[string]any) {
	t.Helper()
	if !slices.ContainsFunc(lines, func(line map[string]any) bool {
		for key, value := range fields {
			if !reflect.DeepEqual(line[key], value) {
				return false
			}
		}
		return true
	}) {
		t.Errorf("no line with %v in:\n%v", fields, lines)
	}
}

// TestLogInJSONOfLibraries: the libraries of the driver log in the same format as the driver. Klog, gRPC and the
// standard library have one logger for the process, so a process of its own calls them.
func TestLogInJSONOfLibraries(t *testing.T) {
	cmd := testkit.Helper(t, false, "logInJSON")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	lines := testkit.JSONLines(t, stderr.String())
	for _, want := range []map[string]any{
		{"level": "INFO", "msg": "info", "key": "value", "took": "1.5s"},
		{"level": "ERROR", "msg": "error", "err": "the reason"},
		{"level": "DEBUG", "msg": "at verbosity 2"},
		{"level": "DEBUG", "msg": "at verbosity 2, by a context", "volume": "v"},
		{"level": "INFO", "msg": "formatted 1"},
		{"level": "ERROR", "msg": "formatted 2"},
		{"level": "ERROR", "msg": "by package log"},
	} {
		has(t, lines, want)
	}
	// Package log, and gRPC with it, do not tell the source.
	last := fmt.Sprint(lines[len(lines)-1]["msg"])
	if len(lines) != 8 || !strings.HasSuffix(last, "by gRPC") {
		t.Fatalf("%d lines, want 8, and one by gRPC at the end: %v", len(lines), lines)
	}
	for _, line := range lines[:6] {
		if source, _ := line["source"].(map[string]any); filepath.Base(fmt.Sprint(source["file"])) != "log_test.go" {
			t.Errorf("the source of %q is %v", line["msg"], source)
		}
	}
}

// logInJSON logs through each library.
func logInJSON([]string) error {
	if err := (nodeOptions{logFormat: logJSON, verbosity: 2}).setUpLog(); err != nil {
		return err
	}
	klog.InfoS("info", "key", "value", "took", 1500*time.Millisecond)
	klog.ErrorS(errors.New("the reason"), "error")
	klog.V(2).InfoS("at verbosity 2")
	klog.V(3).InfoS("at verbosity 3")
	ctx := klog.NewContext(context.Background(), klog.LoggerWithValues(klog.Background(), "volume", "v"))
	klog.FromContext(ctx).V(2).Info("at verbosity 2, by a context")
	klog.FromContext(ctx).V(3).Info("at verbosity 3, by a context")
	klog.Warningf("formatted %d", 1)
	klog.Errorf("formatted %d", 2)
	log.Print("by package log")
	grpclog.Component("test").Info("by gRPC, and not an error")
	grpclog.Component("test").Error("by gRPC")
	return nil
}
