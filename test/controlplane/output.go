// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"io"
	"sync"
)

// lockedWriter lets both servers write to one log.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// tail keeps the end of a log for error messages, because the directory of the log may be removed before somebody reads
// the error.
type tail struct {
	mu  sync.Mutex
	end []byte
}

const tailSize = 2 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, p...)
	if n := len(t.end); n > tailSize {
		t.end = append([]byte(nil), t.end[n-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.end)
}
