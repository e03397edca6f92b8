// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// clientCPUsVariable is the environment variable with the CPUs of the clients.
const clientCPUsVariable = "FSUSER_SCALE_CLIENT_CPUS"

// splitCPUs returns two halves of the CPUs of this process: one for the run with the API server, etcd and the
// heartbeats, and one for the clients. Otherwise a busy client, such as a driver that writes files, would take CPU time
// from the API server, whose requests would seem to cost more. A single CPU is in both halves.
func splitCPUs() (servers, clients string, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return "", "", fmt.Errorf("read the CPUs of this process: %w", err)
	}
	var all []string
	for cpu := 0; len(all) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			all = append(all, strconv.Itoa(cpu))
		}
	}
	half := len(all) / 2
	return strings.Join(all[:max(1, half)], ","), strings.Join(all[half:], ","), nil
}

// machineCPUs returns the number of CPUs of both halves, because the parent of this process has all of them.
func machineCPUs() int {
	var all unix.CPUSet
	_ = unix.SchedGetaffinity(os.Getppid(), &all) // The parent waits for this process.
	return all.Count()
}

// startClient starts a client on the clients' CPUs.
func startClient(cmd *exec.Cmd) error { return startOn(os.Getenv(clientCPUsVariable), cmd) }

// startOn starts a process on some CPUs, because a process gets the CPUs of the thread that starts it.
func startOn(cpus string, cmd *exec.Cmd) error {
	var before, set unix.CPUSet
	for _, cpu := range strings.Split(cpus, ",") {
		n, err := strconv.Atoi(cpu)
		if err != nil {
			return fmt.Errorf("CPUs %q: %w", cpus, err)
		}
		set.Set(n)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("use the CPUs %s: %w", cpus, err)
	}
	startErr := cmd.Start()
	if err := unix.SchedSetaffinity(0, &before); err != nil {
		return fmt.Errorf("use all CPUs again: %w", err)
	}
	return startErr
}
