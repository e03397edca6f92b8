// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"sync"
)

// locks has a lock for each volume id. A caller can wait for a lock with a context. A lock without users is removed.
type locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	// taken has a buffer of one value. The goroutine that has sent the value holds the lock.
	taken chan struct{}
	// users is the number of callers that hold the lock or wait for it.
	users int
}

// lock takes the lock of id and returns the function that releases it. The error wraps ErrLocked if ctx ends first: a
// call must not begin after its caller has given up.
func (l *locks) lock(ctx context.Context, id string) (unlock func(), err error) {
	k := l.enter(id)
	select {
	case k.taken <- struct{}{}:
		unlock = func() { <-k.taken; l.leave(id, k) }
		select {
		case <-ctx.Done():
			unlock()
		default:
			return unlock, nil
		}
	case <-ctx.Done():
		l.leave(id, k)
	}
	return nil, fmt.Errorf("%w: %w", ErrLocked, context.Cause(ctx))
}

// tryLock is lock without waiting. free reports whether the caller has the lock now.
func (l *locks) tryLock(id string) (unlock func(), free bool) {
	k := l.enter(id)
	select {
	case k.taken <- struct{}{}:
		return func() { <-k.taken; l.leave(id, k) }, true
	default:
		l.leave(id, k)
		return nil, false
	}
}

// enter counts a user of the lock of id.
func (l *locks) enter(id string) *lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	k := l.held[id]
	if k == nil {
		k = &lock{taken: make(chan struct{}, 1)}
		l.held[id] = k
	}
	k.users++
	return k
}

// leave ends the use that enter counted, and removes a lock without users.
func (l *locks) leave(id string, k *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(l.held, id)
	}
}
