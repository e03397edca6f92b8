// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

const hostileValue = "what-no-message-may-hold"

// hostileRequest is a good request with a change, and the driver's expected answer. The ids are those of
// docs/hostile-inputs.md.
type hostileRequest struct {
	name   string
	change func(*csi.NodePublishVolumeRequest)
	code   codes.Code
}

// attribute sets attributes of the volume, or keys of kubelet.
func attribute(pairs ...string) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) {
		for i := 0; i < len(pairs); i += 2 {
			r.VolumeContext[pairs[i]] = pairs[i+1]
		}
	}
}

// each returns a case for each value.
func each(name, key string, code codes.Code, values ...string) (cases []hostileRequest) {
	for _, v := range values {
		cases = append(cases, hostileRequest{fmt.Sprintf("%s: %.40q", name, v), attribute(key, v), code})
	}
	return cases
}

// paths returns a case for each PATH in uid/PATH, gid/PATH and mode/PATH, and in template/PATH if the PATH can be no
// file.
func paths(name string, code codes.Code, values ...string) (cases []hostileRequest) {
	names := []string{"uid/", "gid/", "mode/"}
	if code == codes.InvalidArgument {
		names = append(names, "template/")
	}
	for _, v := range values {
		for _, attributeName := range names {
			cases = append(cases, hostileRequest{fmt.Sprintf("%s: %s%.40q", name, attributeName, v),
				attribute(attributeName+v, "0"), code})
		}
	}
	return cases
}

func capability(change func(*csi.VolumeCapability_MountVolume)) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) { change(r.VolumeCapability.GetMount()) }
}

