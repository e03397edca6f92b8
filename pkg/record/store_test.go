// SPDX-License-Identifier: Apache-2.0

package record

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// golden is the file of full(). A change of the form requires a change here and another version: the driver reads the
// files of earlier versions, and a field that the driver does not know is an error.
const golden = `{"version":5,"volumeID":"csi-1","targetPath":"/pods/uid/volumes/kubernetes.io~csi/ssh/mount",` +
	`"pod":{"namespace":"team","name":"web-0","uid":"0b5c"},` +
	`"spec":{"volume":"ssh-keys","objects":[{"kind":"Secret","name":"ssh-keys","items":[` +
	`{"key":"key","container":"c","divisor":"1Mi","path":"dir/<path> & \"more\"","mode":292,"uid":3},` +
	`{"key":"k2","path":"p2"}],"optional":true,"mode":256},{"mode":0}],` +
	`"uid":1000,"gid":2000,"mode":384,"defaultUser":71,"dirMode":493,"refresh":"watch","layout":"files",` +
	`"paths":{"dir/a:b\n\\":{"uid":4,"gid":5,"mode":0},"p2":{}},"templates":{"t/<&>":"$(p2)\n"},` +
	`"mountPoints":["data","run/x"],"subPaths":["conf"]},` +
	`"mountGroup":5000,"user":70,"allocatable":{"cpu":"4","memory":"8Gi"},"size":12,` +
	`"device":18446744073709551615,"fsid":9223372036854775809}`

// goldenMinimal has no field that is newer than version 4, so a driver that reads only version 4 can read the file.
const goldenMinimal = `{"version":4,"volumeID":"csi-0","targetPath":"/t","pod":{"namespace":"","name":"","uid":"u"},` +
	`"spec":{"objects":null,"dirMode":0,"refresh":""},"device":0,"fsid":0}`

func TestGolden(t *testing.T) {
	testkit.NothingLeft(t)
	s, dir := newStore(t)
	for want, v := range map[string]Volume{golden: full(), goldenMinimal: minimal("csi-0")} {
		save(t, s, v)
		b, err := os.ReadFile(filepath.Join(dir, fileName(v.VolumeID)))
		if err != nil || string(b) != want {
			t.Errorf("%v\ngot  %s\nwant %s", err, b, want)
		}
	}
	// The name of the file is a part of the form: the SHA-256 of the id.
	if got, want := fileName("a"), "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb.json"; got != want {
		t.Errorf("file name of volume a: %s, want %s", got, want)
	}
	// The comparison above would not notice a field that full leaves out.
	everyFieldSet(t, "Volume", reflect.ValueOf(full()))
	if got := load(t, s); !reflect.DeepEqual(got, map[string]Volume{"csi-1": full(), "csi-0": minimal("csi-0")}) {
		t.Errorf("loaded %+v", got)
	}
}

