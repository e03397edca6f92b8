// SPDX-License-Identifier: Apache-2.0

//go:build linux && vm

// Package selinux tests, in a virtual machine with SELinux, who can read a volume. The policy is policy.cil of make vm.
package selinux

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/vm/guest"
)

const (
	containerDomain = "system_u:system_r:container_t:s0"
	driverDomain    = "system_u:system_r:spc_t:s0"
	containerFile   = "system_u:object_r:container_file_t:s0"
	plainTmpfs      = "system_u:object_r:tmpfs_t:s0"
	content         = "hello"
)

func TestMain(m *testing.M) {
	testkit.RunHelper(map[string]func([]string) error{"enter": enter, "read": read})
	testkit.RunInMountNamespace(m)
}

// enter becomes the helper "read" in the domain args[0].
func enter(args []string) error {
	if err := os.WriteFile("/proc/self/attr/exec", []byte(args[0]), 0); err != nil {
		return err
	}
	// The program is started by its path: /proc/self/exe leads to a mount of the namespace from which this process came.
	// The kernel treats that mount as nosuid, and permits no transition there.
	program, err := os.Executable()
	if err != nil {
		return err
	}
	return unix.Exec(program, append([]string{"read"}, args[1:]...), append(os.Environ(), "FSUSER_TEST_HELPER=read"))
}

// reading is the result of reading a file.
type reading struct {
	Domain, Label, Content string
	Errno                  unix.Errno
}

// read reads the file args[0] and prints a reading.
func read(args []string) error {
	domain, err := os.ReadFile("/proc/self/attr/current")
	if err != nil {
		return err
	}
	r := reading{Domain: unix.ByteSliceToString(domain)}
	label := make([]byte, 256)
	_, labelErr := unix.Getxattr(args[0], "security.selinux", label)
	r.Label = unix.ByteSliceToString(label)
	b, err := os.ReadFile(args[0])
	r.Content = string(b)
	errors.As(errors.Join(err, labelErr), &r.Errno)
	return json.NewEncoder(os.Stdout).Encode(r)
}

// readIn reads a file in a process of the domain.
func readIn(t *testing.T, domain, path string) (r reading) {
	t.Helper()
	out, err := testkit.Helper(t, false, "enter", domain, path).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%v: %s", err, exit.Stderr)
	}
	if err := errors.Join(err, json.Unmarshal(out, &r)); err != nil {
		t.Fatal(err)
	}
	return r
}

// hideSELinux unmounts /sys/fs/selinux in the mount namespace of the tests, because a container does not have it.
func hideSELinux(t *testing.T) {
	t.Helper()
	const dir = "/sys/fs/selinux"
	err := unix.Unmount(dir, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL means that an earlier test has unmounted it.
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + "/enforce"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("%s is still there: %v", dir, err)
	}
}

// writeManifest writes a manifest under another name and renames it, as an editor does.
func writeManifest(t *testing.T, dir, name, text string) {
	t.Helper()
	hidden := filepath.Join(dir, "."+name)
	err := os.WriteFile(hidden, []byte(text), 0o600)
	if err := errors.Join(err, os.Rename(hidden, filepath.Join(dir, name))); err != nil {
		t.Fatal(err)
	}
}

// secretOf returns the manifest of the Secret of the tests.
func secretOf(data string) string {
	return "apiVersion: v1\nkind: Secret\nmetadata: {name: keys, namespace: default}\nstringData: {" + data + "}\n"
}

// startDriver starts a driver in the domain of privileged containers.
func startDriver(t *testing.T, manifests string, args ...string) *testkit.Driver {
	t.Helper()
	// The setting applies to the next program that this thread starts.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const exec = "/proc/thread-self/attr/exec"
	if err := os.WriteFile(exec, []byte(driverDomain), 0); err != nil {
		t.Fatal(err)
	}
	d := testkit.StartDriver(t, testkit.BuildDriver(t), append([]string{"--manifests=" + manifests}, args...)...)
	if err := os.WriteFile(exec, nil, 0); err != nil {
		t.Fatal(err)
	}
	domain, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", d.PID()))
	if err != nil || unix.ByteSliceToString(domain) != driverDomain {
		t.Fatalf("the driver is in the domain %q: %v", domain, err)
	}
	return d
}

var pod = kubelet.Pod{Namespace: "default", Name: "p", UID: "6f0a3c1e-0000-4000-8000-000000000001"}

