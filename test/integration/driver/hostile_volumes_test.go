// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/nodeaccess"
)

// hostileVolume is a pod with a volume "described" and a volume ssh that names it, and the result of publishing ssh.
// The driver reads the pods from manifests, so no API server has validated them.
type hostileVolume struct {
	name      string
	described corev1.VolumeSource
	// change changes the pod, if it is not nil.
	change func(*corev1.Pod)
	// names is the value of the attribute volume, if the value is not "described".
	names string
	code  codes.Code
	want  files // if code is OK
}

// hostilePaths returns a case for each path of an item.
func hostilePaths(name string, paths ...string) (cases []hostileVolume) {
	for _, path := range paths {
		cases = append(cases, hostileVolume{
			name:      fmt.Sprintf("%s: %.40q", name, path),
			described: secretVolume("keys", false, items("a", path)...),
			code:      codes.InvalidArgument,
		})
	}
	return cases
}

// mounts returns a change that mounts ssh at /vol, and another volume at each of these paths.
func mounts(paths ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		addScratch(&p.Spec)
		mounts := []corev1.VolumeMount{{Name: "ssh", MountPath: "/vol"}}
		for _, path := range paths {
			mounts = append(mounts, corev1.VolumeMount{Name: "scratch", MountPath: path})
		}
		p.Spec.Containers[0].VolumeMounts = mounts
	}
}

// subPaths returns a change that mounts these subPaths of ssh.
func subPaths(paths ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		var mounts []corev1.VolumeMount
		for i, path := range paths {
			mounts = append(mounts, corev1.VolumeMount{Name: "ssh", MountPath: fmt.Sprintf("/m%d", i), SubPath: path})
		}
		p.Spec.Containers[0].VolumeMounts = mounts
	}
}

// numbered returns n strings of the format with the numbers from 0.
func numbered(n int, format string) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf(format, i))
	}
	return all
}

// hostileB is the value of the key b.
const hostileB = hostileValue + " b"