// hostileRequests returns requests of a pod that the driver must refuse because of their own content.
func hostileRequests(t *testing.T, d *testkit.Driver, p kubelet.Pod) []hostileRequest {
	t.Helper()
	const refused = codes.InvalidArgument
	other := kubelet.Pod{Namespace: p.Namespace, Name: "other", UID: "other-6f0a3c1e-0001"}
	id := func(id string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { r.VolumeId = id }
	}
	target := func(path string) func(*csi.NodePublishVolumeRequest) {
		return func(r *csi.NodePublishVolumeRequest) { r.TargetPath = path }
	}
	good := d.Target(p, "ssh")
	cases := []hostileRequest{
		{"H-001 no volume id", id(""), refused},
		{"H-003 no target path", target(""), refused},
		{"H-004 no capability", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil }, refused},
		{"H-006 neither mount nor block", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessType = nil },
			refused},
		{"H-006 block", func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		}, refused},
		{"H-007 no access mode", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode = nil }, refused},
		{"H-009 no volume context", func(r *csi.NodePublishVolumeRequest) { r.VolumeContext = nil }, refused},
		{"H-010 a path as id", id("../../etc"), refused},
		{"H-012 a slash in the id", id("a/b"), refused},
		{"H-013 an id of 129 bytes", id(strings.Repeat("a", 129)), refused},
		{"H-016 the id of another pod", id(kubelet.VolumeID(other, "ssh")), refused},
		{"H-018 the id of another volume of the pod", id(kubelet.VolumeID(p, "tls")), refused},
		{"H-021 a directory of the machine", target("/etc"), refused},
		{"H-022 a path that climbs", target(filepath.Dir(good) + "/../../../../../../etc/mount"), refused},
		{"H-024 a path of 5000 bytes", target("/" + strings.Repeat("a", 4999)), refused},
		{"H-025 the directory of another plugin", target(strings.Replace(good, "~csi", "~secret", 1)), refused},
		{"H-027 another pod's directory, with its id", func(r *csi.NodePublishVolumeRequest) {
			r.TargetPath, r.VolumeId = d.Target(other, "ssh"), kubelet.VolumeID(other, "ssh")
		}, refused},
		{"H-037 the same id at another target", target(d.Target(p, "tls")), refused},
		{"H-040 no namespace", func(r *csi.NodePublishVolumeRequest) {
			delete(r.VolumeContext, "csi.storage.k8s.io/pod.namespace")
		}, refused},
		{"H-042 another pod's uid", attribute("csi.storage.k8s.io/pod.uid", other.UID), refused},
		{"H-043 another namespace, which the driver may not read",
			attribute("csi.storage.k8s.io/pod.namespace", "kube-system"), codes.PermissionDenied},
		{"H-046 a misspelt attribute", attribute("secretname", "keys"), refused},
		{"H-063 a volume that may be written", func(r *csi.NodePublishVolumeRequest) { r.Readonly = false }, refused},
		{"H-066 a publish context",
			func(r *csi.NodePublishVolumeRequest) { r.PublishContext = map[string]string{"device": "/dev/sda"} }, refused},
		{"H-067 no object", func(r *csi.NodePublishVolumeRequest) { delete(r.VolumeContext, "secretName") }, refused},
		{"H-070 an object that is not there", attribute("secretName", "nowhere"), codes.NotFound},
		{"H-073 an optional object that may not be read",
			attribute("csi.storage.k8s.io/pod.namespace", "kube-system", "optional", "true"), codes.PermissionDenied},
		{"H-116 the attribute items of other drivers", attribute("items", "[{key: a, path: b}]"), refused},
		{"H-116 the attribute items of 1 MiB", attribute("items", strings.Repeat("[", 1<<20)), refused},
		{"H-117 an object and a volume", attribute("volume", "described"), refused},
		{"H-117 a Secret and a ConfigMap", attribute("configMapName", "conf"), refused},
		{"H-117 a Secret and nodePublishSecretRef",
			func(r *csi.NodePublishVolumeRequest) { r.Secrets = map[string]string{"a": hostileValue} }, refused},
		{"H-117 a volume and nodePublishSecretRef",
			instead(attribute("volume", "described"), func(r *csi.NodePublishVolumeRequest) {
				r.Secrets = map[string]string{"a": hostileValue}
			}), refused},
		{"H-117 optional beside volume", instead(attribute("volume", "described", "optional", "true")), refused},
		{"H-119 a volume of a pod that is not there", instead(attribute("volume", "described")), codes.NotFound},
		{"H-119 a volume of a pod that the driver may not read",
			instead(attribute("volume", "described", "csi.storage.k8s.io/pod.namespace", "kube-system")),
			codes.PermissionDenied},
		{"H-126 a PATH that is no file", attribute("uid/z", "0"), codes.FailedPrecondition},
		{"H-126 a PATH that is a directory of the layout", attribute("mode/..data", "0777"), refused},
		{"H-126 1000 PATHs that are no files", manyPaths(1000), codes.FailedPrecondition},
		{"H-129 a template that shows another one", attribute("template/t", "$(u)", "template/u", hostileValue),
			codes.FailedPrecondition},
		{"H-129 a template beneath a file", attribute("template/a/t", hostileValue), codes.FailedPrecondition},
		{"H-130 90 templates that show a file 4096 times each", manyTemplates(90), codes.FailedPrecondition},
	}
	for _, flags := range [][]string{{"rw"}, {"suid", "exec", "dev"}, {"size=100%"}, {"remount"}, {"bind"}} {
		cases = append(cases, hostileRequest{fmt.Sprintf("H-060 mount flags %q", flags),
			capability(func(m *csi.VolumeCapability_MountVolume) { m.MountFlags = flags }), refused})
	}
	cases = append(cases, hostileRequest{"H-061 a label that brings an option along",
		capability(func(m *csi.VolumeCapability_MountVolume) { m.MountFlags = []string{`context="x",size=9g`} }), refused})
	for _, fsType := range []string{"ext4", "block", "tmpfs,size=9g"} {
		cases = append(cases, hostileRequest{"H-062 the file system " + fsType,
			capability(func(m *csi.VolumeCapability_MountVolume) { m.FsType = fsType }), refused})
	}
	for _, group := range []string{"abc", "-1", "4294967295", "2147483648", "0x1"} {
		cases = append(cases, hostileRequest{"H-064 fsGroup " + group,
			capability(func(m *csi.VolumeCapability_MountVolume) { m.VolumeMountGroup = group }), refused})
	}
	for _, name := range []string{"a~b", "a.b", "A", "-a", strings.Repeat("a", 64)} {
		cases = append(cases, hostileRequest{fmt.Sprintf("H-028 a volume called %.20q", name),
			func(r *csi.NodePublishVolumeRequest) {
				r.TargetPath, r.VolumeId = d.Target(p, name), kubelet.VolumeID(p, name)
			}, refused})
	}
	for _, key := range []string{"../../victim", "a/b", "..data", "a\x00b", "", ".", "..", strings.Repeat("k", 256)} {
		cases = append(cases, hostileRequest{fmt.Sprintf("H-083 a key that is no file's name: %.20q", key),
			func(r *csi.NodePublishVolumeRequest) {
				delete(r.VolumeContext, "secretName")
				r.Secrets = map[string]string{key: hostileValue}
			}, codes.FailedPrecondition})
	}
	return slices.Concat(cases,
		each("H-045 a namespace that is none", "csi.storage.k8s.io/pod.namespace", refused, "../x", "A_B",
			strings.Repeat("a", 300), "", "a/b", "a?b", "%2e"),
		each("H-048 a uid that is no number", "uid", refused, "-1", "+1000", " 1000", "1000 ", "1e3", "0x3e8", "1_000",
			"01000", "", "١٠٠٠", "root"),
		each("H-048 a gid that is no number", "gid", refused, "-1", "+1000", " 1000", "1000 ", "1e3", "0x3e8", "1_000",
			"01000", "", "١٠٠٠", "root"),
		each("H-049 a uid that chown takes for \"as it is\"", "uid", refused, "4294967295"),
		each("H-049 a gid that chown takes for \"as it is\"", "gid", refused, "4294967295"),
		each("H-050 a uid that wraps around to root", "uid", refused, "4294967296", "18446744073709551616"),
		each("H-051 a uid that Kubernetes does not know", "uid", refused, "2147483648"),
		each("H-054 a mode that is no octal number", "mode", refused, "0888", "abc", "-0400", "0o400", "0x1ff", ""),
		each("H-055 a mode with other bits", "mode", refused, "100644", "8389101", "2147484141"),
		each("H-053 a mode with setuid, setgid or sticky", "mode", refused, "4755", "2755", "1777", "04755", "6777"),
		each("H-053 a directory with setuid, setgid or sticky", "dirMode", refused, "4755", "2755", "1777"),
		each("H-069 a name that leads elsewhere", "secretName", refused, "../../nodes/x", "a/b", "A",
			strings.Repeat("a", 254), "x?watch=1", "%2e%2e", "..", "a\x00b", "a\nb"),
		each("H-072 optional that is neither", "optional", refused, "yes", "1", "TRUE", ""),
		each("H-118 a volume's name that is none", "volume", refused, "../x", "A", "a.b", "a/b", "", "a\x00b",
			strings.Repeat("a", 64)),
		each("H-128 a template that can't be read", "template/t", refused, "", hostileValue+"$(", hostileValue+"$(a$(b)",
			hostileValue+"\x00", hostileValue+strings.Repeat("x", 16384)),
		each("H-128 a template with the path of no file", "template/t", refused, hostileValue+"$(/etc/shadow)",
			"$(../../etc/shadow)", "$(..data/a)", "$()", "$(a/)", "$(a\x00)"),
		each("H-129 a template of a file that the Secret does not make", "template/t", codes.FailedPrecondition,
			hostileValue+"$(c)", "$(t)", "$(etc/shadow)", "$(a\x1b[2J\n)", "$("+strings.Repeat("a", 255)+")"),
		each("H-131 a layout that is none", "layout", refused, "", "Links", "in place", "files,in-place"),
		paths("H-075 an absolute path", refused, "/abs"),
		paths("H-076 a path that climbs or is the writer's", refused, "..data", "..x", "a/../b", "..", "../../etc/passwd",
			"..2024_01_01/x"),
		paths("H-079 a path with an empty element or a dot", refused, "a/", "a//b", "./a", "", ".", "a/."),
		paths("H-080 a path that is too long", refused, strings.Repeat("a", 256), strings.Repeat("a/", 2048)+"a"),
		paths("H-082 a path with NUL", refused, "a\x00b"),
		paths("H-082 a path with characters of a terminal, which is no file here", codes.FailedPrecondition, "a\nb",
			"a\x1b[2Jb", `a\b`, "a:b"),
	)
}

