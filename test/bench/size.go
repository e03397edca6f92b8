// SPDX-License-Identifier: Apache-2.0

package main

// size is how much is done.
type size struct {
	// goals: the numbers are those that the goals are for.
	goals bool
	// steps is how often an operation is measured, batch how often in a row before the next one has its turn.
	steps, batch int
	// held volumes are there while another is refreshed; most volumes are the most there are of anything.
	held, most int
	// burst is the smaller number of things that happen at once; most the larger.
	burst int
	// flooded is how many volumes show one object that is updated without end.
	flooded int
	// bursts is how often something happens to many at once.
	bursts int
}

func full(n int) size {
	return size{goals: true, steps: n, batch: 10, held: 300, most: 500, burst: 100, flooded: 200, bursts: 5}
}

func small() size {
	return size{steps: 2, batch: 2, held: 4, most: 8, burst: 3, flooded: 2, bursts: 1}
}
