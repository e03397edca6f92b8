// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestEveryKeyBecomesAFileOfItsName(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		// The API server accepts these characters in a key: letters, digits, '-', '_' and '.', at most 253 of them.
		data := files{"tls.crt": "1", ".dockerconfigjson": "2", "UPPER": "3", "-": "4", "_": "5", "a..b": "6", "0": "7",
			strings.Repeat("k", 253): "8"}
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
		p, v := shared.describe(t, k.volume(name, false,
			items("a", "a", "a", "again", "b", "etc/conf.d/b.conf", "c", "etc/c", "c", ".hidden", "a", "etc/..x", "b",
				"ü ü")...))
		s := see(t, d, p, v)
		s.becomes(files{"a": "1", "again": "1", "etc/conf.d/b.conf": "2", "etc/c": "3", ".hidden": "3", "etc/..x": "1",
			"ü ü": "2"})
		// Files in a directory change, and the names in the root of the volume stay.
		k.set(t, name, files{"a": "4", "b": "5", "c": "6", "d": "not picked"})
		s.becomes(files{"a": "4", "again": "4", "etc/conf.d/b.conf": "5", "etc/c": "6", ".hidden": "6", "etc/..x": "4",
			"ü ü": "5"})
	})
}

// TestPathsOfItems shows that the driver accepts the same paths as the API server and kubelet's AtomicWriter, and
// cleans them as the AtomicWriter does. The API server refuses absolute paths and paths with "..". hostileVolumes sends
// these.
func TestPathsOfItems(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	element := strings.Repeat("e", 255)
	long := strings.Repeat(element+"/", 15) + element // 4095 bytes, which a program can only open in steps
	for _, test := range []struct {
		name, path string
		want       string // the path of the file
		refused    string // a part of the reason; empty if the path is valid
	}{
		{"a name", "id_rsa", "id_rsa", ""},
		{"a nested path", "a/b/c", "a/b/c", ""},
		{"dots within a name", "a..b", "a..b", ""},
		{"two dots at the start of a later element", "a/..b", "a/..b", ""},
		{"three dots below", "a/...", "a/...", ""},
		{"a space and letters that are not ASCII", "ä b", "ä b", ""},
		{"a colon", "certs.d/host:5000/ca.crt", "certs.d/host:5000/ca.crt", ""},
		{"a backslash", `a\b`, `a\b`, ""},
		{"a newline", "a\nb", "a\nb", ""},
		{"another control character", "a\x1b[2Jb", "a\x1b[2Jb", ""},
		{"quotes and braces", `'"{}&`, `'"{}&`, ""},
		{"a dot element", "./a", "a", ""},
		{"an empty element", "a//b", "a/b", ""},
		{"a slash at the end", "a/", "a", ""},
		{"an element of 255 bytes", element, element, ""},
		{"3839 bytes", long[:3839], long[:3839], ""},
		{"an element of 256 bytes", element + "e", "", "255 bytes"},
		{"4097 bytes", long + "/e", "", "4096 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, v := shared.describe(t, secretVolume(name, false, items("k", test.path)...))
			if test.refused != "" {
				waits(t, d, p, v, codes.InvalidArgument, "volumeAttributes[volume]", test.refused)
				return
			}
			see(t, d, p, v).becomes(files{test.want: "1"})
		})
	}
}

// TestTheLaterOfTwoEqualPathsWins uses two items, and two sources, with the same path.
func TestTheLaterOfTwoEqualPathsWins(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1", "l": "2", "same": "of the Secret"})
	setConfigMap(t, name, files{"m": "3", "same": "of the ConfigMap"}, nil)
	p, v := shared.describe(t, secretVolume(name, false, items("k", "a", "l", "a")...))
	see(t, d, p, v).becomes(files{"a": "2"})

	p, v = shared.describe(t, projectedVolume(secretSource(name), configMapSource(name, false)))
	s := see(t, d, p, v)
	s.becomes(files{"k": "1", "l": "2", "m": "3", "same": "of the ConfigMap"})
	// If the later source loses the key, the file of the earlier source appears.
	setConfigMap(t, name, files{"m": "4"}, nil)
	s.becomes(files{"k": "1", "l": "2", "m": "4", "same": "of the Secret"})
}

// TestConflictingPathsAreRefused uses a path that is both a file and a directory. For such a path, kubelet's result
// depends on the order of a Go map.
func TestConflictingPathsAreRefused(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1", "l": "2"})
	for _, test := range []struct {
		name  string
		items []corev1.KeyToPath
	}{
		{"a file that is a directory, too", items("k", "a", "l", "a/b")},
		{"a directory that is a file, too", items("k", "a/b/c", "l", "a/b")},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, v := shared.describe(t, secretVolume(name, false, test.items...))
			waits(t, d, p, v, codes.FailedPrecondition, `"a`, "file")
		})
	}
}

// TestKeysThatNoObjectCanHave shows that items may name any key, as in Kubernetes: the pod waits for the key, or starts
// without it if the key is optional.
func TestKeysThatNoObjectCanHave(t *testing.T) {
	nothingLeft(t)
	d, name := shared.start(t), objectName(t)
	setSecret(t, name, files{"k": "1"})
	for _, key := range []string{"a/b", "..", ".", "a b", strings.Repeat("k", 254)} {
		p, v := shared.describe(t, secretVolume(name, false, items("k", "k", key, "path")...))
		waits(t, d, p, v, codes.FailedPrecondition, "no key", `volume "described"`)
		p, v = shared.describe(t, secretVolume(name, true, items("k", "k", key, "path")...))
		see(t, d, p, v).becomes(files{"k": "1"})
	}
}

func TestOneMebibyteFits(t *testing.T) {
	forBoth(t, func(t *testing.T, k kind, d *testkit.Driver, name string) {
		// These are the largest objects that the API server accepts: 1 MiB, including the keys of a ConfigMap.
		large := strings.Repeat("x", 1<<20-1000)
		k.set(t, name, files{"small": "1"})
		s := see(t, d, pod("large"), ssh(k.attribute, name))
		k.set(t, name, files{"large": large})
		awaitText(t, s.dir+"/large", large)
		s.current()
		// For a moment, the old version and the new one exist at the same time.
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
	// The items select keys within the limit.
	p, described := shared.describe(t, secretVolume(name, false, items("k", "k", "m", "m")...))
	s := see(t, d, p, described)
	s.becomes(files{"k": "1", "m": "3"})
	// If the content exceeds the limit later, the files stay as they are.
	setSecret(t, name, files{"k": "12345678901", "m": "3"})
	s.stale()
	s.stays(files{"k": "1", "m": "3"})
	setSecret(t, name, files{"k": "1234567890", "m": ""})
	s.becomes(files{"k": "1234567890", "m": ""})
	s.current()
}