// instead returns a change of a request that also removes the Secret's name.
func instead(changes ...func(*csi.NodePublishVolumeRequest)) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) {
		delete(r.VolumeContext, "secretName")
		for _, change := range changes {
			change(r)
		}
	}
}

func manyPaths(n int) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) {
		for i := range n {
			r.VolumeContext[fmt.Sprintf("mode/p%d", i)] = "0400"
		}
	}
}

func manyTemplates(n int) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) {
		for i := range n {
			r.VolumeContext[fmt.Sprintf("template/t%d", i)] = strings.Repeat("$(a)", 4096)
		}
	}
}

// asBefore returns a function that fails t if the driver holds more than it does now.
func asBefore(t *testing.T, d *testkit.Driver) func(t *testing.T) {
	t.Helper()
	mounts, records, objects, directories := testkit.MountTable(t), d.Records(), d.Metric("fsuser_watched_objects"),
		listing(t, d.Root)
	return func(t *testing.T) {
		t.Helper()
		if now := testkit.MountTable(t); now != mounts {
			t.Errorf("the mount table is not as before:\n%s\nbefore:\n%s", now, mounts)
		}
		if now := d.Records(); !slices.Equal(now, records) {
			t.Errorf("the records are %q, before: %q", now, records)
		}
		if now := d.Metric("fsuser_watched_objects"); now != objects {
			t.Errorf("%v objects are watched, before: %v", now, objects)
		}
		if now := listing(t, d.Root); !slices.Equal(now, directories) {
			t.Errorf("the directories are\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(directories, "\n"))
		}
	}
}

// listing returns all files below dir with mode, owner and path.
func listing(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		all = append(all, fmt.Sprintf("%o %d:%d %s", st.Mode, st.Uid, st.Gid, path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// fit fails t if an error is dangerous in an Event.
func fit(t *testing.T, err error) {
	t.Helper()
	text := status.Convert(err).Message()
	if text == "" || strings.Contains(text, hostileValue) || strings.ContainsFunc(text, unicode.IsControl) ||
		len(text) > 4096 {
		t.Errorf("the message is not one for an Event (%d bytes): %.5000q", len(text), text)
	}
}

func hostilePublish(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"a": hostileValue, "b": hostileValue})
	d := c.start(t)
	healthy, p := pod("healthy"), pod("hostile")
	dir, stop := publish(t, d, healthy, ssh("secretName", "keys"))
	for _, name := range []string{"ssh", "tls"} {
		if err := os.MkdirAll(filepath.Dir(d.Target(p, name)), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	mounts, check := testkit.MountTable(t), asBefore(t, d)
	requests := hostileRequests(t, d, p)
	for _, test := range requests {
		t.Run(test.name, func(t *testing.T) {
			req := d.Request(p, ssh("secretName", "keys"))
			test.change(req)
			start := time.Now()
			_, err := d.NodePublishVolume(deadline(t), req)
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if got := status.Code(err); got != test.code {
				t.Fatalf("got %v, want %v: %v", got, test.code, err)
			}
			fit(t, err)
			if testkit.MountTable(t) != mounts {
				t.Error("something is mounted")
			}
		})
	}
	check(t)
	holds(t, filepath.Join(dir, "a"), hostileValue)
	stop()
	unpublish(t, d, healthy, "ssh")
	if strings.Contains(d.Log(), hostileValue) {
		t.Error("the log has a value of the Secret in it")
	}
	reliability.Shown(t, "F-42", fmt.Sprintf("%d requests to publish", len(requests)))
}

func hostileTargets(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"a": hostileValue})
	d := c.start(t)
	victim := t.TempDir()
	if err := os.WriteFile(filepath.Join(victim, "file"), []byte("the victim's"), 0o644); err != nil {
		t.Fatal(err)
	}
	untouched := listing(t, victim)
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	targets := []struct {
		name string
		make func(t *testing.T, target string)
		code codes.Code
	}{
		{"H-030 the volume's directory is a link", func(t *testing.T, target string) {
			must(t, os.Remove(filepath.Dir(target)))
			must(t, os.Symlink(victim, filepath.Dir(target)))
		}, codes.FailedPrecondition},
		{"H-030 the directory of volumes is a link", func(t *testing.T, target string) {
			must(t, os.RemoveAll(filepath.Dir(filepath.Dir(target))))
			must(t, os.Symlink(victim, filepath.Dir(filepath.Dir(target))))
			must(t, os.MkdirAll(filepath.Join(victim, "ssh"), 0o750))
		}, codes.FailedPrecondition},
		{"H-030 the target is a link", func(t *testing.T, target string) { must(t, os.Symlink(victim, target)) },
			codes.FailedPrecondition},
		{"H-031 the target is a file", func(t *testing.T, target string) {
			must(t, os.WriteFile(target, []byte("x"), 0o600))
		}, codes.FailedPrecondition},
		{"H-031 the target is a pipe", func(t *testing.T, target string) { must(t, unix.Mkfifo(target, 0o600)) },
			codes.FailedPrecondition},
		{"H-031 the target is a socket", func(t *testing.T, target string) {
			must(t, unix.Mknod(target, unix.S_IFSOCK|0o600, 0))
		}, codes.FailedPrecondition},
		{"H-031 the target is a device", func(t *testing.T, target string) {
			must(t, unix.Mknod(target, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		}, codes.FailedPrecondition},
		{"H-032 the target is a directory with content",
			func(t *testing.T, target string) { must(t, os.MkdirAll(filepath.Join(target, "x"), 0o700)) },
			codes.FailedPrecondition},
		{"H-033 the target is an empty directory", func(t *testing.T, target string) { must(t, os.Mkdir(target, 0o700)) },
			codes.OK},
		{"H-034 the directory that is to hold the target is missing",
			func(t *testing.T, target string) { must(t, os.Remove(filepath.Dir(target))) }, codes.FailedPrecondition},
		{"H-035 something else is mounted at the target", func(t *testing.T, target string) {
			must(t, os.Mkdir(target, 0o700))
			must(t, unix.Mount(victim, target, "", unix.MS_BIND, ""))
		}, codes.FailedPrecondition},
	}
	for _, test := range targets {
		t.Run(test.name, func(t *testing.T) {
			p := pod("targets")
			target := d.Target(p, "ssh")
			must(t, os.MkdirAll(filepath.Dir(target), 0o750))
			test.make(t, target)
			before, check := listing(t, victim), asBefore(t, d)
			for range 2 {
				_, err := d.NodePublishVolume(deadline(t), d.Request(p, ssh("secretName", "keys")))
				if got := status.Code(err); got != test.code {
					t.Fatalf("got %v, want %v: %v", got, test.code, err)
				}
				if err != nil {
					fit(t, err)
					check(t)
				}
			}
			if err := d.Unpublish(deadline(t), p, "ssh"); test.code == codes.OK && err != nil {
				t.Error(err)
			}
			// Kubelet waits until nothing is mounted there, regardless of who mounted it.
			if mounts := testkit.MountsBelow(t, target); len(mounts) > 0 {
				t.Errorf("%q are left", mounts)
			}
			if now := listing(t, victim); !slices.Equal(now, before) {
				t.Errorf("the victim's directory is\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(before, "\n"))
			}
			os.Remove(filepath.Join(victim, "ssh"))
			t.Cleanup(func() { must(t, os.RemoveAll(filepath.Join(d.Root, "pods", p.UID))) })
		})
	}
	if now := listing(t, victim); !slices.Equal(now, untouched) {
		t.Errorf("the victim's directory is\n%s\nbefore:\n%s", strings.Join(now, "\n"), strings.Join(untouched, "\n"))
	}
	reliability.Shown(t, "F-42", fmt.Sprintf("%d targets", len(targets)))
}

func hostileUnpublish(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"a": "text"})
	d := c.start(t)
	p, other := pod("mine"), pod("theirs")
	dir, stop := publish(t, d, p, ssh("secretName", "keys"))
	_, stopOther := publish(t, d, other, ssh("secretName", "keys"))
	id := kubelet.VolumeID(p, "ssh")
	check := asBefore(t, d)
	requests := []struct{ name, id, target string }{
		{"H-002 no volume id", "", d.Target(p, "ssh")},
		{"H-003 no target path", id, ""},
		{"H-019 a path as id", "../x", d.Target(p, "ssh")},
		{"H-039 the root of the file system", id, "/"},
		{"H-039 kubelet's root", id, d.Root},
		{"H-039 the directory of pods", id, filepath.Join(d.Root, "pods")},
		{"H-039 a directory of the machine", id, "/etc"},
		{"H-039 another pod's volume", id, d.Target(other, "ssh")},
		{"H-039 another volume of the pod", id, d.Target(p, "tls")},
	}
	for _, test := range requests {
		t.Run(test.name, func(t *testing.T) {
			_, err := d.NodeUnpublishVolume(deadline(t),
				&csi.NodeUnpublishVolumeRequest{VolumeId: test.id, TargetPath: test.target})
			if got := status.Code(err); got != codes.InvalidArgument {
				t.Fatalf("got %v: %v", got, err)
			}
			fit(t, err)
			check(t)
		})
	}
	holds(t, filepath.Join(dir, "a"), "text")
	stop()
	stopOther()

	t.Run("H-090 a volume that never was, H-091 twice, H-093 without its directory", func(t *testing.T) {
		p := pod("never")
		for range 2 {
			if err := d.Unpublish(deadline(t), p, "ssh"); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("H-094 without its record", func(t *testing.T) {
		d.Kill()
		for _, name := range d.Records() {
			if err := os.Remove(filepath.Join(d.State, name)); err != nil {
				t.Fatal(err)
			}
		}
		d.StartAgain()
		for _, p := range []kubelet.Pod{p, other} {
			unpublish(t, d, p, "ssh")
			if mounts := testkit.MountsBelow(t, d.Target(p, "ssh")); len(mounts) > 0 {
				t.Errorf("%q are left", mounts)
			}
		}
	})
	reliability.Shown(t, "F-42", fmt.Sprintf("%d requests to unpublish", len(requests)))
}

func acceptedEdges(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"a": "text", "b": "more"})
	d := c.start(t)
	check := asBefore(t, d)
	for _, test := range []struct {
		name       string
		attributes []string
		uid        uint32
		mode       uint32
	}{
		{"H-051 the highest uid", []string{"uid", "2147483647"}, 2147483647, 0o400},
		{"H-052 uid 0, said", []string{"uid", "0"}, 0, 0o400},
		{"H-057 256 is octal", []string{"mode", "256"}, 1000, 0o256},
		{"H-058 no right for anybody", []string{"mode", "0000"}, 1000, 0},
		{"H-058 every right for everybody", []string{"mode", "0777"}, 1000, 0o777},
		{"H-046 a key of kubelet that is new", []string{"csi.storage.k8s.io/new", "x"}, 1000, 0o400},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := pod("edge")
			dir, stop := publish(t, d, p, ssh(append(test.attributes, "secretName", "keys")...))
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(dir, "a"), &st); err != nil || st.Uid != test.uid ||
				st.Mode != unix.S_IFREG|test.mode {
				t.Errorf("the file is %d %#o, %v", st.Uid, st.Mode, err)
			}
			if mounts := testkit.MountsBelow(t, d.Target(p, "ssh")); len(mounts) != 1 ||
				!strings.Contains(mounts[0], " ro,nosuid,nodev,noexec") {
				t.Errorf("mounts: %q", mounts)
			}
			// H-036: the same request again makes no second mount.
			before := testkit.MountTable(t)
			if _, err := d.Publish(deadline(t), p, ssh(append(test.attributes, "secretName", "keys")...)); err != nil ||
				testkit.MountTable(t) != before {
				t.Errorf("published again: %v\n%s\nbefore:\n%s", err, testkit.MountTable(t), before)
			}
			stop()
			unpublish(t, d, p, "ssh")
			check(t)
		})
	}
	t.Run("H-085 1 MiB in one key, and its next version", func(t *testing.T) {
		big := func(c string) map[string]string { return map[string]string{"k": strings.Repeat(c, 1<<20)} }
		secret := c.secret(t, "big", big("x"))
		p := pod("big")
		dir, stop := publish(t, d, p, ssh("secretName", "big"))
		holds(t, filepath.Join(dir, "k"), big("x")["k"])
		c.update(t, secret.Name, big("y"))
		holds(t, filepath.Join(dir, "k"), big("y")["k"])
		stop()
		unpublish(t, d, p, "ssh")
	})
	t.Run("H-095 a second publish that is refused leaves the first one's volume", func(t *testing.T) {
		p := pod("twice")
		dir, stop := publish(t, d, p, ssh("secretName", "keys"))
		check := asBefore(t, d)
		for _, change := range []func(*csi.NodePublishVolumeRequest){
			func(r *csi.NodePublishVolumeRequest) { r.Readonly = false }, attribute("uid", "1001"), attribute("uid", "root"),
			attribute("secretName", "nowhere"),
		} {
			req := d.Request(p, ssh("secretName", "keys"))
			change(req)
			if _, err := d.NodePublishVolume(deadline(t), req); err == nil {
				t.Error("it was not refused")
			}
			check(t)
			holds(t, filepath.Join(dir, "a"), "text")
		}
		stop()
		unpublish(t, d, p, "ssh")
	})
}

// tooMuch sends requests that the limits must refuse.
func tooMuch(t *testing.T, c *cluster) {
	d := c.start(t, "--max-volumes=3", "--namespace-share=100")
	c.secret(t, "keys", map[string]string{"a": "text"})
	const keys = 60000 // About the most that an API server accepts: the names alone make an object of 1.5 MiB.
	t.Run(fmt.Sprintf("H-087 %d keys of one byte", keys), func(t *testing.T) {
		data := map[string]string{}
		for i := range keys {
			data[strconv.FormatInt(int64(i), 36)] = "x"
		}
		// The race detector would multiply the driver's memory, and never free it.
		d := testkit.StartDriver(t, testkit.BuildDriverWithoutRace(t), "--access=service-account",
			"--kubeconfig="+c.kubeconfig)
		created, err := c.CoreV1().Secrets(namespace).Create(context.Background(),
			&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "many"}, StringData: data}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CoreV1().Secrets(namespace).Delete(context.Background(), created.Name, metav1.DeleteOptions{})
		check, memory := asBefore(t, d), d.Metric("process_resident_memory_bytes")
		for range 20 {
			_, err := d.Publish(deadline(t), pod("keys"), ssh("secretName", "many"))
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "--max-volume-files") {
				t.Errorf("%v", err)
			}
		}
		// Its content takes about 10 MiB in memory.
		if most := peak(t, d); most > int(memory)+96<<20 {
			t.Errorf("the driver had %d MiB of memory, before %d", most>>20, int(memory)>>20)
		}
		if err := os.RemoveAll(filepath.Join(d.Root, "pods", pod("keys").UID)); err != nil {
			t.Fatal(err)
		}
		check(t)
	})
	t.Run("H-088 one volume more than the node may have", func(t *testing.T) {
		for i := range 3 {
			if _, err := d.Publish(deadline(t), pod(fmt.Sprint("full-", i)), ssh("secretName", "keys")); err != nil {
				t.Fatal(err)
			}
		}
		_, err := d.Publish(deadline(t), pod("full-3"), ssh("secretName", "keys"))
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "--max-volumes") {
			t.Errorf("the fourth: %v", err)
		}
		unpublish(t, d, pod("full-0"), "ssh")
		if _, err := d.Publish(deadline(t), pod("full-3"), ssh("secretName", "keys")); err != nil {
			t.Errorf("after one has gone: %v", err)
		}
		for i := range 3 {
			unpublish(t, d, pod(fmt.Sprint("full-", i+1)), "ssh")
		}
	})
	reliability.Shown(t, "F-41", fmt.Sprintf("%d keys, more than --max-volume-files; 4 volumes, more than --max-volumes",
		keys))
}

