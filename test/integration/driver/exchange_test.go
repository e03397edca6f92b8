// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// exchange is a process that exchanges two names again and again until the end of its input. At the end it makes sure
// that the first is a directory, or does not exist, as at the beginning. The process has a mount namespace of its own,
// so that the driver's mounts do not prevent the move of a directory (rename(2) fails with EBUSY only for visible
// mounts). It prints the number of exchanges after the first one and after each hundredth.
func exchange(args []string) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	var ended atomic.Bool
	go func() {
		io.Copy(io.Discard, os.Stdin)
		ended.Store(true)
	}()
	for done := 0; ; {
		if ended.Load() {
			if st, err := os.Lstat(args[0]); err != nil || st.IsDir() {
				return nil
			}
		}
		err := unix.Renameat2(unix.AT_FDCWD, args[0], unix.AT_FDCWD, args[1], unix.RENAME_EXCHANGE)
		// The driver removes the target and makes it again.
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		if err == nil {
			if done++; done%100 == 1 {
				fmt.Println(done)
			}
		}
	}
}

// exchangeAttack exchanges a component of the target path with something else.
type exchangeAttack struct {
	name string
	// component is the number of directories between the component and the target.
	component int
	// place makes the other side of the exchange. A link leads to the victim.
	place func(path, victim string) error
}

// H-038 of docs/hostile-inputs.md, and CVE-2021-25741: an attacker exchanges a component of the target path with a link
// to a directory of another owner, while the driver publishes, refreshes and unpublishes.
func TestExchangedPaths(t *testing.T) {
	rounds := 100
	if os.Getenv("FSUSER_TORTURE") != "" {
		rounds = 2000
	}
	binary := testkit.BuildDriver(t)
	link := func(path, victim string) error { return os.Symlink(victim, path) }
	node := func(kind uint32) func(string, string) error {
		return func(path, _ string) error { return unix.Mknod(path, kind|0o600, 0) }
	}
	for _, attack := range []exchangeAttack{
		{"the target with a link", 0, link}, {"the target with a file", 0, node(unix.S_IFREG)},
		{"the target with a pipe", 0, node(unix.S_IFIFO)},
		{"the target with a socket", 0, node(unix.S_IFSOCK)},
		{"the volume's directory with a link", 1, link}, {"the directory of volumes with a link", 3, link},
		{"the pod's directory with a link", 4, link},
	} {
		t.Run(attack.name, func(t *testing.T) {
			calls, exchanges := exchangedPath(t, binary, attack, rounds)
			reliability.Shown(t, "F-37", fmt.Sprintf("%s: %d calls against %d exchanges", attack.name, calls, exchanges))
		})
	}
}

