// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// users returns the number of callers that hold the lock of id or wait for it.
func (l *locks) users(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.held[id]; k != nil {
		return k.users
	}
	return 0
}

func (l *locks) isEmpty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.held) == 0
}

func TestLocksLetOneInAndAreForgotten(t *testing.T) {
	var l locks
	// The counts are not atomic: the locks serialise the goroutines, and the race detector checks that.
	counts := make([]int, 10)
	var all sync.WaitGroup
	for i := range 1000 {
		all.Go(func() {
			id := i % len(counts)
			for range 10 {
				unlock, err := l.lock(t.Context(), fmt.Sprint(id))
				if err != nil {
					t.Error(err)
					return
				}
				counts[id]++
				unlock()
			}
		})
	}
	all.Wait()
	for id, n := range counts {
		if n != 1000 {
			t.Errorf("lock %d was held %d times, not 1000", id, n)
		}
	}
	if !l.isEmpty() {
		t.Errorf("locks that nobody has are remembered: %v", l.held)
	}
}

func TestLocksOfDifferentVolumesAreIndependent(t *testing.T) {
	var l locks
	a, err := l.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	b, err := l.lock(ctx, "b")
	if err != nil {
		t.Fatalf("the lock of b waits for that of a: %v", err)
	}
	a()
	b()
}

func TestLockThatIsNotGivenBackInTime(t *testing.T) {
	var l locks
	unlock, err := l.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	expired, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	_, err = l.lock(expired, "a")
	isErr(t, err, ErrLocked)
	isErr(t, err, context.DeadlineExceeded)

	reason := errors.New("kubelet hung up")
	ctx, cancelCause := context.WithCancelCause(t.Context())
	got := make(chan error)
	go func() { _, err := l.lock(ctx, "a"); got <- err }()
	testkit.Eventually(t, patience, "a waiter", func() bool { return l.users("a") == 2 })
	cancelCause(reason)
	err = <-got
	isErr(t, err, ErrLocked)
	isErr(t, err, reason)

	if n := l.users("a"); n != 1 {
		t.Errorf("%d have the lock or wait for it, want the holder alone", n)
	}
	unlock()
	if !l.isEmpty() {
		t.Error("the lock is not forgotten")
	}
}

func TestLocksSurviveWaitersThatGiveUp(t *testing.T) {
	var l locks
	unlock, err := l.lock(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	impatient, giveUp := context.WithCancel(t.Context())
	var quitters, patient sync.WaitGroup
	held := 0
	for i := range 100 {
		if i%2 == 0 {
			quitters.Go(func() {
				if _, err := l.lock(impatient, "a"); !errors.Is(err, ErrLocked) {
					t.Errorf("got %v, want ErrLocked", err)
				}
			})
			continue
		}
		patient.Go(func() {
			unlock, err := l.lock(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			held++
			unlock()
		})
	}
	testkit.Eventually(t, patience, "100 waiters", func() bool { return l.users("a") == 101 })
	giveUp()
	quitters.Wait()
	if held != 0 {
		t.Error("somebody got the lock while it was held")
	}
	unlock()
	patient.Wait()
	if held != 50 || !l.isEmpty() {
		t.Errorf("%d of 50 waiters got the lock; forgotten: %v", held, l.isEmpty())
	}
}
