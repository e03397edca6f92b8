// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"sync"
)

// Concurrently calls f with 0 to n-1, with at most limit calls at a time, and returns all errors.
func Concurrently(n, limit int, f func(i int) error) error {
	errs := make([]error, n)
	slots := make(chan struct{}, limit)
	var running sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(i)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}
