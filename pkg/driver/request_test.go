// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

// These values must never be in a message. Every bad request of these tests has them.
const (
	tokenCanary  = "eyJ-canary-of-the-token"
	secretCanary = "canary-of-the-secret"
	keyTokens    = "csi.storage.k8s.io/serviceAccount.tokens"
)

// set changes the volume_context with pairs of key and value.
func set(pairs ...string) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) {
		for i := 0; i < len(pairs); i += 2 {
			r.VolumeContext[pairs[i]] = pairs[i+1]
		}
	}
}

// volumeOf replaces the Secret by a volume of the pod, with more pairs of attributes.
func volumeOf(name string, pairs ...string) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) {
		delete(r.VolumeContext, "secretName")
		set(append(pairs, "volume", name)...)(r)
	}
}

// unset removes a key from the volume_context.
func unset(key string) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) { delete(r.VolumeContext, key) }
}

// mount changes the capability of the volume.
func mount(change func(*csi.VolumeCapability_MountVolume)) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) { change(r.GetVolumeCapability().GetMount()) }
}

func mode(m csi.VolumeCapability_AccessMode_Mode) func(*csi.NodePublishVolumeRequest) {
	return func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode.Mode = m }
}

func fsGroup(text string) func(*csi.NodePublishVolumeRequest) {
	return mount(func(m *csi.VolumeCapability_MountVolume) { m.VolumeMountGroup = text })
}

func flags(flags ...string) func(*csi.NodePublishVolumeRequest) {
	return mount(func(m *csi.VolumeCapability_MountVolume) { m.MountFlags = flags })
}

// publish sends a request to the Node service. It returns the request that reaches the Volumes, or nil.
func publish(t testing.TB, b Binding, req *csi.NodePublishVolumeRequest) (*volume.Request, error) {
	t.Helper()
	var reached *volume.Request
	n := node{binding: b, volumes: fakeVolumes{publish: func(_ context.Context, r volume.Request) error {
		reached = &r
		return nil
	}}}
	resp, err := n.NodePublishVolume(context.Background(), req)
	if (resp == nil) != (err != nil) || (reached == nil) != (err != nil) {
		t.Fatalf("response %v, error %v, reached %v", resp, err, reached != nil)
	}
	return reached, err
}

func TestPublishRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*csi.NodePublishVolumeRequest)
		says   []string
	}{
		{"no volume id (H-001)", func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "" }, []string{"volume_id"}},
		{"no target path (H-003)", func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "" }, []string{"target_path"}},
		{"no capability (H-004)", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil },
			[]string{"volume_capability"}},
		{"neither mount nor block (H-006)", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessType = nil },
			[]string{"only mounted volumes"}},
		{"fsType block, which kubelet makes a block volume", func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		}, []string{"csi.fsType", "block"}},
		{"no access mode (H-007)", func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode = nil },
			[]string{"access mode UNKNOWN", "SINGLE_NODE_WRITER"}},
		{"access mode UNKNOWN (H-007)", mode(csi.VolumeCapability_AccessMode_UNKNOWN), []string{"access mode UNKNOWN"}},
		{"access mode of many nodes", mode(csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER),
			[]string{"MULTI_NODE_MULTI_WRITER"}},
		{"an access mode that there is not", mode(99), []string{"access mode 99"}},
		{"no volume context (H-009)", func(r *csi.NodePublishVolumeRequest) { r.VolumeContext = nil },
			[]string{"podInfoOnMount: true", Name, "secretName"}},

		{"a volume id with a path (H-010)", func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "../../etc" },
			[]string{"volume_id"}},
		{"the volume id of another pod (H-016)",
			func(r *csi.NodePublishVolumeRequest) { r.VolumeId = VolumeID(otherUID, "ssh") },
			[]string{"volume_id does not belong to target_path"}},
		{"the volume id of another volume (H-018)",
			func(r *csi.NodePublishVolumeRequest) { r.VolumeId = VolumeID(podUID, "tls") },
			[]string{"volume_id does not belong to target_path"}},
		{"a target outside of kubelet's root (H-021)", func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "/etc" },
			[]string{"target_path", testRoot + "/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount"}},
		{"a target with dots (H-022)", func(r *csi.NodePublishVolumeRequest) {
			r.TargetPath = testRoot + "/pods/../../../../etc/mount"
		}, []string{"target_path"}},
		{"a target of another plugin (H-025)", func(r *csi.NodePublishVolumeRequest) {
			r.TargetPath = strings.Replace(r.TargetPath, "~csi", "~secret", 1)
		}, []string{"target_path"}},
		{"another pod's target and id (H-027)", func(r *csi.NodePublishVolumeRequest) {
			r.TargetPath, r.VolumeId = target(testRoot, otherUID, "ssh"), VolumeID(otherUID, "ssh")
		}, []string{keyPodUID, "target_path"}},

		{"no namespace (H-040)", unset(keyPodNamespace), []string{"podInfoOnMount: true"}},
		{"no name", unset(keyPodName), []string{"podInfoOnMount: true"}},
		{"no uid", unset(keyPodUID), []string{"podInfoOnMount: true"}},
		{"not said whether it is ephemeral", unset(keyEphemeral), []string{"podInfoOnMount: true"}},
		{"an empty namespace (H-045)", set(keyPodNamespace, ""), []string{"podInfoOnMount: true"}},
		{"a PersistentVolume", set(keyEphemeral, "false"), []string{"only inline volumes", "PersistentVolume"}},
		{"ephemeral in capitals", set(keyEphemeral, "TRUE"), []string{"only inline volumes"}},
		{"a forged uid (H-042)", set(keyPodUID, otherUID), []string{keyPodUID + " does not belong to target_path"}},
		{"a forged uid that hashes to the same id", set(keyPodUID, podUID+"ssh"), []string{keyPodUID}},
		{"a uid with a line break", set(keyPodUID, podUID+"\n"), []string{keyPodUID}},
		{"a namespace with a path (H-045)", set(keyPodNamespace, "../x"), []string{keyPodNamespace}},
		{"a namespace in capitals (H-045)", set(keyPodNamespace, "A_B"), []string{keyPodNamespace}},
		{"a namespace of 300 bytes (H-045)", set(keyPodNamespace, strings.Repeat("a", 300)), []string{keyPodNamespace}},
		{"a namespace with a query", set(keyPodNamespace, "shop?watch=1"), []string{keyPodNamespace}},
		{"a namespace with dots", set(keyPodNamespace, "a.b"), []string{keyPodNamespace}},
		{"a namespace with a line break", set(keyPodNamespace, "shop\n"), []string{keyPodNamespace}},
		{"a pod's name with a slash", set(keyPodName, "a/b"), []string{keyPodName}},
		{"podInfoOnMount off, and the author names a pod of their own",
			set(keyPodNamespace, "kube-system", keyPodName, "x", keyPodUID, otherUID),
			[]string{keyPodUID + " does not belong to target_path"}},
		{"a misspelt attribute (H-046)", set("secretname", "keys"), []string{"volumeAttributes[secretname]", `"secretName"`}},

		{"mount flags (H-060)", flags("rw"), []string{"mount flags"}},
		{"mount flags that weaken", flags("suid", "exec", "dev"), []string{"mount flags"}},
		{"a remount", flags("remount"), []string{"mount flags"}},
		{"a label that brings options along (H-061)", flags(`context="x",size=9g`), []string{"mount flags"}},
		{"a volume that may be written (H-063)", func(r *csi.NodePublishVolumeRequest) { r.Readonly = false },
			[]string{"csi.readOnly: true"}},
		{"another file system", mount(func(m *csi.VolumeCapability_MountVolume) { m.FsType = "ext4" }),
			[]string{"csi.fsType", "tmpfs"}},
		{"an fsGroup that is no number (H-064)", fsGroup("abc"), []string{"fsGroup", "2147483647"}},
		{"an fsGroup below zero (H-064)", fsGroup("-1"), []string{"fsGroup"}},
		{"an fsGroup that means no change (H-064)", fsGroup("4294967295"), []string{"fsGroup"}},
		{"an fsGroup too great", fsGroup("2147483648"), []string{"fsGroup"}},
		{"an fsGroup with a sign", fsGroup("+1"), []string{"fsGroup"}},
		{"an fsGroup with a space", fsGroup(" 1"), []string{"fsGroup"}},
		{"a hexadecimal fsGroup", fsGroup("0x10"), []string{"fsGroup"}},
		{"a publish context (H-066)",
			func(r *csi.NodePublishVolumeRequest) { r.PublishContext = map[string]string{"device": secretCanary} },
			[]string{"publish_context"}},
		{"a staging path", func(r *csi.NodePublishVolumeRequest) { r.StagingTargetPath = "/stage" },
			[]string{"staging_target_path"}},

		{"a uid that is no number (H-048)", set("uid", "root"), []string{"volumeAttributes[uid]", `"root"`}},
		{"a uid below zero (H-048)", set("uid", "-1"), []string{"volumeAttributes[uid]"}},
		{"a uid with a leading zero (H-048)", set("uid", "01000"), []string{"volumeAttributes[uid]"}},
		{"an empty uid (H-048)", set("uid", ""), []string{"volumeAttributes[uid]"}},
		{"the uid that chown takes for none (H-049)", set("uid", "4294967295"), []string{"volumeAttributes[uid]"}},
		{"no object, and something else (H-067)", func(r *csi.NodePublishVolumeRequest) {
			r.Readonly = false
			delete(r.VolumeContext, "secretName")
		}, []string{"secretName", "configMapName", "nodePublishSecretRef"}},
		{"no object, and a bad mode", func(r *csi.NodePublishVolumeRequest) {
			r.VolumeContext["mode"] = "0888"
			delete(r.VolumeContext, "secretName")
		}, []string{"secretName", "volumeAttributes[mode]"}},
		{"a name that leads elsewhere (H-069)", set("secretName", "../../nodes/x"), []string{"volumeAttributes[secretName]"}},
		{"a name with a query (H-069)", set("secretName", "x?watch=1"), []string{"volumeAttributes[secretName]"}},
		{"optional that is neither (H-072)", set("optional", "yes"), []string{"volumeAttributes[optional]", `"yes"`}},
		{"a PATH out of the volume (H-076)", set("mode/../a", "0400"), []string{"volumeAttributes[mode/../a]"}},
		{"an absolute PATH (H-076)", set("uid//etc/passwd", "0"), []string{"volumeAttributes[uid//etc/passwd]"}},
		{"a PATH with a line break, and a bad value", set("uid/a\nb", "root"),
			[]string{`volumeAttributes["uid/a\nb"]`, `"root"`}},
		{"a PATH of an attribute that is not of a file", set("dirMode/a", "0700"), []string{"volumeAttributes[dirMode/a]"}},
		{"lists, which the pod's own volumes have", set("items", "[{key: a, path: a}]", "sources", "[]"),
			[]string{"volumeAttributes[items]", "volumeAttributes[sources]"}},
		{"a volume and an object", set("volume", "ssh-keys"), []string{"only one of", "volume", "secretName"}},
		{"a volume and nodePublishSecretRef", func(r *csi.NodePublishVolumeRequest) {
			volumeOf("ssh-keys")(r)
			r.Secrets = map[string]string{"k": secretCanary}
		}, []string{"only one of", "volume", "nodePublishSecretRef"}},
		{"a volume that is no name", volumeOf("../x"), []string{"volumeAttributes[volume]", `"../x"`}},
		{"an empty volume", volumeOf(""), []string{"volumeAttributes[volume]"}},
		{"a volume and optional", volumeOf("ssh-keys", "optional", "true"),
			[]string{"volumeAttributes[optional]", "in the volume that it names"}},
		{"an object and nodePublishSecretRef",
			func(r *csi.NodePublishVolumeRequest) { r.Secrets = map[string]string{"k": secretCanary} },
			[]string{"nodePublishSecretRef", "secretName"}},
		{"nodePublishSecretRef and a bad mode", func(r *csi.NodePublishVolumeRequest) {
			delete(r.VolumeContext, "secretName")
			r.Secrets, r.VolumeContext["mode"] = map[string]string{"k": secretCanary}, "0888"
		}, []string{"volumeAttributes[mode]", `"0888"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			req := request(t, testRoot)
			req.VolumeContext[keyTokens] = `{"":{"token":"` + tokenCanary + `"}}`
			req.VolumeContext["csi.storage.k8s.io/"+tokenCanary] = tokenCanary
			test.change(req)
			reached, err := publish(t, plain, req)
			if err == nil {
				t.Fatalf("accepted as %+v", reached)
			}
			if got := status.Code(err); got != codes.InvalidArgument {
				t.Errorf("the code is %v, want InvalidArgument", got)
			}
			message := status.Convert(err).Message()
			says(t, message, test.says...)
			for key, value := range req.GetVolumeContext() {
				// The messages contain the word "true" themselves.
				if strings.HasPrefix(key, "csi.storage.k8s.io/") && len(value) > 4 && strings.Contains(message, value) {
					t.Errorf("the value of %s is in: %s", key, message)
				}
			}
			fitForAnEvent(t, message)
		})
	}
}

// fitForAnEvent fails t if a message has a part that an Event must not have.
func fitForAnEvent(t testing.TB, message string) {
	t.Helper()
	for _, canary := range []string{tokenCanary, secretCanary} {
		if strings.Contains(message, canary) {
			t.Errorf("%s is in: %s", canary, message)
		}
	}
	if strings.ContainsFunc(message, unicode.IsControl) {
		t.Errorf("control characters are in: %q", message)
	}
}

func TestPublishTellsAllProblemsAtOnce(t *testing.T) {
	req := request(t, testRoot)
	req.TargetPath = "/etc"
	req.Readonly = false
	req.PublishContext = map[string]string{"a": "b"}
	req.VolumeCapability.AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	req.VolumeCapability.GetMount().FsType = "xfs"
	req.VolumeCapability.GetMount().MountFlags = []string{"rw"}
	req.VolumeCapability.GetMount().VolumeMountGroup = "staff"
	set(keyEphemeral, "false", keyPodNamespace, "A", keyPodName, "B", keyPodUID, "?", "uid", "root", "mode", "999",
		"owner", "x")(req)
	_, err := publish(t, plain, req)
	message := status.Convert(err).Message()
	says(t, message, "target_path", "csi.readOnly", "publish_context", "MULTI_NODE_READER_ONLY", "csi.fsType",
		"mount flags", "fsGroup",
		"only inline", keyPodNamespace, keyPodName, keyPodUID, "[uid]", "[mode]", "[owner]")
	if n := strings.Count(message, "; "); n < 13 {
		t.Errorf("14 problems make %d parts: %s", n+1, message)
	}
	fitForAnEvent(t, message)
}

func TestPublishAccepts(t *testing.T) {
	gid, uid := uint32(2000), uint32(1000)
	base := volume.Request{
		ID: VolumeID(podUID, "ssh"), TargetPath: target(testRoot, podUID, "ssh"),
		Pod: volume.Pod{Namespace: "shop", Name: "web-0", UID: podUID},
		Spec: attributes.Spec{
			Sources: []attributes.Source{{Object: attributes.Object{Kind: attributes.Secret, Name: "keys"}, Mode: 0o400}},
			UID:     &uid, DirMode: 0o755, Refresh: attributes.RefreshWatch, Layout: attributes.LayoutLinks,
		},
	}
	for _, test := range []struct {
		name   string
		change func(*csi.NodePublishVolumeRequest)
		want   func(*volume.Request)
	}{
		{"what kubelet sends", func(*csi.NodePublishVolumeRequest) {}, func(*volume.Request) {}},
		{"fsType tmpfs", mount(func(m *csi.VolumeCapability_MountVolume) { m.FsType = "tmpfs" }), func(*volume.Request) {}},
		{"an fsGroup", fsGroup("2000"), func(r *volume.Request) { r.MountGroup = &gid }},
		{"fsGroup 0 is not the same as none", fsGroup("0"), func(r *volume.Request) { r.MountGroup = new(uint32) }},
		{"the greatest fsGroup", fsGroup("2147483647"),
			func(r *volume.Request) { g := uint32(2147483647); r.MountGroup = &g }},
		{"keys of kubelet that the driver has no use for (H-046)", set("csi.storage.k8s.io/new", "x", keyTokens, tokenCanary),
			func(*volume.Request) {}},
		{"nodePublishSecretRef", func(r *csi.NodePublishVolumeRequest) {
			delete(r.VolumeContext, "secretName")
			r.Secrets = map[string]string{"k": "v"}
		}, func(r *volume.Request) {
			r.Spec.Sources, r.Secrets = []attributes.Source{{Mode: 0o400}}, map[string]string{"k": "v"}
		}},
		{"a volume of the pod", volumeOf("ssh-keys"), func(r *volume.Request) {
			r.Spec.Volume, r.Spec.Sources = "ssh-keys", nil
		}},
		{"owner and mode of single files", set("uid/certs.d/host:5000/ca.crt", "1000", "gid/a\nb", "2000", "mode/a\nb",
			"0600"), func(r *volume.Request) {
			mode := uint32(0o600)
			r.Spec.Paths = map[string]attributes.Permissions{"certs.d/host:5000/ca.crt": {UID: &uid},
				"a\nb": {GID: &gid, Mode: &mode}}
		}},
		{"no object and no data, which a nodePublishSecretRef may have lost", unset("secretName"), func(r *volume.Request) {
			r.Spec.Sources = []attributes.Source{{Mode: 0o400}}
		}},
		{"no object, and a token in secrets (H-112)", func(r *csi.NodePublishVolumeRequest) {
			delete(r.VolumeContext, "secretName")
			r.Secrets = map[string]string{keyTokens: tokenCanary}
		}, func(r *volume.Request) {
			r.Spec.Sources, r.Secrets = []attributes.Source{{Mode: 0o400}}, map[string]string{}
		}},
		{"a token in secrets (H-112)",
			func(r *csi.NodePublishVolumeRequest) { r.Secrets = map[string]string{keyTokens: tokenCanary} },
			func(r *volume.Request) { r.Secrets = map[string]string{} }},
		{"a token in secrets, beside those of nodePublishSecretRef (H-112)", func(r *csi.NodePublishVolumeRequest) {
			delete(r.VolumeContext, "secretName")
			r.Secrets = map[string]string{"k": "v", keyTokens: tokenCanary}
		}, func(r *volume.Request) {
			r.Spec.Sources, r.Secrets = []attributes.Source{{Mode: 0o400}}, map[string]string{"k": "v"}
		}},
		// Only root on the node can forge this, because a pod's author can't know the uid of a future pod.
		{"a namespace that is not the pod's, with the right uid (H-043)", set(keyPodNamespace, "kube-system"),
			func(r *volume.Request) { r.Pod.Namespace = "kube-system" }},
	} {
		t.Run(test.name, func(t *testing.T) {
			req, want := request(t, testRoot), base
			test.change(req)
			test.want(&want)
			before := proto.Clone(req)
			got, err := publish(t, plain, req)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(*got, want) {
				t.Errorf("got  %+v\nwant %+v", *got, want)
			}
			if !proto.Equal(before, req) {
				t.Errorf("the request was changed to %v", req)
			}
		})
	}
}

// The requests of csi-sanity are not read-only and their targets belong to no pod, but the other rules apply to them.
func TestLenientPublish(t *testing.T) {
	lenient := Binding{root: testRoot, resolved: testRoot, lenient: true}
	req := request(t, testRoot)
	req.VolumeId, req.TargetPath, req.Readonly = "sanity", "/tmp/target", false
	got, err := publish(t, lenient, req)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != "sanity" || got.TargetPath != "/tmp/target" {
		t.Errorf("accepted as %+v", got)
	}
	req.VolumeContext = map[string]string{"secretName": "keys"}
	if _, err := publish(t, lenient, req); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without the pod's names: %v", err)
	}
}

func TestPublishThroughASymlinkedRoot(t *testing.T) {
	b := Binding{root: testRoot, resolved: "/data/kubelet"}
	got, err := publish(t, b, request(t, testRoot))
	if err != nil {
		t.Fatal(err)
	}
	if want := target("/data/kubelet", podUID, "ssh"); got.TargetPath != want {
		t.Errorf("the target is %s, want %s", got.TargetPath, want)
	}
	req := request(t, testRoot)
	req.VolumeContext[keyPodUID] = otherUID
	if _, err := publish(t, b, req); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a forged uid: %v", err)
	}
}

func TestUnpublish(t *testing.T) {
	good, id := target(testRoot, podUID, "ssh"), VolumeID(podUID, "ssh")
	for _, test := range []struct{ name, id, path, says string }{
		{"no id (H-001)", "", good, "volume_id"},
		{"no target (H-003)", id, "", "target_path"},
		{"neither", "", "", "volume_id and target_path"},
		{"an id with a path (H-019)", "../x", good, "volume_id"},
		{"the root of the file system (H-039)", id, "/", "target_path"},
		{"kubelet's root (H-039)", id, testRoot, "target_path"},
		{"another pod's target (H-039)", id, target(testRoot, otherUID, "ssh"), "volume_id does not belong to target_path"},
		{"another volume of the pod", id, target(testRoot, podUID, "tls"), "volume_id does not belong to target_path"},
		{"a Secret volume of kubelet's own", id, strings.Replace(good, "~csi", "~secret", 1), "target_path"},
	} {
		n := node{binding: plain, volumes: fakeVolumes{unpublish: func(context.Context, string, string) error {
			t.Errorf("%s: it reached the volumes", test.name)
			return nil
		}}}
		resp, err := n.NodeUnpublishVolume(context.Background(),
			&csi.NodeUnpublishVolumeRequest{VolumeId: test.id, TargetPath: test.path})
		if resp != nil || status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, %v", test.name, resp, err)
			continue
		}
		says(t, err.Error(), test.says)
	}

	var gotID, gotTarget string
	n := node{binding: Binding{root: testRoot, resolved: "/data/kubelet"},
		volumes: fakeVolumes{unpublish: func(_ context.Context, id, target string) error {
			gotID, gotTarget = id, target
			return nil
		}}}
	if _, err := n.NodeUnpublishVolume(context.Background(),
		&csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: good}); err != nil {
		t.Fatal(err)
	}
	if want := target("/data/kubelet", podUID, "ssh"); gotID != id || gotTarget != want {
		t.Errorf("%s at %s was unpublished, want %s at %s", gotID, gotTarget, id, want)
	}
}

func TestErrorsOfVolumesGetTheirCode(t *testing.T) {
	fails := fakeVolumes{
		publish:   func(context.Context, volume.Request) error { return source.ErrForbidden },
		unpublish: func(context.Context, string, string) error { return volume.ErrLocked },
		usage:     func(context.Context, string, string) (tmpfs.Usage, error) { return tmpfs.Usage{}, volume.ErrUnknown },
	}
	n := node{binding: plain, volumes: fails}
	req := request(t, testRoot)
	if resp, err := n.NodePublishVolume(context.Background(), req); resp != nil ||
		status.Code(err) != codes.PermissionDenied {
		t.Errorf("publish: %v, %v", resp, err)
	}
	if resp, err := n.NodeUnpublishVolume(context.Background(),
		&csi.NodeUnpublishVolumeRequest{VolumeId: req.VolumeId, TargetPath: req.TargetPath}); resp != nil ||
		status.Code(err) != codes.Aborted {
		t.Errorf("unpublish: %v, %v", resp, err)
	}
	if resp, err := n.NodeGetVolumeStats(context.Background(),
		&csi.NodeGetVolumeStatsRequest{VolumeId: "a", VolumePath: "some/path"}); resp != nil ||
		status.Code(err) != codes.NotFound {
		t.Errorf("stats: %v, %v", resp, err)
	}
}

func TestStats(t *testing.T) {
	var asked string
	n := node{binding: Binding{root: testRoot, resolved: "/data/kubelet"},
		volumes: fakeVolumes{usage: func(_ context.Context, id, path string) (tmpfs.Usage, error) {
			asked = id + " " + path
			return tmpfs.Usage{BytesTotal: 1, BytesUsed: 2, BytesFree: 3, InodesTotal: 4, InodesUsed: 5, InodesFree: 6}, nil
		}}}
	for _, req := range []*csi.NodeGetVolumeStatsRequest{{}, {VolumeId: "a"}, {VolumePath: "/a"}} {
		if _, err := n.NodeGetVolumeStats(context.Background(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
	resp, err := n.NodeGetVolumeStats(context.Background(),
		&csi.NodeGetVolumeStatsRequest{VolumeId: "a", VolumePath: target(testRoot, podUID, "ssh")})
	if err != nil {
		t.Fatal(err)
	}
	if want := "a " + target("/data/kubelet", podUID, "ssh"); asked != want {
		t.Errorf("asked for %s, want %s", asked, want)
	}
	want := &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: 1, Used: 2, Available: 3},
		{Unit: csi.VolumeUsage_INODES, Total: 4, Used: 5, Available: 6},
	}}
	if !proto.Equal(resp, want) {
		t.Errorf("got %v, want %v", resp, want)
	}
}

// FuzzPublishRequest checks that the driver does not panic on any valid protobuf message, that it either refuses or
// publishes, that a published volume belongs to the pod of its directory, and that no secret appears in a message.
func FuzzPublishRequest(f *testing.F) {
	root := request(f, testRoot)
	for _, change := range []func(*csi.NodePublishVolumeRequest){
		func(*csi.NodePublishVolumeRequest) {},
		func(r *csi.NodePublishVolumeRequest) { r.Readonly, r.TargetPath = false, "/etc" },
		func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil },
		func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability.AccessType = nil },
		fsGroup("2000"), flags("rw"), set(keyPodUID, otherUID), set("mode/b/c", "0400"),
		set("mode", "0888", "secretname", "x"), volumeOf("ssh-keys"),
		func(r *csi.NodePublishVolumeRequest) {
			r.Secrets = map[string]string{"k": "v", keyTokens: "t"}
			delete(r.VolumeContext, "secretName")
		},
	} {
		req := proto.Clone(root).(*csi.NodePublishVolumeRequest)
		change(req)
		b, err := proto.Marshal(req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, wire []byte, linked bool) {
		req := &csi.NodePublishVolumeRequest{}
		if proto.Unmarshal(wire, req) != nil || strings.Contains(string(wire), "canary") {
			return
		}
		b := plain
		if linked {
			b.resolved = "/data/kubelet"
		}
		if req.VolumeContext != nil {
			req.VolumeContext[keyTokens] = tokenCanary
		}
		for key := range req.GetSecrets() {
			req.Secrets[key] = secretCanary
		}
		secrets := maps.Clone(req.GetSecrets())
		maps.DeleteFunc(secrets, func(key, _ string) bool { return strings.HasPrefix(key, "csi.storage.k8s.io/") })
		got, err := publish(t, b, req)
		if err != nil {
			if status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() == "" {
				t.Fatalf("refused with %v", err)
			}
			fitForAnEvent(t, status.Convert(err).Message())
			return
		}
		if err := bound(got, req, b.resolved); err != nil {
			t.Fatalf("%v: %+v", err, got)
		}
		if !reflect.DeepEqual(secrets, got.Secrets) {
			t.Fatalf("the secrets are not those of the request")
		}
		if errs := attributes.Validate(got.Spec); len(errs) > 0 {
			t.Fatalf("a Spec that is not valid: %v", errs)
		}
		if err := b.CheckTarget(got.ID, got.TargetPath, got.Pod.UID); err != nil {
			t.Fatalf("what was accepted is not any more once it is in a record: %v", err)
		}
	})
}

// bound returns an error if an accepted request is wrong. It does not use the driver's code.
func bound(got *volume.Request, req *csi.NodePublishVolumeRequest, root string) error {
	parts := strings.Split(got.TargetPath, "/")
	context := req.GetVolumeContext()
	mount := req.GetVolumeCapability().GetMount()
	switch below, ok := strings.CutPrefix(got.TargetPath, root+"/pods/"); {
	case !ok || strings.Contains(got.TargetPath, "//") || strings.Contains(got.TargetPath, "/.") ||
		strings.Count(below, "/") != 4:
		return errors.New("the target is not below the pods' directory")
	case VolumeID(parts[len(parts)-5], parts[len(parts)-2]) != got.ID || got.ID != req.GetVolumeId():
		return errors.New("the id is not that of the target")
	case parts[len(parts)-5] != got.Pod.UID || got.Pod.UID != context[keyPodUID]:
		return errors.New("the pod is not that of the target")
	case got.Pod.Namespace == "" || strings.ContainsAny(got.Pod.Namespace, "/.?%\\ \n") || got.Pod.Name == "" ||
		strings.ContainsAny(got.Pod.Name, "/?%\\ \n"):
		return errors.New("the pod's name is fit for mischief")
	case context[keyEphemeral] != "true" || !req.GetReadonly():
		return errors.New("not inline, or not read-only")
	case mount == nil || len(mount.GetMountFlags()) > 0 || (got.MountGroup != nil) != (mount.GetVolumeMountGroup() != ""):
		return errors.New("not mounted as asked for")
	case got.MountGroup != nil && *got.MountGroup > 2147483647:
		return errors.New("a group that is none")
	case got.Spec.Volume != context["volume"] || (got.Spec.Volume == "") != (len(got.Spec.Sources) == 1):
		return errors.New("neither an object, nor a volume of the pod, nor the request alone has the content")
	}
	for path := range got.Spec.Paths {
		if path == "" || strings.HasPrefix(path, "/") || slices.Contains(strings.Split(path, "/"), "..") {
			return fmt.Errorf("the PATH %q leads out of the volume", path)
		}
	}
	return nil
}
