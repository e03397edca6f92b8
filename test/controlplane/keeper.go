// SPDX-License-Identifier: Apache-2.0

package controlplane

import "runtime"

// keeper is an OS thread from which children are started.
//
// The kernel sends a child its parent-death signal when the *thread* that started it ends, and not only when the whole
// process ends. The Go runtime moves goroutines between threads and ends a thread whose locked goroutine returns, so a
// child that any goroutine starts could be killed at any time. The keeper's goroutine is locked to its thread and lives
// as long as the children.
type keeper struct {
	work chan func()
	done chan struct{}
}

func newKeeper() *keeper {
	k := &keeper{work: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(k.done)
		runtime.LockOSThread() // It is never unlocked, so that the thread ends with the goroutine.
		for f := range k.work {
			f()
		}
	}()
	return k
}

// do runs f on the keeper's thread.
func (k *keeper) do(f func() error) error {
	result := make(chan error, 1)
	k.work <- func() { result <- f() }
	return <-result
}

// stop ends the thread. The caller has ended the children, and must not call do any more.
func (k *keeper) stop() {
	close(k.work)
	<-k.done
}
