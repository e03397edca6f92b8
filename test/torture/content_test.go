// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
)

// owned is who owns the files of a volume, their mode, and whether it has items. It is the volume's name, so that a reader knows what to expect of it.
type owned struct {
	uid, gid, mode uint32
	items          bool
}

// itemsSuffix ends the name of a volume with items, and itemPrefix begins the names of its files.
const itemsSuffix, itemPrefix = "-items", "of-"

// isConfigMap tells which objects are ConfigMaps. All others are Secrets.
func isConfigMap(name string) bool { return strings.HasPrefix(name, "map") }

func (o owned) volume(object string) kubelet.Volume {
	v := kubelet.Volume{
		Name:       fmt.Sprintf("u%d-g%d-m%o", o.uid, o.gid, o.mode),
		Attributes: map[string]string{"uid": fmt.Sprint(o.uid), "gid": fmt.Sprint(o.gid), "mode": fmt.Sprintf("%04o", o.mode)},
	}
	if isConfigMap(object) {
		v.Attributes["configMapName"] = object
	} else {
		v.Attributes["secretName"] = object
	}
	if o.items {
		v.Name += itemsSuffix
		v.Attributes["items"] = fmt.Sprintf("[{key: k0, path: %[1]sk0}, {key: k2, path: %[1]sk2}]", itemPrefix)
	}
	return v
}

// files are the names of the files of version n.
func (o owned) files(n int) []string {
	if o.items {
		return []string{itemPrefix + "k0", itemPrefix + "k2"}
	}
	return slices.Sorted(maps.Keys(data(n)))
}

func parseOwned(name string) (o owned, err error) {
	name, o.items = strings.CutSuffix(name, itemsSuffix)
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

// data is version n of an object: 3 to 5 keys, each of which tells its version, how many keys there are, its own name and its length.
func data(n int) map[string]string {
	keys := 3 + n%3
	d := map[string]string{}
	for i := range keys {
		fill := (n*37 + i*911) % 6000
		d[fmt.Sprint("k", i)] = fmt.Sprintf("version=%d keys=%d key=k%d fill=%d %s end", n, keys, i, fill, strings.Repeat("x", fill))
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
		"an empty file": "", "a partial file": whole[:len(whole)-1], "a longer file": whole + "x", "another key": data(4)["k2"],
	} {
		if _, err := parse("k1", text); err == nil {
			t.Errorf("%s passes", what)
		}
	}
	o := owned{1000, 2000, 0o440, false}
	for _, o := range []owned{o, {1000, 2000, 0o440, true}} {
		if parsed, err := parseOwned(o.volume("s").Name); parsed != o || err != nil {
			t.Errorf("%+v is parsed as %+v, %v", o, parsed, err)
		}
	}
	good := unix.Stat_t{Uid: 1000, Gid: 2000, Mode: unix.S_IFREG | 0o440}
	if err := o.check(&good); err != nil {
		t.Error(err)
	}
	for _, change := range []func(*unix.Stat_t){
		func(st *unix.Stat_t) { st.Uid = 0 }, func(st *unix.Stat_t) { st.Gid = 0 }, func(st *unix.Stat_t) { st.Mode |= 0o004 },
	} {
		bad := good
		change(&bad)
		if o.check(&bad) == nil {
			t.Errorf("%d:%d %#o passes", bad.Uid, bad.Gid, bad.Mode)
		}
	}
}