// greedyPod is H-127 of docs/hostile-inputs.md: a pod with 63 volumes of 64 optional Secrets that do not exist would
// take 4032 watches, with little memory.
func greedyPod(t *testing.T, c *cluster) {
	const volumes, objects, most = 63, 64, 400 // --pod-share is 10 % of --max-watched-objects=4000
	volume := func(i int) kubelet.Volume {
		name := fmt.Sprint("v-", i)
		return kubelet.Volume{Name: name, Attributes: map[string]string{"uid": "1000", "volume": "described-" + name}}
	}
	var others []corev1.Volume
	for i := range volumes {
		var sources []corev1.VolumeProjection
		for j := range objects {
			missing := secretSource(fmt.Sprintf("missing-%d-%d", i, j))
			missing.Secret.Optional = ptr.To(true)
			sources = append(sources, missing)
		}
		v := volume(i)
		others = append(others, corev1.Volume{Name: v.Attributes["volume"], VolumeSource: projectedVolume(sources...)})
		if i > 0 { // nodeaccess.Pod adds the first one.
			csi := &corev1.CSIVolumeSource{
				Driver: attributes.Driver, ReadOnly: ptr.To(true), VolumeAttributes: v.Attributes,
			}
			others = append(others, corev1.Volume{Name: v.Name, VolumeSource: corev1.VolumeSource{CSI: csi}})
		}
	}
	p := c.create(t, nodeaccess.Pod("greedy", volume(0), others...))
	d := c.start(t)
	check := asBefore(t, d)
	published := 0
	for i := range volumes {
		_, err := d.Publish(deadline(t), p, volume(i))
		if err == nil {
			published++
			continue
		}
		if status.Code(err) != codes.ResourceExhausted ||
			!strings.Contains(err.Error(), "--pod-share: 10 % of --max-watched-objects=4000") {
			t.Fatalf("volume %d: %v", i, err)
		}
	}
	watched := d.Metric("fsuser_watched_objects")
	if published != most/objects || watched != most/objects*objects {
		t.Errorf("%d volumes are published, and %v objects are watched, want %d and %d",
			published, watched, most/objects, most/objects*objects)
	}
	c.secret(t, "keys", map[string]string{"a": "text"})
	other, v := c.describe(t, projectedVolume(secretSource("keys")))
	if _, err := d.Publish(deadline(t), other, v); err != nil {
		t.Errorf("another pod: %v", err)
	}
	holds(t, filepath.Join(d.Target(other, v.Name), "a"), "text")
	unpublish(t, d, other, v.Name)
	for i := range volumes {
		if err := d.Unpublish(deadline(t), p, volume(i).Name); err != nil {
			t.Error(err)
		}
	}
	if err := d.RemovePod(p); err != nil {
		t.Error(err)
	}
	check(t)
	reliability.Shown(t, "F-46",
		fmt.Sprintf("a real API server: %d of %d volumes with %d missing objects each, %v watched",
			published, volumes, objects, watched))
}

