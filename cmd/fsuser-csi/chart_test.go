// SPDX-License-Identifier: Apache-2.0

package main

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The chart makes a flag of each value in limits: maxVolumes becomes --max-volumes. So each limit needs a value there.
func TestLimitsOfTheChart(t *testing.T) {
	content, err := os.ReadFile("../../deploy/chart/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values struct{ Limits map[string]any }
	if err := yaml.Unmarshal(content, &values); err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for _, name := range slices.Sorted(maps.Keys(values.Limits)) {
		got = append(got, strings.ToLower(regexp.MustCompile("[A-Z]").ReplaceAllString(name, "-$0")))
	}
	limit := regexp.MustCompile(`(?m)^ +--(max-[a-z-]+|[a-z]+-share) `)
	for _, match := range limit.FindAllStringSubmatch(newNodeCommand().Flags().FlagUsages(), -1) {
		want = append(want, match[1])
	}
	if !slices.Equal(got, want) {
		t.Errorf("limits of the chart: %q, the driver's flags: %q", got, want)
	}
}