// publish publishes a volume of the pod, which is unpublished when t ends.
func publish(t *testing.T, d *testkit.Driver, attributes map[string]string) (target string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	target, err := d.Publish(ctx, pod, kubelet.Volume{Name: "v", Attributes: attributes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.Unpublish(ctx, pod, "v"), d.RemovePod(pod)); err != nil {
			t.Error(err)
		}
	})
	return target
}

func TestAContainerReadsAVolumeWithItsLabelAndNoOther(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		want reading
	}{
		{"by default", nil, reading{containerDomain, containerFile, content, 0}},
		{"without context=", []string{"--selinux-context="}, reading{containerDomain, plainTmpfs, "", unix.EACCES}},
	} {
		t.Run(test.name, func(t *testing.T) {
			hideSELinux(t)
			testkit.NothingLeft(t)
			manifests := t.TempDir()
			writeManifest(t, manifests, "secret.yaml", secretOf("key: "+content))
			d := startDriver(t, manifests, test.args...)
			target := publish(t, d, map[string]string{"secretName": "keys", "uid": "0", "mode": "0444"})
			t.Setenv("TMPDIR", "/") // A container may search this directory.
			dir, _ := testkit.AsContainer(t, target)
			path := filepath.Join(dir, "key")
			got := readIn(t, containerDomain, path)
			if got.Label == "" { // The container lacks the permission getattr for getxattr.
				got.Label = readIn(t, driverDomain, path).Label
			}
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if privileged := readIn(t, driverDomain, path); privileged.Content != content {
				t.Errorf("the driver's own domain: %+v", privileged)
			}
			outcome := fmt.Sprintf("reads %q", got.Content)
			if got.Errno != 0 {
				outcome = "does not read the file: " + got.Errno.Error()
			}
			seen := fmt.Sprintf("Volume %s, label `%s`: a process in `%s` %s", test.name, got.Label, got.Domain, outcome)
			if err := guest.Write(os.Stdout, guest.Report{Seen: seen}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAContextThatThePolicyDoesNotHaveIsRefusedAtTheStart(t *testing.T) {
	hideSELinux(t)
	root := testkit.SharedDir(t)
	if err := kubelet.MakeRoot(root); err != nil {
		t.Fatal(err)
	}
	const context = "system_u:object_r:ephemeral_t:s0" // the context on Talos
	out, err := exec.CommandContext(t.Context(), testkit.BuildDriver(t), "node", "--node-name=n", "--kubelet-root="+root,
		"--state-dir="+t.TempDir(), "--manifests="+t.TempDir(), "--selinux-context="+context).CombinedOutput()
	for _, want := range []string{
		"--selinux-context: ", "this node's SELinux policy refuses the context", "context=" + context,
	} {
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("the driver says %q (%v), want %q", out, err, want)
		}
	}
	if strings.Count(string(out), "\n") != 1 {
		t.Errorf("more than a line: %s", out)
	}
}

// The labels of files count as inodes of the tmpfs. They must not take the room for the next version.
func TestAVolumeWithoutContextHasRoomForItsLabels(t *testing.T) {
	hideSELinux(t)
	testkit.NothingLeft(t)
	const files = 200
	secret := func(version string) string {
		var data strings.Builder
		for n := range files {
			fmt.Fprintf(&data, "k%d: %s, ", n, version)
		}
		return secretOf(data.String())
	}
	var items strings.Builder
	for n := range files {
		fmt.Fprintf(&items, "{key: k%d, path: dir/k%[1]d}, ", n)
	}
	manifests := t.TempDir()
	writeManifest(t, manifests, "secret.yaml", secret("first"))
	writeManifest(t, manifests, "pod.yaml", fmt.Sprintf("apiVersion: v1\nkind: Pod\n"+
		"metadata: {name: %s, namespace: %s, uid: %s}\nspec:\n  containers: [{name: c}]\n  volumes:\n"+
		"  - {name: keys, secret: {secretName: keys, items: [%s]}}\n", pod.Name, pod.Namespace, pod.UID, items.String()))
	d := startDriver(t, manifests, "--selinux-context=")
	target := publish(t, d, map[string]string{"volume": "keys", "uid": "0"})
	writeManifest(t, manifests, "secret.yaml", secret("second"))
	testkit.Eventually(t, 2*time.Minute, "the second version", func() bool {
		b, err := os.ReadFile(filepath.Join(target, "dir", "k0"))
		return err == nil && string(b) == "second"
	})
}
