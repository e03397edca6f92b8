// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"flag"
	"strconv"
	"sync"
	"testing"

	"k8s.io/klog/v2"
)

// Log records the output of klog. It is safe for concurrent use.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// CaptureLog records klog's output at this verbosity instead of writing it to stderr, until restore is called.
func CaptureLog(verbosity int) (l *Log, restore func()) {
	before := klog.CaptureState()
	var flags flag.FlagSet
	klog.InitFlags(&flags)
	for name, value := range map[string]string{"logtostderr": "false", "stderrthreshold": "FATAL",
		"v": strconv.Itoa(verbosity)} {
		if err := flags.Set(name, value); err != nil {
			panic(err) // klog has these flags
		}
	}
	l = &Log{}
	klog.SetOutput(l)
	return l, before.Restore
}

// LogOf records klog's output at this verbosity until t ends.
func LogOf(t testing.TB, verbosity int) *Log {
	l, restore := CaptureLog(verbosity)
	t.Cleanup(restore)
	return l
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// Text returns the output so far.
func (l *Log) Text() string {
	klog.Flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Take returns the output since the last Take.
func (l *Log) Take() string {
	klog.Flush()
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}
