// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BuildDriver builds the driver, with additional build tags, and with the race detector if the test has it. It
// returns the path of a file that is removed when t ends.
func BuildDriver(t testing.TB, tags ...string) string {
	t.Helper()
	return buildFor(t, raceEnabled, tags)
}

// BuildDriverWithoutRace is BuildDriver without the race detector, for tests that start the driver hundreds of times
// or measure its memory.
func BuildDriverWithoutRace(t testing.TB, tags ...string) string {
	t.Helper()
	return buildFor(t, false, tags)
}

func buildFor(t testing.TB, race bool, tags []string) string {
	t.Helper()
	binary, remove, err := build(race, tags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(remove)
	return binary
}

// Build is BuildDriver for more than one test. The file exists until remove is called.
func Build() (binary string, remove func(), err error) { return build(raceEnabled, nil) }

// builtDriver is the environment variable with the path of a driver that is built already, for a machine without a Go
// toolchain.
const builtDriver = "FSUSER_TEST_DRIVER"

func build(race bool, tags []string) (binary string, remove func(), err error) {
	if built := os.Getenv(builtDriver); built != "" {
		if race || len(tags) > 0 {
			return "", nil, fmt.Errorf("the driver in %s was built without the race detector and the tags %q", builtDriver, tags)
		}
		return built, func() {}, nil
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/fsuser-csi/fsuser-csi").Output()
	if err != nil {
		return "", nil, fmt.Errorf("find the driver's module: %w", err)
	}
	tags = append([]string{"grpcnotrace"}, tags...)
	args := []string{"build", "-tags", strings.Join(tags, ",")}
	name := strings.Join(tags, "-")
	if race {
		args, name = append(args, "-race"), name+"-race"
	}
	// An existing binary that is up to date is not linked again, because linking takes seconds.
	dir := filepath.Join(strings.TrimSpace(string(root)), ".cache", "bin", "driver-of-tests", name)
	unlock, err := lock(dir)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	built := filepath.Join(dir, "fsuser-csi")
	args = append(args, "-o", built, "github.com/fsuser-csi/fsuser-csi/cmd/fsuser-csi")
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", nil, fmt.Errorf("build the driver: %w\n%s", err, out)
	}
	removeLeft(dir)
	// The next build replaces the file, so the test gets a link. A copy can't always be run: another process that is
	// being started may still have the new file open for writing (ETXTBSY).
	binary = filepath.Join(dir, fmt.Sprintf("fsuser-csi-%d-%d", os.Getpid(), time.Now().UnixNano()))
	if err := os.Link(built, binary); err != nil {
		return "", nil, err
	}
	return binary, func() { os.Remove(binary) }, nil
}

// removeLeft removes the links of processes that were killed.
func removeLeft(dir string) {
	links, _ := filepath.Glob(filepath.Join(dir, "fsuser-csi-*-*"))
	for _, link := range links {
		var pid, at int
		if _, err := fmt.Sscanf(filepath.Base(link), "fsuser-csi-%d-%d", &pid, &at); err == nil &&
			unix.Kill(pid, 0) == unix.ESRCH {
			os.Remove(link)
		}
	}
}

// lock makes a directory and keeps other processes from locking the directory until unlock is called.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
