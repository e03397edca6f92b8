// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// memory is the memory of the API server, in bytes.
type memory struct {
	// heap and stacks are in use after a garbage collection.
	heap, stacks float64
	resident     float64
}

// settle collects garbage until the memory in use of the API server stays the same, and returns the memory.
func (c *cluster) settle(ctx context.Context) (last memory, err error) {
	const same, patience = 512 << 10, 30 * time.Second
	for start := time.Now(); ; {
		now, err := c.memory(ctx)
		if err != nil {
			return memory{}, err
		}
		diff := math.Abs(now.heap + now.stacks - last.heap - last.stacks)
		if diff < same || time.Since(start) > patience {
			return now, nil
		}
		last = now
		if err := sleep(ctx, 2*time.Second); err != nil {
			return memory{}, err
		}
	}
}

// memory collects garbage in the API server and returns the memory.
func (c *cluster) memory(ctx context.Context) (m memory, err error) {
	// The text of the profile ends with the statistics of the runtime.
	text, err := c.get(ctx, "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "# HeapAlloc = %g", &m.heap) // other lines do not match
		_, _ = fmt.Sscanf(line, "# Stack = %g", &m.stacks)
	}
	if m.heap == 0 || m.stacks == 0 {
		return m, errors.New("the API server's heap profile has no statistics")
	}
	m.resident, err = residentMemory(c.APIServerPID())
	return m, err
}

func residentMemory(pid int) (bytes float64, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &bytes); n == 1 {
			return bytes * 1024, nil
		}
	}
	return 0, fmt.Errorf("process %d has no resident memory", pid)
}

// get requests a path with the administrator's rights.
func (c *cluster) get(ctx context.Context, path string) ([]byte, error) {
	return c.admin.CoreV1().RESTClient().Get().RequestURI(path).DoRaw(ctx)
}

// cpu returns the CPU time of the API server so far.
func (c *cluster) cpu() (time.Duration, error) { return cpuOf(c.APIServerPID()) }

// cpuOf returns the CPU time of a process, from its clock (clock_getcpuclockid(3)). The times in /proc/PID/stat are
// multiples of 10 ms.
func cpuOf(pid int) (time.Duration, error) {
	const schedulerClock = 2 // CPUCLOCK_SCHED of the kernel
	var cpu unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedulerClock), &cpu); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(cpu.Nano()), nil
}

// restartAPIServer replaces the API server by a new process with an empty heap.
func (c *cluster) restartAPIServer(ctx context.Context) error {
	if err := c.StopAPIServer(ctx); err != nil {
		return err
	}
	return c.StartAPIServer(ctx)
}

// load is the number of waiting and of executing requests of a priority level.
type load struct{ waiting, executing int }

// priorityLevels returns the load of each priority level.
func (c *cluster) priorityLevels(ctx context.Context) (map[string]load, error) {
	text, err := c.get(ctx, "/debug/api_priority_and_fairness/dump_priority_levels")
	if err != nil {
		return nil, err
	}
	return parsePriorityLevels(text)
}

// parsePriorityLevels reads a table of values separated by commas and padded with spaces.
func parsePriorityLevels(text []byte) (map[string]load, error) {
	levels := map[string]load{}
	var column map[string]int
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(line, ",")
		for i := range fields {
			fields[i] = strings.TrimSpace(fields[i])
		}
		if column == nil {
			column = map[string]int{}
			for i, name := range fields {
				column[name] = i
			}
			continue
		}
		number := func(name string) int {
			i, ok := column[name]
			if !ok || i >= len(fields) {
				return 0
			}
			n, _ := strconv.Atoi(fields[i]) // an exempt level has no numbers
			return n
		}
		levels[fields[0]] = load{number("WaitingRequests"), number("ExecutingRequests")}
	}
	if len(levels) == 0 {
		return nil, errors.New("the API server lists no priority levels")
	}
	return levels, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
