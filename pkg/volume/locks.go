// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"sync"
)

// locks has a lock for each volume id. A caller can wait for a lock with a context; a lock without users is forgotten.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	// taken has room for one value: a goroutine that has sent it holds the lock.
	taken chan struct{}
	// users hold it or wait for it.
	users int
}

// lock takes the lock of id and returns the function that releases it. The error wraps ErrLocked if ctx ended first.
func (l *locks) lock(ctx context.Context, id string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	k := l.held[id]
	if k == nil {
		k = &lock{taken: make(chan struct{}, 1)}
		l.held[id] = k
	}
	k.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.held, id)
		}
	}
	select {
	case k.taken <- struct{}{}:
		return func() { <-k.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("%w: %w", ErrLocked, context.Cause(ctx))
	}
}
