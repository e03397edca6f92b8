// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// owned is the owner, the mode and the form of the files of a volume. They are in the volume's name, so that a reader
// knows what to expect.
type owned struct {
	uid, gid, mode uint32
	form
}

// form is the origin of a volume's content, and the layout of its files.
type form struct {
	from   origin
	layout attributes.Layout
}

// inLinks returns the form of a volume with the default layout.
func inLinks(from origin) form { return form{from, attributes.LayoutLinks} }

func layouts() []attributes.Layout {
	return []attributes.Layout{attributes.LayoutLinks, attributes.LayoutFiles, attributes.LayoutInPlace}
}

func allForms() (all []form) {
	for _, from := range []origin{byName, byVolume, byRequest} {
		for _, layout := range layouts() {
			all = append(all, form{from, layout})
		}
	}
	return all
}

// origin is the way in which a volume names its object.
type origin string

const (
	// byName means that the attribute secretName or configMapName names the object.
	byName origin = ""
	// byVolume means that the attribute volume names a volume of the pod, which has items.
	byVolume origin = "-volume"
	// byRequest means nodePublishSecretRef: kubelet sends the content with each publish.
	byRequest origin = "-request"
)

// itemPrefix is the prefix of the file names of a volume with items. described is the volume with the items.
const itemPrefix, described = "of-", "described"

// isConfigMap reports whether an object is a ConfigMap. All others are Secrets.
func isConfigMap(name string) bool { return strings.HasPrefix(name, "map") }

// volume returns a volume of version n of an object. The version matters only if kubelet sends the content.
func (o owned) volume(object string, n int) kubelet.Volume {
	v := kubelet.Volume{
		Name: fmt.Sprintf("u%d-g%d-m%o%s-%s", o.uid, o.gid, o.mode, o.from, o.layout),
		Attributes: map[string]string{"uid": fmt.Sprint(o.uid), "gid": fmt.Sprint(o.gid),
			"mode": fmt.Sprintf("%04o", o.mode), "layout": string(o.layout)},
	}
	switch {
	case o.from == byVolume:
		v.Attributes["volume"] = described
	case o.from == byRequest:
		v.Secrets = data(n)
	case isConfigMap(object):
		v.Attributes["configMapName"] = object
	default:
		v.Attributes["secretName"] = object
	}
	return v
}

// describes returns the volume of the pod that describes a volume with items.
func describes(object string) corev1.Volume {
	v := corev1.Volume{Name: described}
	items := []corev1.KeyToPath{{Key: "k0", Path: itemPrefix + "k0"}, {Key: "k2", Path: itemPrefix + "k2"}}
	if isConfigMap(object) {
		v.ConfigMap = &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: object},
			Items: items}
	} else {
		v.Secret = &corev1.SecretVolumeSource{SecretName: object, Items: items}
	}
	return v
}

// files returns the names of the files of version n.
func (o owned) files(n int) []string {
	if o.from == byVolume {
		return []string{itemPrefix + "k0", itemPrefix + "k2"}
	}
	return slices.Sorted(maps.Keys(data(n)))
}

// keyOf returns the key that a file shows.
func keyOf(file string) string { return strings.TrimPrefix(file, itemPrefix) }

func parseOwned(name string) (o owned, err error) {
	for _, layout := range layouts() {
		if rest, ok := strings.CutSuffix(name, "-"+string(layout)); ok {
			name, o.layout = rest, layout
		}
	}
	for _, from := range []origin{byVolume, byRequest} {
		if rest, ok := strings.CutSuffix(name, string(from)); ok {
			name, o.from = rest, from
		}
	}
	_, err = fmt.Sscanf(name, "u%d-g%d-m%o", &o.uid, &o.gid, &o.mode)
	return o, err
}

// check returns an error if the owner or mode of a file is wrong.
func (o owned) check(st *unix.Stat_t) error {
	if st.Uid != o.uid || st.Gid != o.gid || st.Mode != unix.S_IFREG|o.mode {
		return fmt.Errorf("it is %d:%d %#o", st.Uid, st.Gid, st.Mode)
	}
	return nil
}

// data returns version n of an object: 3 to 5 keys. The value of each key contains its version, the number of keys, its
// name and its length.
func data(n int) map[string]string {
	keys := 3 + n%3
	d := map[string]string{}
	for i := range keys {
		fill := (n*37 + i*911) % 6000
		d[fmt.Sprint("k", i)] = fmt.Sprintf("version=%d keys=%d key=k%d fill=%d %s end", n, keys, i, fill,
			strings.Repeat("x", fill))
	}
	return d
}

// parse returns the version at the beginning of a file of a key. The file must be complete.
func parse(key, text string) (version int, err error) {
	var name string
	var keys, fill int
	if _, err := fmt.Sscanf(text, "version=%d keys=%d key=%s fill=%d", &version, &keys, &name, &fill); err != nil {
		return 0, fmt.Errorf("file %s with %d bytes begins with %.40q", key, len(text), text)
	}
	if want := data(version)[key]; text != want {
		return version, fmt.Errorf("file %s of version %d has %d bytes, not its %d, or others", key, version, len(text),
			len(want))
	}
	return version, nil
}

// shortest returns the length of the shortest file of a key in the versions first to last; 0 if no version has the key.
func shortest(key string, first, last int) (length int64) {
	for n := first; n <= last; n++ {
		if text, ok := data(n)[key]; ok && (length == 0 || int64(len(text)) < length) {
			length = int64(len(text))
		}
	}
	return length
}

func TestReadersNoticeWhatIsWrong(t *testing.T) {
	whole := data(4)["k1"]
	if version, err := parse("k1", whole); version != 4 || err != nil {
		t.Errorf("a whole file is version %d, %v", version, err)
	}
	for what, text := range map[string]string{
		"an empty file": "", "a partial file": whole[:len(whole)-1], "a longer file": whole + "x",
		"another key": data(4)["k2"],
	} {
		if _, err := parse("k1", text); err == nil {
			t.Errorf("%s passes", what)
		}
	}
	o := owned{1000, 2000, 0o440, inLinks(byName)}
	for _, form := range allForms() {
		o.form = form
		if parsed, err := parseOwned(o.volume("s", 1).Name); parsed != o || err != nil {
			t.Errorf("%+v is parsed as %+v, %v", o, parsed, err)
		}
	}
	good := unix.Stat_t{Uid: 1000, Gid: 2000, Mode: unix.S_IFREG | 0o440}
	if err := o.check(&good); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*unix.Stat_t){
		func(st *unix.Stat_t) { st.Uid = 0 }, func(st *unix.Stat_t) { st.Gid = 0 },
		func(st *unix.Stat_t) { st.Mode |= 0o004 },
	} {
		bad := good
		change(&bad)
		if o.check(&bad) == nil {
			t.Errorf("%d:%d %#o passes", bad.Uid, bad.Gid, bad.Mode)
		}
	}
	before := part{key: "k0", version: 4, inode: 7}
	for _, now := range []part{before, {key: "k0", version: 5, inode: 7}, {key: "k0", version: 4, inode: 8, volume: 1},
		{key: "k0", version: 5, inode: 7, mixed: true, size: shortest("k0", 4, 4)}} {
		if err := now.after(before); err != nil {
			t.Errorf("%+v after %+v: %v", now, before, err)
		}
	}
	for _, now := range []part{{key: "k0", version: 3, inode: 7}, {key: "k0", version: 4, inode: 8},
		{key: "k0", version: 5, inode: 7, mixed: true, size: shortest("k0", 4, 4) - 1}} {
		if now.after(before) == nil {
			t.Errorf("%+v passes after %+v", now, before)
		}
	}
}
