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
)

// owned says who owns the files of a volume, which mode they have, and where they come from. It is the volume's name,
// so that a reader knows what to expect.
type owned struct {
	uid, gid, mode uint32
	from           origin
}

// origin says what names the object of a volume.
type origin string

const (
	// byName: the attribute secretName or configMapName.
	byName origin = ""
	// byVolume: the attribute volume names a volume of the pod, which has items.
	byVolume origin = "-volume"
	// byRequest: nodePublishSecretRef. Kubelet brings the content with each publish.
	byRequest origin = "-request"
)

// itemPrefix begins the names of the files of a volume with items, and described is the volume that has the items.
const itemPrefix, described = "of-", "described"

// isConfigMap reports which objects are ConfigMaps. All others are Secrets.
func isConfigMap(name string) bool { return strings.HasPrefix(name, "map") }

// volume is a volume of version n of an object. The version plays a part only if kubelet brings the content.
func (o owned) volume(object string, n int) kubelet.Volume {
	v := kubelet.Volume{
		Name: fmt.Sprintf("u%d-g%d-m%o", o.uid, o.gid, o.mode) + string(o.from),
		Attributes: map[string]string{"uid": fmt.Sprint(o.uid), "gid": fmt.Sprint(o.gid),
			"mode": fmt.Sprintf("%04o", o.mode)},
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

// describes returns the volume of the pod that describes a volume by items.
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

// files are the names of the files of version n.
func (o owned) files(n int) []string {
	if o.from == byVolume {
		return []string{itemPrefix + "k0", itemPrefix + "k2"}
	}
	return slices.Sorted(maps.Keys(data(n)))
}

func parseOwned(name string) (o owned, err error) {
	for _, from := range []origin{byVolume, byRequest} {
		if rest, ok := strings.CutSuffix(name, string(from)); ok {
			name, o.from = rest, from
		}
	}
	_, err = fmt.Sscanf(name, "u%d-g%d-m%o", &o.uid, &o.gid, &o.mode)
	return o, err
}

// check tells what is wrong with the owner or mode of a file.
func (o owned) check(st *unix.Stat_t) error {
	if st.Uid != o.uid || st.Gid != o.gid || st.Mode != unix.S_IFREG|o.mode {
		return fmt.Errorf("it is %d:%d %#o", st.Uid, st.Gid, st.Mode)
	}
	return nil
}

// data is version n of an object: 3 to 5 keys, each of which tells its version, how many keys there are, its own name
// and its length.
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

// parse returns the version in a file of a key. The file must be whole.
func parse(key, text string) (version int, err error) {
	var name string
	var keys, fill int
	if _, err := fmt.Sscanf(text, "version=%d keys=%d key=%s fill=%d", &version, &keys, &name, &fill); err != nil {
		return 0, fmt.Errorf("file %s with %d bytes begins with %.40q", key, len(text), text)
	}
	if want := data(version)[key]; text != want {
		return 0, fmt.Errorf("file %s of version %d has %d bytes, not its %d, or others", key, version, len(text), len(want))
	}
	return version, nil
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
	o := owned{1000, 2000, 0o440, byName}
	for _, o := range []owned{o, {1000, 2000, 0o440, byVolume}, {1000, 2000, 0o440, byRequest}} {
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
}
