// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"reflect"
	"testing"
)

func TestSpecTravels(t *testing.T) {
	want := Spec{RunDir: "/a b", CacheDir: `/"c"`, Images: []string{"/i"}, KubeletArgs: []string{"--v=4"},
		APIServerPort: 6443, Nodes: 3, Node: 2}
	if got, err := ParseSpec(want.String()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseSpec = %+v, %v, want %+v", got, err, want)
	}
	if _, err := ParseSpec("keep"); err == nil {
		t.Error("ParseSpec of something else succeeded")
	}
}

func TestCgroupDependsOnTheFolder(t *testing.T) {
	if a, b := Paths("/a").Cgroup(), Paths("/b").Cgroup(); a == b || a != Paths("/a").Cgroup() {
		t.Errorf("the cgroups of two folders are %s and %s", a, b)
	}
}

func TestNodesHaveNothingInCommon(t *testing.T) {
	seen := make(map[string]Number)
	for number := firstNode; number <= MaxNodes; number++ {
		for _, own := range []string{number.Name(), number.Address(), number.podRange(), string(Paths("/run").Node(number))} {
			if other, taken := seen[own]; taken {
				t.Errorf("nodes %d and %d have %s", other, number, own)
			}
			seen[own] = number
		}
	}
}