func hostileVolumeCases(t *testing.T) []hostileVolume {
	t.Helper()
	const refused, impossible = codes.InvalidArgument, codes.FailedPrecondition
	keys, both := secretVolume("keys", false), files{"a": hostileValue, "b": hostileB}
	with := func(source corev1.VolumeSource, change func(*corev1.SecretVolumeSource)) corev1.VolumeSource {
		change(source.Secret)
		return source
	}
	projection := func(p corev1.VolumeProjection) corev1.VolumeSource { return projectedVolume(secretSource("keys"), p) }
	fields := func(files ...corev1.DownwardAPIVolumeFile) corev1.VolumeSource {
		return corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: files}}
	}
	elsewhere := resourceFile("cpu", "limits.cpu", "")
	elsewhere.ResourceFieldRef.ContainerName = "nowhere"
	negative := resourceFile("cpu", "limits.cpu", "")
	negative.ResourceFieldRef.Divisor = resource.MustParse("-1")
	many := make([]string, 0, 2*60000)
	for i := range 60000 {
		many = append(many, "a", fmt.Sprintf("p%d", i))
	}
	var deep []string
	for i := range 15 {
		deep = append(deep, "a", strings.Repeat(fmt.Sprintf("%x/", i), 2047)+"a")
	}
	cases := []hostileVolume{
		{name: "H-118 no volume of the pod", described: keys, names: "nowhere", code: refused},
		{name: "H-118 the volume itself", described: keys, names: "ssh", code: refused},
		{
			name:      "H-118 an emptyDir",
			described: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
			code:      refused,
		},
		{
			name:      "H-118 a directory of the node",
			described: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}},
			code:      refused,
		},
		{name: "H-118 another volume of the driver", described: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
			Driver: "fsuser.csi.io", VolumeAttributes: map[string]string{"volume": "ssh"},
		}}, code: refused},
		{name: "H-118 a volume without a type", described: corev1.VolumeSource{}, code: refused},
		{
			name:      "H-119 a pod that has another uid",
			described: keys, change: func(p *corev1.Pod) { p.UID = "another" }, code: codes.NotFound,
		},
		{name: "H-120 a service account token", described: projection(corev1.VolumeProjection{
			ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"},
		}), code: refused},
		{name: "H-120 a trust bundle", described: projection(corev1.VolumeProjection{
			ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{Name: ptr.To("x"), Path: "ca"},
		}), code: refused},
		{name: "H-120 a certificate", described: projection(corev1.VolumeProjection{
			PodCertificate: &corev1.PodCertificateProjection{CredentialBundlePath: "x"},
		}), code: refused},
		{name: "H-120 a source without a type", described: projection(corev1.VolumeProjection{}), code: refused},
		{
			name:      "H-121 a Secret's name that leads elsewhere",
			described: secretVolume("../../nodes/x", false),
			code:      refused,
		},
		{name: "H-121 no Secret's name", described: secretVolume("", false), code: refused},
		{
			name: "H-122 a defaultMode with setuid",
			described: with(secretVolume("keys", false),
				func(s *corev1.SecretVolumeSource) { s.DefaultMode = ptr.To[int32](0o4755) }),
			code: refused,
		},
		{
			name: "H-122 a defaultMode below 0",
			described: with(secretVolume("keys", false),
				func(s *corev1.SecretVolumeSource) { s.DefaultMode = ptr.To[int32](-1) }),
			code: refused,
		},
		{
			name:      "H-122 an item's mode with setuid",
			described: secretVolume("keys", false, corev1.KeyToPath{Key: "a", Path: "a", Mode: ptr.To[int32](0o4755)}),
			code:      refused,
		},
		{
			name: "H-122 a defaultUser that chown takes for \"as it is\"",
			described: with(secretVolume("keys", false),
				func(s *corev1.SecretVolumeSource) { s.DefaultUser = ptr.To[int64](1<<32 - 1) }),
			code: refused,
		},
		{
			name:      "H-122 an item's user that wraps around to root",
			described: secretVolume("keys", false, corev1.KeyToPath{Key: "a", Path: "a", User: ptr.To[int64](1 << 32)}),
			code:      refused,
		},
		{
			name:      "H-078 a path below another",
			described: secretVolume("keys", false, items("a", "x", "b", "x/y")...),
			code:      impossible,
		},
		{
			name:      "H-078 a path of 4 KiB below another",
			described: secretVolume("keys", false, items("a", "x", "b", strings.Repeat("x/", 2047)+"x")...),
			code:      impossible,
		},
		{
			name:      "H-081 a key that is not there",
			described: secretVolume("keys", false, items("z", "z")...),
			code:      impossible,
		},
		{
			name:      "H-086 one key as 60000 files",
			described: secretVolume("keys", false, items(many...)...),
			code:      impossible,
		},
		{
			name:      "H-089 one key below 30000 directories",
			described: secretVolume("keys", false, items(deep...)...),
			code:      impossible,
		},
		{
			name:      "H-123 a mount point that is a name of the layout",
			described: keys, change: mounts("/vol/..data"),
			code: refused,
		},
		{
			name:      "H-123 a mount point of 256 bytes",
			described: keys, change: mounts("/vol/" + strings.Repeat("a", 256)),
			code: refused,
		},
		{name: "H-123 a mount point with NUL", described: keys, change: mounts("/vol/a\x00b"), code: refused},
		{
			name:      "H-123 a mount point that is a file of the volume",
			described: keys, change: mounts("/vol/a"),
			code: impossible,
		},
		{
			name:      "H-123 a mount point beneath a file of the volume",
			described: keys, change: mounts("/vol/a/b"),
			code: impossible,
		},
		{
			name:      "H-123 3000 mount points",
			described: keys, change: mounts(numbered(3000, "/vol/d%d")...),
			code: impossible,
		},
		{
			name:      "H-123 a mount point of 4 KiB beneath a file of the volume",
			described: keys, change: mounts("/vol/" + strings.Repeat("a/", 2047) + "a"),
			code: impossible,
		},
		{
			name:      "H-123 a mount point of 2048 directories",
			described: keys, change: mounts("/vol/" + strings.Repeat("d/", 2047) + "d"),
			code: impossible,
		},
		{name: "H-124 3000 subPaths", described: keys, change: subPaths(numbered(3000, "d%d")...), code: impossible},
		{
			name:      "H-124 a subPath of 2048 directories",
			described: keys, change: subPaths(strings.Repeat("d/", 2047) + "d"),
			code: impossible,
		},
		{name: "H-125 the resource of a container that is not there", described: fields(elsewhere), code: impossible},
		{name: "H-125 a divisor below 0", described: fields(negative), code: impossible},
	}
	harmless := []hostileVolume{
		{
			name:      "H-078 one path twice: the later item wins",
			described: secretVolume("keys", false, items("a", "x", "b", "x")...),
			want:      files{"x": hostileB},
		},
		{
			name:      "H-079 paths that are cleaned",
			described: secretVolume("keys", false, items("a", "./x//y", "b", "z/")...),
			want:      files{"x/y": hostileValue, "z": hostileB},
		},
		{
			name:      "H-081 an optional key that is not there",
			described: secretVolume("keys", true, items("a", "a", "z", "z")...),
			want:      files{"a": hostileValue},
		},
		{name: "H-082 characters of a terminal, a colon, a backslash",
			described: secretVolume("keys", false, items("a", "a\nb", "b", "c:d\\e\x1b[2J")...),
			want:      files{"a\nb": hostileValue, "c:d\\e\x1b[2J": hostileB}},
		{
			name:      "H-123 mount paths that do not lie in the volume",
			described: keys, change: mounts("/vol/../etc", "/volume", "/vol/../../x"),
			want: both,
		},
		{
			name:      "H-124 subPaths that leave the volume",
			described: keys, change: subPaths("../x", "/etc", "..data/x", strings.Repeat("a", 256)),
			want: both,
		},
		{
			name:      "H-124 a subPath that is a file, and one beneath it",
			described: keys, change: subPaths("a", "a/b"),
			want: both,
		},
	}
	return slices.Concat(cases, harmless,
		hostilePaths("H-075 an absolute path", "/abs", "/"),
		hostilePaths("H-076 a path that climbs or is the writer's", "..data", "..x", "a/../b", "..", "../../etc/passwd",
			"./..data"),
		hostilePaths("H-079 a path that names no file", "", ".", "./"),
		hostilePaths("H-080 a path that is too long", strings.Repeat("a", 256), strings.Repeat("a/", 2048)+"a"),
		hostilePaths("H-082 a path with NUL", "a\x00b"),
	)
}

