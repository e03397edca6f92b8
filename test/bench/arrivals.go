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

// arrivals reports the time at which a new version of a volume became visible at its target, with one inotify event for
// each version. More events, or polling, would take CPU time from the measured programs.
type arrivals struct {
	inotify *os.File
	volumes map[int32]*volume
	// arrived has the reports. err is the reason why there are no more reports.
	arrived chan arrival
	err     error
}

type arrival struct {
	watch int32
	at    time.Time
}

// watchArrivals watches published volumes until env.close.
func (e *env) watchArrivals(volumes ...*volume) (*arrivals, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	a := &arrivals{
		inotify: os.NewFile(uintptr(fd), "inotify"), volumes: map[int32]*volume{},
		arrived: make(chan arrival, 4*len(volumes)+100),
	}
	e.onClose(func() error { a.close(); return nil })
	for _, v := range volumes {
		watch, err := unix.InotifyAddWatch(fd, v.event().path, v.event().mask)
		if err != nil {
			return nil, fmt.Errorf("inotify: %w", err)
		}
		a.volumes[int32(watch)] = v
	}
	go a.read()
	return a, nil
}

// close ends the watch. It may be called again.
func (a *arrivals) close() { a.inotify.Close() }

func (a *arrivals) read() {
	defer close(a.arrived)
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
			watch := int32(binary.NativeEndian.Uint32(event))
			if v := a.volumes[watch]; v != nil && v.event().name == name {
				a.arrived <- arrival{watch, at}
			}
			event = event[length:]
		}
	}
}

// forget drops the reports so far.
func (a *arrivals) forget() {
	for len(a.arrived) > 0 {
		<-a.arrived
	}
}

// await waits until the volumes show a version of their objects. It returns the time at which the last volume did.
func (a *arrivals) await(ctx context.Context, version int, volumes ...*volume) (last time.Time, err error) {
	waiting := map[*volume]bool{}
	for _, v := range volumes {
		waiting[v] = true
	}
	for len(waiting) > 0 {
		select {
		case r, ok := <-a.arrived:
			if !ok {
				return last, fmt.Errorf("inotify: %w", a.err)
			}
			v := a.volumes[r.watch]
			if !waiting[v] {
				continue
			}
			b, err := os.ReadFile(v.file())
			if err != nil {
				return last, err
			}
			if isVersion(b, version) {
				delete(waiting, v)
				v.refreshed = r.at
				last = latest(last, r.at)
			}
		case <-ctx.Done():
			shown := len(volumes) - len(waiting)
			return last, fmt.Errorf("%d of %d volumes showed the new version: %w", shown, len(volumes), context.Cause(ctx))
		}
	}
	return last, nil
}

const (
	// refreshInterval is the shortest interval of the driver between two refreshes of one volume. After a longer pause,
	// the driver refreshes at once.
	refreshInterval = 100 * time.Millisecond
	// sharedInterval is longer than the driver's interval between two refreshes of the volumes of one object.
	sharedInterval = 5 * time.Second
)

// rest waits until the driver would refresh the volumes at once. Without it, a series of updates would measure the
// interval.
func rest(ctx context.Context, interval time.Duration, volumes ...*volume) error {
	var last time.Time
	for _, v := range volumes {
		last = latest(last, v.refreshed)
	}
	select {
	case <-time.After(time.Until(last.Add(interval))):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