// peak returns the largest resident memory of the driver so far, in bytes.
func peak(t *testing.T, d *testkit.Driver) (most int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.PID()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	if _, err := fmt.Sscan(rest, &most); err != nil {
		t.Fatal(err)
	}
	return most << 10
}

// tooManyDescriptors holds connections until the driver has no descriptor left, and closes one after the other, so that
// a publish fails at each of its steps that takes a descriptor. The API server speaks HTTP/1.1, so that each of 20
// watches takes a connection of its own.
func tooManyDescriptors(t *testing.T, c *cluster) {
	const most = 64
	var sources []corev1.VolumeProjection
	for i := range 20 {
		name := fmt.Sprintf("keys-%d", i)
		c.secret(t, name, map[string]string{name: "text"})
		sources = append(sources, secretSource(name))
	}
	p, volume := c.describe(t, projectedVolume(sources...))
	d := c.startAt(t, faultproxy.NewPlain(t, c.credentials), fmt.Sprintf("--max-open-files=%d", most))
	left := func() int {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.PID()))
		if err != nil {
			t.Fatal(err)
		}
		return most - len(open)
	}
	if _, err := d.NodeGetInfo(deadline(t), &csi.NodeGetInfoRequest{}); err != nil { // opens kubelet's own connection
		t.Fatal(err)
	}
	check := asBefore(t, d)
	var connections []*kubelet.Kubelet
	release := func() {
		before := left()
		connections[0].Close()
		connections = connections[1:]
		testkit.Eventually(t, soon, "a descriptor to be given back", func() bool { return left() > before })
	}
	defer func() {
		for _, k := range connections {
			k.Close()
		}
	}()
	for n := left(); n > 0; n = left() {
		k, err := kubelet.Connect(d.Root, filepath.Join(d.Root, "plugins", "fsuser.csi.io", "csi.sock"))
		if err != nil {
			t.Fatal(err)
		}
		connections = append(connections, k)
		if _, err := k.NodeGetInfo(deadline(t), &csi.NodeGetInfoRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	steps := map[string]bool{}
	for {
		_, err := d.Publish(deadline(t), p, volume)
		if err == nil {
			break
		}
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "too many open files") ||
			!strings.Contains(err.Error(), "(--max-open-files)") {
			t.Errorf("with %d descriptors left: %v", left(), err)
		}
		steps[status.Convert(err).Message()] = true
		if len(connections) == 0 {
			t.Fatal("no publish succeeded")
		}
		release()
	}
	if !slices.ContainsFunc(slices.Collect(maps.Keys(steps)),
		func(s string) bool { return strings.Contains(s, "can't be read now: dial ") }) {
		t.Errorf("none failed for want of a connection to the API server: %q", slices.Collect(maps.Keys(steps)))
	}
	for len(connections) > 0 {
		release()
	}
	holds(t, filepath.Join(d.Target(p, "ssh"), "keys-0"), "text")
	unpublish(t, d, p, "ssh")
	check(t)
	reliability.Shown(t, "F-41", fmt.Sprintf("no descriptor left (--max-open-files), at %d steps of a publish",
		len(steps)))
}