func TestOpenMakesTheDirectoryPrivate(t *testing.T) {
	testkit.NothingLeft(t)
	dir := filepath.Join(t.TempDir(), "volumes")
	if err := errors.Join(os.Mkdir(dir, 0), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Lstat(dir); err != nil || st.Mode() != fs.ModeDir|0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestOpenChangesNothingBehindALink(t *testing.T) {
	testkit.NothingLeft(t)
	victim, link := t.TempDir(), filepath.Join(t.TempDir(), "volumes")
	if err := errors.Join(os.Chmod(victim, 0o755), os.Symlink(victim, link)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(link); err == nil || !strings.Contains(err.Error(), link) {
		t.Errorf("error %v, want one that names the link", err)
	}
	if st, err := os.Lstat(victim); err != nil || st.Mode() != fs.ModeDir|0o755 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

// The data that is known when a volume's share is reserved determines the length of its record.
func TestMaxLengthIsKnownBeforeTheMountIsMade(t *testing.T) {
	testkit.NothingLeft(t)
	s, _ := newStore(t)
	v := full()
	v.Spec.Sources[0].Items[0].Path = strings.Repeat("<&>\x01", 1000)
	early := v
	early.Size, early.Device, early.FSID = 0, 0, 0
	v.Size, v.Device, v.FSID = math.MaxInt64, math.MaxUint64, math.MaxUint64
	save(t, s, v)
	st, err := os.Stat(s.path(v.VolumeID))
	if err != nil {
		t.Fatal(err)
	}
	if got := MaxLength(early); int64(got) != st.Size() || got > 10000 {
		t.Errorf("got %d bytes, the file has %d; want less than 10000", got, st.Size())
	}
}

func everyFieldSet(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	switch {
	case v.IsZero():
		t.Errorf("%s is not set in full()", name)
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			everyFieldSet(t, name+"."+v.Type().Field(i).Name, v.Field(i))
		}
	case v.Kind() == reflect.Slice:
		everyFieldSet(t, name+"[0]", v.Index(0))
	case v.Kind() == reflect.Map:
		first := slices.MinFunc(v.MapKeys(), func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		everyFieldSet(t, name+"["+first.String()+"]", v.MapIndex(first))
	}
}

func TestModes(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077} {
		t.Run(fmt.Sprintf("umask %03o", umask), func(t *testing.T) {
			testkit.NothingLeft(t)
			defer syscall.Umask(syscall.Umask(umask))
			s, dir := newStore(t)
			save(t, s, minimal("a"))
			save(t, s, minimal("a"))
			want := "040700 0:0 .\n100600 0:0 " + fileName("a")
			if got := tree(t, dir); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if err := s.SetAside("a"); err != nil {
				t.Fatal(err)
			}
			want = "040700 0:0 .\n040700 0:0 bad\n100600 0:0 bad/" + fileName("a")
			if got := tree(t, dir); got != want {
				t.Errorf("set aside: got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	testkit.NothingLeft(t)
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "deep/er")); err != nil {
		t.Error(err)
	}
	if _, err := Open(filepath.Join(dir, "deep/er")); err != nil {
		t.Errorf("what is there: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(dir, "file")); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a file: %v", err)
	}
}

func TestSaveLoadRemove(t *testing.T) {
	testkit.NothingLeft(t)
	s, dir := newStore(t)
	if got := load(t, s); len(got) != 0 {
		t.Errorf("an empty directory has %+v", got)
	}
	want := map[string]Volume{}
	for i := range 50 {
		v := full()
		v.VolumeID, v.Device = fmt.Sprintf("csi-%d", i), uint64(i)
		want[v.VolumeID] = v
		save(t, s, v)
	}
	changed := minimal("csi-7")
	want["csi-7"] = changed
	changed.Version = 99 // Save writes its own version.
	save(t, s, changed)
	if got := load(t, s); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	again, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time without files
		for id := range want {
			if err := again.Remove(id); err != nil {
				t.Error(err)
			}
		}
	}
	if got := tree(t, dir); got != "040700 0:0 ." {
		t.Errorf("left:\n%s", got)
	}
}

func TestVolumeIDsAreNoPaths(t *testing.T) {
	testkit.NothingLeft(t)
	s, dir := newStore(t)
	outside := filepath.Dir(dir)
	if err := os.WriteFile(filepath.Join(outside, "victim.json"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	ids := []string{"..", ".", "/", "../victim", "../victim.json", filepath.Join(outside, "victim"), "a/b",
		"a/../../victim", "bad", "bad/x", "-rf", "*", "a\x00b", "a\nb", strings.Repeat("x", 5000),
		"csi-1", "CSI-1", "csi-1 ", "ü"}
	before := tree(t, outside)
	for _, id := range ids {
		save(t, s, minimal(id))
	}
	got := load(t, s)
	for _, id := range ids {
		if !reflect.DeepEqual(got[id], minimal(id)) {
			t.Errorf("%.50q: loaded %+v", id, got[id])
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(ids) {
		t.Errorf("%d files for %d ids, %v", len(entries), len(ids), err)
	}
	for i, id := range ids {
		if i%2 == 0 {
			err = s.Remove(id)
		} else {
			err = errors.Join(s.SetAside(id), os.RemoveAll(filepath.Join(dir, "bad")))
		}
		if err != nil {
			t.Errorf("%.50q: %v", id, err)
		}
	}
	if after := tree(t, outside); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

func TestSetAside(t *testing.T) {
	testkit.NothingLeft(t)
	s, dir := newStore(t)
	save(t, s, minimal("a"))
	save(t, s, minimal("b"))
	for range 2 { // The second one replaces the first.
		save(t, s, minimal("a"))
		if err := s.SetAside("a"); err != nil {
			t.Fatal(err)
		}
	}
	if got := load(t, s); len(got) != 1 || got["b"].VolumeID != "b" {
		t.Errorf("loaded %+v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "bad", fileName("a"))); err != nil {
		t.Error(err)
	}
	if err := s.SetAside("never there"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "never there") {
		t.Errorf("set aside what is not there: %v", err)
	}
}

// TestLoadOfBadFiles puts each bad file between two good ones. path is the file of the volume "mine".
func TestLoadOfBadFiles(t *testing.T) {
	type outcome int
	const (
		corrupt outcome = iota // reported as ErrCorrupt, moved to bad
		other                  // reported as ErrVersion, stays
		ignored                // not reported, stays
		removed                // not reported, gone
		good                   // loaded
	)
	valid := string(mustEncode(minimal("mine")))
	text := func(s string) func(string) error {
		return func(path string) error { return os.WriteFile(path, []byte(s), 0o600) }
	}
	with := func(old, new string) func(string) error {
		if !strings.Contains(valid, old) {
			panic(old)
		}
		return text(strings.Replace(valid, old, new, 1))
	}
	named := func(name string, make func(string) error) func(string) error {
		return func(path string) error { return make(filepath.Join(filepath.Dir(path), name)) }
	}
	files := map[string]struct {
		make func(path string) error
		want outcome
	}{
		"a good record":                  {text(valid), good},
		"a good record and a newline":    {text(valid + "\n"), good},
		"empty":                          {text(""), corrupt},
		"only a space":                   {text(" "), corrupt},
		"truncated by one byte":          {text(valid[:len(valid)-1]), corrupt},
		"truncated in the middle":        {text(valid[:len(valid)/2]), corrupt},
		"truncated to one byte":          {text("{"), corrupt},
		"zeros, as after a power cut":    {text(strings.Repeat("\x00", len(valid))), corrupt},
		"garbage":                        {text("\x7fELF\x02\x01\x01\x00\xff\xfe"), corrupt},
		"text":                           {text("version: 1\nvolumeID: mine\n"), corrupt},
		"null":                           {text("null"), corrupt},
		"an empty object":                {text("{}"), corrupt},
		"a list":                         {text("[" + valid + "]"), corrupt},
		"a string":                       {text(`"mine"`), corrupt},
		"deeply nested":                  {text(strings.Repeat("[", 1<<20)), corrupt},
		"version 0":                      {with(`"version":4`, `"version":0`), corrupt},
		"version -1":                     {with(`"version":4`, `"version":-1`), corrupt},
		"no version":                     {with(`"version":4,`, ``), corrupt},
		"a version that is text":         {with(`"version":4`, `"version":"1"`), corrupt},
		"a version beyond any integer":   {with(`"version":4`, `"version":1e99`), corrupt},
		"version 1":                      {with(`"version":4`, `"version":1`), other},
		"version 2":                      {with(`"version":4`, `"version":2`), other},
		"version 3, of the first design": {with(`"version":4`, `"version":3`), other},
		"version 3, with its fields": {text(`{"version":3,"volumeID":"mine","secretRef":"x","spec":{"sources":[]}}`),
			other},
		"version 5 without its fields":       {with(`"version":4`, `"version":5`), corrupt},
		"version 4 with fields of version 5": {with(`"refresh"`, `"layout":"files","refresh"`), corrupt},
		"version 4 with templates":           {with(`"refresh"`, `"templates":{"a":"b"},"refresh"`), corrupt},
		"version 6":                          {with(`"version":4`, `"version":6`), other},
		"version 99, with unknown fields":    {text(`{"version":99,"volume":{"id":"mine"}}`), other},
		"version 4, truncated":               {text(`{"version":4,"volumeID":"mi`), corrupt},
		"another volume's name":              {with(`"mine"`, `"yours"`), corrupt},
		"the name of a good one":             {with(`"mine"`, `"first"`), corrupt},
		"no volume id":                       {with(`"mine"`, `""`), corrupt},
		"no target path":                     {with(`"/t"`, `""`), corrupt},
		"no pod uid":                         {with(`"uid":"u"`, `"uid":""`), corrupt},
		"an unknown field":                   {with(`"device"`, `"content":"x","device"`), corrupt},
		"an unknown nested field":            {with(`"refresh"`, `"token":"x","refresh"`), corrupt},
		"a second record behind the first":   {text(valid + valid), corrupt},
		"a bracket behind the record":        {text(valid + "]"), corrupt},
		"a brace behind the record":          {text(valid + "}"), corrupt},
		"zeros behind the record":            {text(valid + "\x00\x00"), corrupt},
		"a number where text belongs":        {with(`"/t"`, `7`), corrupt},
		"text where a number belongs":        {with(`"device":0`, `"device":"0"`), corrupt},
		"a negative mode":                    {with(`"dirMode":0`, `"dirMode":-1`), corrupt},
		"a negative size":                    {with(`"device":0`, `"size":-1,"device":0`), corrupt},
		"a uid beyond 32 bits":               {with(`"dirMode":0`, `"uid":4294967296,"dirMode":0`), corrupt},
		"17 MiB of spaces behind the record": {text(valid + strings.Repeat(" ", 17<<20)), corrupt},
		"17 MiB that are nowhere on the disk": {func(path string) error {
			return errors.Join(text(valid)(path), os.Truncate(path, 17<<20))
		}, corrupt},
		// encoding/json takes the last one.
		"a key twice, the last one right":  {with(`"device":0`, `"device":5,"device":0`), good},
		"a version twice":                  {with(`"device":0`, `"version":2,"device":0`), other},
		"a name twice, the last one wrong": {with(`"device":0`, `"volumeID":"yours","device":0`), corrupt},
		"a symbolic link to a good record": {func(path string) error {
			return errors.Join(text(valid)(path+".elsewhere"), os.Symlink(path+".elsewhere", path))
		}, corrupt},
		"a symbolic link to nowhere": {func(path string) error { return os.Symlink("nowhere", path) }, corrupt},
		"a symbolic link to itself":  {func(path string) error { return os.Symlink(path, path) }, corrupt},
		"a FIFO":                     {func(path string) error { return unix.Mkfifo(path, 0o600) }, corrupt},
		"a device without an end": {func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, 1<<8|5) },
			corrupt},
		"an empty directory": {func(path string) error { return os.Mkdir(path, 0o700) }, corrupt},
		"a directory with a record in it": {func(path string) error {
			return errors.Join(os.Mkdir(path, 0o700), text(valid)(filepath.Join(path, filepath.Base(path))))
		}, corrupt},
		"a socket":                       {socket, corrupt},
		"a name that is no hash":         {named("mine.json", text(valid)), corrupt},
		"a name that is only the suffix": {named(".json", text(valid)), corrupt},
		"a hash in capitals": {func(path string) error {
			return named(strings.ToUpper(strings.TrimSuffix(filepath.Base(path), ".json"))+".json", text(valid))(path)
		}, corrupt},
		"a name with another suffix": {named("mine.json.bak", text(valid)), ignored},
		"a lock":                     {named("lock", text("")), ignored},
		"a FIFO with a name of its own": {named("fifo", func(path string) error { return unix.Mkfifo(path, 0o600) }),
			ignored},
		"an unfinished record":                {func(path string) error { return text(valid[:9])(path + ".tmp") }, removed},
		"an unfinished record that is a FIFO": {func(path string) error { return unix.Mkfifo(path+".tmp", 0o600) }, removed},
		"an unfinished record that is a link": {func(path string) error {
			return os.Symlink(filepath.Dir(path), path+".tmp")
		}, removed},
	}
	for name, c := range files {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			s, dir := newStore(t)
			save(t, s, minimal("first"))
			save(t, s, full())
			path := filepath.Join(dir, fileName("mine"))
			before := names(t, dir)
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			var new []string
			for _, n := range names(t, dir) {
				if !contains(before, n) && !strings.HasSuffix(n, ".elsewhere") {
					new = append(new, n)
				}
			}
			if len(new) != 1 {
				t.Fatalf("new files: %q", new)
			}
			want := map[string]Volume{"first": minimal("first"), "csi-1": full()}
			if c.want == good {
				want["mine"] = minimal("mine")
			}
			for _, round := range []string{"first", "second"} {
				var volumes []Volume
				var bad []error
				var err error
				done := make(chan struct{})
				go func() { defer close(done); volumes, bad, err = s.Load() }()
				select {
				case <-done:
				case <-time.After(10 * time.Second):
					t.Fatal("Load hangs")
				}
				if err != nil {
					t.Fatal(err)
				}
				got := map[string]Volume{}
				for _, v := range volumes {
					got[v.VolumeID] = v
				}
				if !reflect.DeepEqual(got, want) || len(volumes) != len(want) {
					t.Errorf("%s load: got %+v", round, volumes)
				}
				// A bad file is reported with its name and the reason in one line. A corrupt file is reported only once.
				var wantErr error
				switch {
				case c.want == corrupt && round == "first":
					wantErr = ErrCorrupt
				case c.want == other:
					wantErr = ErrVersion
				}
				if wantErr == nil && len(bad) > 0 || wantErr != nil &&
					(len(bad) != 1 || !errors.Is(bad[0], wantErr) || !strings.Contains(bad[0].Error(), new[0]) ||
						errors.Is(bad[0], ErrVersion) != (wantErr == ErrVersion) || strings.Contains(bad[0].Error(), "\n") ||
						len(bad[0].Error()) > 1000) {
					t.Errorf("%s load: bad %v, want %v with %s", round, bad, wantErr, new[0])
				}
				_, inPlace := os.Lstat(filepath.Join(dir, new[0]))
				_, aside := os.Lstat(filepath.Join(dir, "bad", new[0]))
				if stays := c.want == good || c.want == other || c.want == ignored; (inPlace == nil) != stays ||
					(aside == nil) != (c.want == corrupt) {
					t.Errorf("%s load: in place: %v, aside: %v", round, inPlace, aside)
				}
			}
			// After any bad file, a record of the volume can be saved and read again.
			if c.want != good && c.want != other && new[0] == filepath.Base(path) {
				save(t, s, minimal("mine"))
				if got := load(t, s); !reflect.DeepEqual(got["mine"], minimal("mine")) {
					t.Errorf("saved again: %+v", got["mine"])
				}
			}
		})
	}
	for _, id := range []string{"F-20", "F-22"} {
		reliability.Shown(t, id, fmt.Sprintf("%d files, each between good records", len(files)))
	}
}

func mustEncode(v Volume) []byte {
	s, err := os.MkdirTemp("", "record")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(s)
	store := &Store{dir: s}
	if err := store.Save(v); err != nil {
		panic(err)
	}
	b, err := os.ReadFile(store.path(v.VolumeID))
	if err != nil {
		panic(err)
	}
	return b
}

// socket makes a socket at path, which is too long for the address of a socket.
func socket(path string) error {
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s")})
	if err != nil {
		return err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return os.Rename(filepath.Join(dir, "s"), path)
}

func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func TestLoadOfADirectoryThatIsNotThere(t *testing.T) {
	testkit.NothingLeft(t)
	s, dir := newStore(t)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if volumes, bad, err := s.Load(); volumes != nil || bad != nil || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, %v, %v", volumes, bad, err)
	}
	if err := s.Save(minimal("a")); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "volume a") {
		t.Errorf("%v", err)
	}
	if err := s.Remove("a"); err != nil {
		t.Errorf("%v", err)
	}
}

// A file that can't be opened for an external reason is reported, and stays. Otherwise a process that runs out of
// descriptors would move all good records aside.
func TestLoadWithTooFewDescriptors(t *testing.T) {
	testkit.NothingLeft(t)
	s, dir := newStore(t)
	save(t, s, minimal("a"))
	save(t, s, minimal("b"))
	before := tree(t, dir)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, loadErr := s.load(fileName("a"))
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(loadErr, unix.EMFILE) || errors.Is(loadErr, ErrCorrupt) {
		t.Errorf("got %v", loadErr)
	}
	if after := tree(t, dir); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
}

// Save never writes to an existing file with the temporary name: the file could be another's, or have a wider mode.
func TestSaveOverLeftOvers(t *testing.T) {
	for name, prepare := range map[string]func(tmp, victim string) error{
		"a file of a killed writer": func(tmp, _ string) error {
			return os.WriteFile(tmp, []byte(strings.Repeat("x", 10000)), 0o600)
		},
		"a file that all may read": func(tmp, _ string) error {
			return errors.Join(os.WriteFile(tmp, nil, 0o600), os.Chmod(tmp, 0o666))
		},
		"a link to a victim":        func(tmp, victim string) error { return os.Symlink(victim, tmp) },
		"a second name of a victim": func(tmp, victim string) error { return os.Link(victim, tmp) },
		"a FIFO":                    func(tmp, _ string) error { return unix.Mkfifo(tmp, 0o600) },
		"an empty directory":        func(tmp, _ string) error { return os.Mkdir(tmp, 0o700) },
		"a link to nowhere":         func(tmp, _ string) error { return os.Symlink("nowhere", tmp) },
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			s, dir := newStore(t)
			victim := filepath.Join(filepath.Dir(dir), "victim")
			if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := prepare(filepath.Join(dir, fileName("a")+".tmp"), victim); err != nil {
				t.Fatal(err)
			}
			save(t, s, minimal("a"))
			if got, want := tree(t, dir), "040700 0:0 .\n100600 0:0 "+fileName("a"); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
			if b, err := os.ReadFile(victim); string(b) != "precious" {
				t.Errorf("the victim holds %q, %v", b, err)
			}
			if got := load(t, s); !reflect.DeepEqual(got["a"], minimal("a")) {
				t.Errorf("loaded %+v", got)
			}
		})
	}
}

// A failed save leaves the old record, and nothing else.
func TestSaveFails(t *testing.T) {
	big := full()
	for i := range 1000 { // This makes 100 KB, more than four pages of 16 KiB.
		big.Spec.Sources[0].Items = append(big.Spec.Sources[0].Items,
			Item{Key: "key", Path: strings.Repeat("p", 100) + fmt.Sprint(i)})
	}
	fourPages := fmt.Sprint("size=", 4*os.Getpagesize())
	for name, c := range map[string]struct {
		options string
		break_  func(t *testing.T, dir string)
		want    error
		// check is the result of Check, which requires less room than a large record.
		check error
	}{
		"no room for the bytes": {fourPages, func(*testing.T, string) {}, unix.ENOSPC, nil},
		"no room at all": {fourPages, func(t *testing.T, dir string) {
			os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 1<<20), 0o600)
		}, unix.ENOSPC, unix.ENOSPC},
		"no inode": {"nr_inodes=5", func(t *testing.T, dir string) {
			for i := range 10 {
				os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600)
			}
		}, unix.ENOSPC, unix.ENOSPC},
		"read-only": {"", func(t *testing.T, dir string) {
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
		}, unix.EROFS, unix.EROFS},
	} {
		t.Run(name, func(t *testing.T) {
			testkit.NothingLeft(t)
			dir := t.TempDir()
			if err := unix.Mount("record-test", dir, "tmpfs", 0, c.options); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			s, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			save(t, s, full())
			if err := s.Check(); err != nil {
				t.Errorf("Check before: %v", err)
			}
			c.break_(t, dir)
			before := tree(t, dir)
			for range 2 {
				if err := s.Check(); !errors.Is(err, c.check) || err != nil && !strings.Contains(err.Error(), dir) {
					t.Errorf("Check: %v, want %v", err, c.check)
				}
				if err := s.Save(big); !errors.Is(err, c.want) || !strings.Contains(err.Error(), "volume csi-1") ||
					strings.Contains(err.Error(), "\n") {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if after := tree(t, dir); after != before {
					t.Errorf("before\n%s\nafter\n%s", before, after)
				}
				if got := load(t, s); !reflect.DeepEqual(got, map[string]Volume{"csi-1": full()}) {
					t.Errorf("loaded %+v", got)
				}
			}
		})
	}
}

func TestReplaceIsAtomic(t *testing.T) {
	testkit.NothingLeft(t)
	s, _ := newStore(t)
	versions := []Volume{full(), minimal("csi-1")}
	save(t, s, versions[0])
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				v, err := s.load(fileName("csi-1"))
				if err != nil || !reflect.DeepEqual(v, versions[0]) && !reflect.DeepEqual(v, versions[1]) {
					t.Errorf("read %+v, %v", v, err)
					return
				}
			}
		})
	}
	for i := range 300 {
		if err := s.Save(versions[(i+1)%2]); err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	wg.Wait()
}

func TestDifferentVolumesAtTheSameTime(t *testing.T) {
	testkit.NothingLeft(t)
	s, _ := newStore(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			id := fmt.Sprint(i)
			for range 50 {
				if err := errors.Join(s.Save(minimal(id)), s.Remove(id), s.Save(minimal(id))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := load(t, s); len(got) != 20 {
		t.Errorf("%d records, want 20", len(got))
	}
}
