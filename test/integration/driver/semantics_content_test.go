// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestEveryKeyBecomesAFileOfItsName(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		// All that the API server takes for a key: letters, digits, '-', '_' and '.', at most 253 of them.
		data := files{"tls.crt": "1", ".dockerconfigjson": "2", "UPPER": "3", "-": "4", "_": "5", "a..b": "6", "0": "7", strings.Repeat("k", 253): "8"}
		k.set(t, name, data)
		see(t, d, pod("keys"), ssh(k.attribute, name)).becomes(data)
	})
}

func TestBytesArriveAsTheyAre(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	binary := files{"bytes": string(every), "empty": "", "newline": "a\n", "not-utf8": "\xff\xfe"}
	setSecret(t, name, binary)
	see(t, d, pod("bytes-of-secret"), ssh("secretName", name)).becomes(binary)

	setConfigMap(t, name, files{"text": "ä\r\n", "blank": ""}, binary)
	want := files{"text": "ä\r\n", "blank": ""}
	for key, value := range binary {
		want[key] = value
	}
	see(t, d, pod("bytes-of-configmap"), ssh("configMapName", name)).becomes(want)
}

func TestAnObjectWithoutKeysMakesAnEmptyVolume(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		k.set(t, name, nil)
		s := see(t, d, pod("empty"), ssh(k.attribute, name))
		s.becomes(files{})
		k.set(t, name, files{"k": "1"})
		s.becomes(files{"k": "1"})
		k.set(t, name, nil)
		s.becomes(files{})
	})
}

func TestItemsPickKeysAndNamePaths(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		k.set(t, name, files{"a": "1", "b": "2", "c": "3"})
		s := see(t, d, pod("items"), ssh(k.attribute, name, "items",
			items("a", "a", "a", "again", "b", "etc/conf.d/b.conf", "c", "etc/c", "c", ".hidden", "a", "etc/..x", "b", "ü ü")))
		s.becomes(files{"a": "1", "again": "1", "etc/conf.d/b.conf": "2", "etc/c": "3", ".hidden": "3", "etc/..x": "1", "ü ü": "2"})
		// What is below a directory comes and goes with no change to the visible names.
		k.set(t, name, files{"a": "4", "b": "5", "c": "6", "d": "not picked"})
		s.becomes(files{"a": "4", "again": "4", "etc/conf.d/b.conf": "5", "etc/c": "6", ".hidden": "6", "etc/..x": "4", "ü ü": "5"})
	})
}

// TestPathsOfItems goes through the rules of items[].path. What Kubernetes takes and the driver does not is marked.
func TestPathsOfItems(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	element := strings.Repeat("e", 255)
	long := strings.Repeat(element+"/", 15) + element // 4095 bytes, which a program can open only in steps
	for _, test := range []struct {
		name, path string
		refused    string // a part of the reason; empty if the path is good
	}{
		{"a name", "id_rsa", ""},
		{"a nested path", "a/b/c", ""},
		{"dots within a name", "a..b", ""},
		{"two dots at the start of a later element", "a/..b", ""},
		{"three dots below", "a/...", ""},
		{"a space and letters that are not ASCII", "ä b", ""},
		{"an element of 255 bytes", element, ""},
		{"3839 bytes", long[:3839], ""},
		{"an element of 256 bytes", element + "e", "more than 255 bytes"},
		{"4097 bytes", long + "/e", "at most 4096 bytes"},
		{"nothing", "", "needs a path"},
		{"absolute", "/etc/passwd", "relative"},
		{"out of the volume", "../x", "'..'"},
		{"out and in again", "a/../b", "'..'"},
		{"the layout's own names", "..data", "must not start with '..'"},
		{"three dots at the start", "...", "must not start with '..'"},
		// Kubernetes takes these, and writes down a cleaned path, or the odd name.
		{"a dot element", "./a", "'.'"},
		{"an empty element", "a//b", "empty element"},
		{"a slash at the end", "a/", "empty element"},
		{"a colon", "a:b", "':'"},
		{"a backslash", `a\b`, `'\'`},
		{"a control character", "a\nb", "control character"},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := ssh("secretName", name, "items", items("k", test.path))
			if test.refused != "" {
				waits(t, d, pod("path"), v, codes.InvalidArgument, "items][0].path", test.refused)
				return
			}
			see(t, d, pod("path"), v).becomes(files{test.path: "1"})
		})
	}
}

// In Kubernetes the last of two equal paths wins in a Secret or ConfigMap volume, and a file that is a directory, too, is an error or
// not by the order of a map.
func TestConflictingPathsAreRefused(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1", "l": "2"})
	for _, test := range []struct{ name, items, says string }{
		{"the same path twice", items("k", "a", "l", "a"), "the same path"},
		{"a file that is a directory, too", items("k", "a", "l", "a/b"), "needs it to be a directory"},
		{"a directory that is a file, too", items("k", "a/b/c", "l", "a/b"), "needs it to be a directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			waits(t, d, pod("conflict"), ssh("secretName", name, "items", test.items), codes.InvalidArgument, "items[0]", "items[1]", test.says)
		})
	}
}

// The API server takes any text for items[].key, and kubelet waits for it, or with optional goes without. No object can have such a key.
func TestKeysThatNoObjectCanHaveAreRefused(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	for _, key := range []string{"a/b", "..", ".", "a b", strings.Repeat("k", 254)} {
		for _, optional := range []string{"true", "false"} {
			waits(t, d, pod("key"), ssh("secretName", name, "optional", optional, "items", items(key, "path")), codes.InvalidArgument, "items][0].key")
		}
	}
}

func TestOneMebibyteFits(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		// All that the API server takes in one object: 1 MiB, of ConfigMaps keys and values.
		large := strings.Repeat("x", 1<<20-1000)
		k.set(t, name, files{"small": "1"})
		s := see(t, d, pod("large"), ssh(k.attribute, name))
		k.set(t, name, files{"large": large})
		awaitText(t, s.dir+"/large", large)
		s.current()
		// The old version and the new one are there at the same time for a moment.
		other := strings.Repeat("y", len(large))
		k.set(t, name, files{"large": other})
		awaitText(t, s.dir+"/large", other)
	})
}

func TestMoreThanAVolumeMayHoldIsRefused(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t, "--max-volume-bytes=10", "--max-volume-files=2"), objectName(t)
	setSecret(t, name, files{"k": "12345678901"})
	v := ssh("secretName", name)
	waits(t, d, pod("limit"), v, codes.FailedPrecondition, "hold 11 bytes", "--max-volume-bytes")
	setSecret(t, name, files{"k": "1", "l": "2", "m": "3"})
	testkit.Eventually(t, soon, "the error to be about files", func() bool {
		_, err := d.Publish(deadline(t), pod("limit"), v)
		return err != nil && strings.Contains(err.Error(), "3 files") && strings.Contains(err.Error(), "--max-volume-files")
	})
	// Items pick what fits.
	s := see(t, d, pod("fits"), ssh("secretName", name, "items", items("k", "k", "m", "m")))
	s.becomes(files{"k": "1", "m": "3"})
	// Beyond the limit later: the files stay as they are.
	setSecret(t, name, files{"k": "12345678901", "m": "3"})
	s.stale()
	s.stays(files{"k": "1", "m": "3"})
	setSecret(t, name, files{"k": "1234567890", "m": ""})
	s.becomes(files{"k": "1234567890", "m": ""})
	s.current()
}
