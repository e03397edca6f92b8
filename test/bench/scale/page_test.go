// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"
)

// TestPage fills the template with the results of a run in which the driver had half of each of kubelet's figures.
func TestPage(t *testing.T) {
	r := results{size: full(), machine: "Linux", took: 10 * time.Minute}
	for _, table := range r.tables() {
		for _, row := range table.rows {
			r.add(row.of, driverName, 64)
			r.add(row.of, kubeletName, 128)
		}
	}
	var page strings.Builder
	if err := r.page(&page); err != nil {
		t.Fatal(err)
	}
	text := page.String()
	for _, want := range []string{
		"No row of the driver is worse",
		"| requests per renewal | 64 | 128 | 0.50 | yes |",
		// 5,000 nodes with 100 watches of 64 KiB; a watch lasts for 64 minutes and needs 64 requests then; 16 starts.
		"| 5000 | 100 | 500000 | 30.5 GiB | 8333 | 8333 | 80000 |",
		"8100 watches for each GiB", // 1 GiB / 128 KiB, in hundreds
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not have %q", want)
		}
	}
	r.samples[liveKiB][driverName] = []float64{1000}
	page.Reset()
	if err := r.page(&page); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(page.String(), "heap and stacks: 1000 KiB, and kubelet's 128 KiB") || r.verdict() == nil {
		t.Error("a row that is worse is not reported")
	}
	for n, line := range strings.Split(text, "\n") {
		if len([]rune(line)) > 100 && !strings.HasPrefix(line, "|") {
			t.Errorf("line %d has more than 100 columns: %s", n+1, line)
		}
	}
}
