// SPDX-License-Identifier: Apache-2.0

//go:build unix

// Command pause holds the namespaces of a pod and does nothing until a signal ends it. As process 1 of a pod with a
// shared PID namespace, it also waits for orphans.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err == nil && pid > 0 {
				continue
			}
			break
		}
	}
}