func exchangedPath(t *testing.T, binary string, attack exchangeAttack, rounds int) (calls, exchanges int) {
	nothingLeft(t)
	manifests := t.TempDir()
	write := func(version int) {
		t.Helper()
		text := fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: keys, namespace: default}\nstringData: {k: "+
			"version %d}\n", version)
		if err := errors.Join(os.WriteFile(filepath.Join(manifests, ".new"), []byte(text), 0o600),
			os.Rename(filepath.Join(manifests, ".new"), filepath.Join(manifests, "keys.yaml"))); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	d := testkit.StartDriver(t, binary, "--manifests="+manifests)
	p, v := pod("exchanged"), ssh("secretName", "keys")
	target := d.Target(p, "ssh")
	component := target
	for range attack.component {
		component = filepath.Dir(component)
	}

	// The victim contains the rest of the path, so that only the check for links protects it.
	victim := filepath.Join(d.Root, "victim")
	below := filepath.Join(victim, strings.TrimPrefix(target, component))
	for _, dir := range []string{filepath.Dir(target), below} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(filepath.Dir(component), "other")
	if attack.component == 0 {
		// The driver would mount on an empty victim.
		if err := os.Mkdir(target, 0o750); err != nil {
			t.Fatal(err)
		}
	} else if err := os.WriteFile(filepath.Join(victim, "file"), []byte("the victim's"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chown(victim, 12, 34), attack.place(other, victim)); err != nil {
		t.Fatal(err)
	}
	// The victim is a mount, too. An unmount through the link would remove the mount.
	if err := unix.Mount(victim, victim, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(victim, 0); err != nil {
			t.Error(err)
		}
	})
	untouched, before := listing(t, victim), testkit.MountTable(t)

	attacker := testkit.Helper(t, true, "exchange", component, other)
	output, err := os.Create(filepath.Join(t.TempDir(), "exchanged"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	attacker.Stdout, attacker.Stderr = output, os.Stderr
	stop, err := attacker.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := attacker.Start(); err != nil {
		t.Fatal(err)
	}
	exchanged := func() int {
		b, err := os.ReadFile(output.Name())
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Fields(string(b))
		if len(lines) == 0 {
			return 0
		}
		n, err := strconv.Atoi(lines[len(lines)-1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	testkit.Eventually(t, 30*time.Second, "the first exchange", func() bool { return exchanged() > 0 })
	answers := map[codes.Code]int{}
	count := func(err error) {
		answers[status.Code(err)]++
		switch status.Code(err) {
		case codes.OK, codes.FailedPrecondition:
		case codes.Unavailable: // An undo or an unmount failed. Kubelet calls again.
		case codes.Internal:
			// The link appeared between two system calls, so the error is that of the second one.
			if !slices.ContainsFunc([]string{"symbolic link", "no such file", "not a directory", "umount2"},
				func(s string) bool { return strings.Contains(err.Error(), s) }) {
				t.Errorf("%v", err)
			}
		default:
			t.Errorf("%v", err)
		}
	}
	request := d.Request(p, v)
	for i := range rounds {
		_, err := d.NodePublishVolume(deadline(t), request)
		count(err)
		write(i + 1) // causes a refresh at some time
		_, err = d.NodePublishVolume(deadline(t), request)
		count(err)
		_, err = d.NodeUnpublishVolume(deadline(t),
			&csi.NodeUnpublishVolumeRequest{VolumeId: request.VolumeId, TargetPath: target})
		count(err)
		if mounts := testkit.MountsBelow(t, victim); len(mounts) != 1 {
			t.Fatalf("the mounts at and below the victim's directory are %q, before it was one", mounts)
		}
		if i%20 == 0 {
			if now := listing(t, victim); !slices.Equal(now, untouched) {
				t.Fatalf("the victim's directory is\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(untouched, "\n"))
			}
		}
	}
	if err := errors.Join(stop.Close(), attacker.Wait()); err != nil {
		t.Fatal(err)
	}
	if exchanged() < 100 || answers[codes.OK] == 0 || answers[codes.FailedPrecondition] == 0 {
		t.Errorf("too little happened: %d exchanges, answers %v", exchanged(), answers)
	}
	t.Logf("%d calls against %d exchanges: %v", 3*rounds, exchanged(), answers)

	// The path is the original one again. Now unpublish succeeds and leaves nothing, regardless of where the mount moved
	// with its directory.
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 30*time.Second, "unpublish to succeed", func() bool {
		_, err := d.NodeUnpublishVolume(deadline(t),
			&csi.NodeUnpublishVolumeRequest{VolumeId: request.VolumeId, TargetPath: target})
		return err == nil
	})
	if now := listing(t, victim); !slices.Equal(now, untouched) {
		t.Errorf("the victim's directory is\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(untouched, "\n"))
	}
	if now := testkit.MountTable(t); now != before {
		t.Errorf("the mount table is not as before:\n%s\nbefore:\n%s", now, before)
	}
	if records := d.Records(); len(records) > 0 {
		t.Errorf("records are left: %q", records)
	}
	if n := d.Metric("fsuser_watched_objects"); n != 0 {
		t.Errorf("%v objects are still watched", n)
	}
	if n := d.Metric("fsuser_volumes"); n != 0 {
		t.Errorf("%v volumes are left", n)
	}
	return 3 * rounds, exchanged()
}
