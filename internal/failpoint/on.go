// SPDX-License-Identifier: Apache-2.0

//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// directory is the environment variable that names the directory of armed points.
const directory = "FSUSER_FAILPOINTS"

// Hit marks a step that can't fail.
func Hit(name string) {
	if err := Error(name); err != nil {
		panic(fmt.Sprintf("%v: this step can't fail; arm it with something else", err))
	}
}

// Error marks a step that can fail.
func Error(name string) error {
	dir := os.Getenv(directory)
	if dir == "" {
		return nil
	}
	action, arg, err := take(dir, name)
	if err != nil {
		panic(fmt.Sprintf("failpoint %s: %v", name, err))
	}
	switch action {
	case "":
	case "panic":
		panic("failpoint " + name)
	case "error":
		return fmt.Errorf("failpoint %s", name)
	case "sleep":
		pause, err := time.ParseDuration(arg)
		if err != nil {
			panic(fmt.Sprintf("failpoint %s: %v", name, err))
		}
		time.Sleep(pause)
	case "pause":
		for paused := filepath.Join(dir, name+".paused"); ; time.Sleep(time.Millisecond) {
			if _, err := os.Lstat(paused); err != nil {
				return nil
			}
		}
	default:
		panic(fmt.Sprintf("failpoint %s: no action %q", name, action))
	}
	return nil
}

// take disarms a point and returns its action, or nothing if the point is not armed or does nothing this time.
// Goroutines and processes take turns, and a kill happens within the turn, so that a killed process disarms no second
// point.
func take(dir, name string) (action, arg string, err error) {
	path := filepath.Join(dir, name)
	if _, err := os.Lstat(path); err != nil {
		return "", "", nil
	}
	lock, err := os.Open(dir)
	if err != nil {
		return "", "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", "", err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", "", nil // another process took it
	}
	words := strings.Fields(string(b))
	action, words = words[0], words[1:]
	if action == "sleep" {
		arg, words = words[0], words[1:]
	}
	if len(words) > 0 && words[0] != "0" {
		left, err := strconv.Atoi(words[0])
		if err != nil {
			return "", "", err
		}
		// The file is replaced by a rename, because the process may be killed elsewhere in the meantime.
		next := filepath.Join(dir, ".next")
		if err := os.WriteFile(next, fmt.Appendln(nil, action, arg, left-1), 0o600); err != nil {
			return "", "", err
		}
		return "", "", os.Rename(next, path)
	}
	if action == "pause" {
		return action, arg, os.Rename(path, path+".paused")
	}
	if err := os.Remove(path); err != nil || action != "kill" {
		return action, arg, err
	}
	// The driver's filter of system calls refuses kill(2).
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGKILL); err != nil {
		return "", "", err
	}
	select {} // This goroutine waits for its end, and releases the lock to nobody.
}