func callsThatOvertake(t *testing.T, c *cluster) {
	c.secret(t, "keys", map[string]string{"a": "text"})
	d := c.start(t)
	check := asBefore(t, d)
	t.Run("H-097 publish and unpublish at once", func(t *testing.T) {
		p := pod("race")
		req := d.Request(p, ssh("secretName", "keys"))
		if err := os.MkdirAll(filepath.Dir(req.TargetPath), 0o750); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			var calls sync.WaitGroup
			calls.Go(func() {
				if _, err := d.NodePublishVolume(deadline(t), req); err != nil && status.Code(err) != codes.Aborted {
					t.Errorf("publish: %v", err)
				}
			})
			calls.Go(func() {
				_, err := d.NodeUnpublishVolume(deadline(t),
					&csi.NodeUnpublishVolumeRequest{VolumeId: req.VolumeId, TargetPath: req.TargetPath})
				if err != nil && status.Code(err) != codes.Aborted {
					t.Errorf("unpublish: %v", err)
				}
			})
			calls.Wait()
			// Regardless of the last call, the mount table, the records and the directory agree.
			mounted, recorded := len(testkit.MountsBelow(t, req.TargetPath)), len(d.Records())
			if _, err := os.Lstat(req.TargetPath); mounted != recorded || mounted > 1 || (err == nil) != (mounted == 1) {
				t.Fatalf("%d mounts, %d records, target: %v", mounted, recorded, err)
			}
		}
		unpublish(t, d, p, "ssh")
		check(t)
	})
	t.Run("H-099 callers that do not wait", func(t *testing.T) {
		p := pod("hasty")
		req := d.Request(p, ssh("secretName", "keys"))
		if err := os.MkdirAll(filepath.Dir(req.TargetPath), 0o750); err != nil {
			t.Fatal(err)
		}
		late, inTime, mounts := 0, 0, testkit.MountTable(t)
		// The timeout is 0, and then 100 µs more for each call, until a call on this machine ends in time.
		for patience := time.Duration(0); inTime == 0 && patience < 10*time.Second ||
			late+inTime < 100; patience += max(100*time.Microsecond, patience/100) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			_, err := d.NodePublishVolume(ctx, req)
			cancel()
			switch status.Code(err) {
			case codes.OK:
				inTime++
			case codes.DeadlineExceeded, codes.Canceled:
				late++
			default:
				t.Fatal(err)
			}
			// Kubelet unpublishes after such an answer.
			unpublish(t, d, p, "ssh")
			if testkit.MountTable(t) != mounts || len(d.Records()) > 0 {
				t.Fatalf("after a call that took %v a mount or a record is left", err)
			}
			if err := os.MkdirAll(filepath.Dir(req.TargetPath), 0o750); err != nil {
				t.Fatal(err)
			}
		}
		if late == 0 || inTime == 0 {
			t.Errorf("%d calls were late, and %d in time: the test shows nothing", late, inTime)
		}
		if err := os.RemoveAll(filepath.Join(d.Root, "pods", p.UID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		check(t)
	})
}
