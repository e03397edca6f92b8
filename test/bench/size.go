// SPDX-License-Identifier: Apache-2.0

package main

// size is the amount of work.
type size struct {
	// goals means that the goals apply to the numbers of this size.
	goals bool
	// steps is the number of measurements of an operation, and batch the number of measurements in a row before the next
	// operation.
	steps, batch int
	// held is the number of volumes that exist while another one is refreshed, and most is the largest number of volumes.
	held, most int
	// burst is the smaller number of simultaneous operations; most is the larger one.
	burst int
	// flooded is the number of volumes that show one object that is updated without end.
	flooded int
	// bursts is the number of repetitions of simultaneous operations.
	bursts int
}

func full(n int) size {
	return size{goals: true, steps: n, batch: 10, held: 300, most: 500, burst: 100, flooded: 200, bursts: 5}
}

func small() size {
	return size{steps: 2, batch: 2, held: 4, most: 8, burst: 3, flooded: 2, bursts: 1}
}
