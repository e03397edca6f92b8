// SPDX-License-Identifier: Apache-2.0

package supervisor

import (
	"reflect"
	"testing"
)

func TestSpecTravels(t *testing.T) {
	want := Spec{RunDir: "/a b", CacheDir: `/"c"`, Images: []string{"/i"}, KubeletArgs: []string{"--v=4"}, APIServerPort: 6443}
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
