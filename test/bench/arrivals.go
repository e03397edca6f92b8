// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// arrivals tells when a new version of a volume became visible at its target: when ..data was renamed, which inotify tells in the
// target itself. Looking again and again would take a CPU away from what is measured.
type arrivals struct {
	inotify *os.File
	volumes map[int32]*volume
	// renamed is what was told; err is why nothing is told any more.
	renamed chan arrival
	err     error
}

type arrival struct {
	watch int32
	at    time.Time
}

// watchArrivals starts to look at volumes that are published. It ends with env.close.
func (e *env) watchArrivals(volumes ...*volume) (*arrivals, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	a := &arrivals{inotify: os.NewFile(uintptr(fd), "inotify"), volumes: map[int32]*volume{}, renamed: make(chan arrival, 4*len(volumes)+100)}
	e.onClose(func() error { a.close(); return nil })
	for _, v := range volumes {
		watch, err := unix.InotifyAddWatch(fd, v.request.GetTargetPath(), unix.IN_MOVED_TO)
		if err != nil {
			return nil, fmt.Errorf("inotify: %w", err)
		}
		a.volumes[int32(watch)] = v
	}
	go a.read()
	return a, nil
}

// close ends the looking. It may be called again.
func (a *arrivals) close() { a.inotify.Close() }

func (a *arrivals) read() {
	defer close(a.renamed)
	buffer := make([]byte, 64<<10)
	for {
		n, err := a.inotify.Read(buffer)
		if err != nil {
			a.err = err
			return
		}
		at := time.Now()
		// struct inotify_event of inotify(7): wd, mask, cookie, len, name.
		for event := buffer[:n]; len(event) >= unix.SizeofInotifyEvent; {
			length := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(event[12:]))
			name := strings.TrimRight(string(event[unix.SizeofInotifyEvent:length]), "\x00")
			if name == "..data" {
				a.renamed <- arrival{int32(binary.NativeEndian.Uint32(event)), at}
			}
			event = event[length:]
		}
	}
}

// forget drops what was told so far.
func (a *arrivals) forget() {
	for len(a.renamed) > 0 {
		<-a.renamed
	}
}

// await waits until every volume shows the version that want gives for it, and returns when the last one did.
func (a *arrivals) await(ctx context.Context, want func(*volume) int) (last time.Time, err error) {
	arrived := map[int32]bool{}
	for len(arrived) < len(a.volumes) {
		select {
		case r, ok := <-a.renamed:
			if !ok {
				return last, fmt.Errorf("inotify: %w", a.err)
			}
			v := a.volumes[r.watch]
			b, err := os.ReadFile(v.file())
			if err != nil {
				return last, err
			}
			if isVersion(b, want(v)) {
				arrived[r.watch] = true
				if r.at.After(last) {
					last = r.at
				}
			}
		case <-ctx.Done():
			return last, fmt.Errorf("%d of %d volumes showed the new version: %w", len(arrived), len(a.volumes), context.Cause(ctx))
		}
	}
	return last, nil
}