// manifestOf writes the manifest of a pod with the volume into dir, and returns the pod and the volume ssh.
func (h hostileVolume) manifestOf(t *testing.T, dir, name string) (kubelet.Pod, kubelet.Volume) {
	t.Helper()
	p, v := pod(name), ssh("volume", described)
	if h.names != "" {
		v = ssh("volume", h.names)
	}
	manifest := nodeaccess.Pod(name, v, corev1.Volume{Name: described, VolumeSource: h.described})
	manifest.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	manifest.Namespace, manifest.UID = p.Namespace, types.UID(p.UID)
	if h.change != nil {
		h.change(manifest)
	}
	writeManifest(t, dir, name, manifest)
	return p, v
}

func writeManifest(t *testing.T, dir, name string, object any) {
	t.Helper()
	b, err := json.Marshal(object)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".json"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func hostileVolumes(t *testing.T, c *cluster) {
	dir, cases := t.TempDir(), hostileVolumeCases(t)
	writeManifest(t, dir, "keys", &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: metav1.ObjectMeta{Name: "keys"},
		StringData: map[string]string{"a": hostileValue, "b": hostileB},
	})
	writeManifest(t, dir, "node", &corev1.Node{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		Status:   corev1.NodeStatus{Allocatable: nodeaccess.Allocatable()},
	})
	pods, volumes := make([]kubelet.Pod, len(cases)), make([]kubelet.Volume, len(cases))
	for i, test := range cases {
		pods[i], volumes[i] = test.manifestOf(t, dir, fmt.Sprintf("hostile-%d", i))
	}
	healthy, healthyVolume := hostileVolume{described: secretVolume("keys", false)}.manifestOf(t, dir, "healthy")
	d := testkit.StartDriver(t, c.binary, "--manifests="+dir)
	healthyDir, stop := publish(t, d, healthy, healthyVolume)
	memory := peak(t, d)
	for i, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			if err := os.MkdirAll(filepath.Dir(d.Target(pods[i], "ssh")), 0o750); err != nil {
				t.Fatal(err)
			}
			check, start := asBefore(t, d), time.Now()
			_, err := d.Publish(deadline(t), pods[i], volumes[i])
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if got := status.Code(err); got != test.code {
				t.Fatalf("got %v, want %v: %v", got, test.code, err)
			}
			if err == nil {
				see(t, d, pods[i], volumes[i]).becomes(test.want)
				return
			}
			fit(t, err)
			check(t)
		})
	}
	if most := peak(t, d); most > memory+128<<20 {
		t.Errorf("the driver had %d MiB of memory, before %d", most>>20, memory>>20)
	}
	holds(t, filepath.Join(healthyDir, "a"), hostileValue)
	stop()
	unpublish(t, d, healthy, "ssh")
	if strings.Contains(d.Log(), hostileValue) {
		t.Error("the log has a value of the Secret in it")
	}
	reliability.Shown(t, "F-42", fmt.Sprintf("%d volumes of a pod", len(cases)))
}
