// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/driver"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

// verdict says whether the driver and the policy accept a volume.
type verdict int

const (
	// good means that both accept the volume.
	good verdict = iota
	// refuse means that both refuse the volume, in the same words.
	refuse
	// driverOnly means that only the driver refuses the volume. The API server validates the other volumes of the pod
	// itself.
	driverOnly
)

// volumeCase is a volume for which the driver and the policy must agree.
type volumeCase struct {
	name    string
	verdict verdict
	volume  corev1.Volume
}

func volumeCases() []volumeCase {
	long := strings.Repeat("a", 254)
	all := []volumeCase{
		{"a Secret", good, driverVolume("v", "secretName", "a")},
		{"a ConfigMap", good, driverVolume("v", "configMapName", "a.b-c")},
		{"nodePublishSecretRef", good, withSecretRef(driverVolume("v"), "a")},
		{"every attribute", good, driverVolume("v", "secretName", "a", "uid", "0", "gid", "2147483647", "mode", "0",
			"dirMode", "0777",
			"optional", "false", "refresh", "off", "layout", "files", "uid/a", "5", "gid/d/a", "6", "mode/a b:\\\"'", "0400")},
		{"kubelet's keys", good, driverVolume("v", "secretName", "a", "csi.storage.k8s.io/x", "")},
		{"the longest name", good, driverVolume("v", "secretName", long[:253])},
		{"tmpfs", good, withFSType(driverVolume("v", "secretName", "a"), "tmpfs")},

		{"no attributes", refuse, driverVolume("v")},
		{"no object", refuse, driverVolume("v", "uid", "1")},
		{"two objects", refuse, driverVolume("v", "secretName", "a", "configMapName", "a")},
		{"three objects", refuse, driverVolume("v", "secretName", "a", "configMapName", "a", "volume", "a")},
		{"another volume and nodePublishSecretRef", refuse, withSecretRef(driverVolume("v", "volume", "a"), "a")},
		{"an object and nodePublishSecretRef", refuse, withSecretRef(driverVolume("v", "secretName", "a"), "a")},
		{"an empty name and another", refuse, driverVolume("v", "secretName", "", "configMapName", "a")},
		{"optional with another volume", refuse, driverVolume("v", "volume", "s", "optional", "true")},
		{"optional with nodePublishSecretRef", refuse, withSecretRef(driverVolume("v", "optional", "false"), "a")},
		{"read-only is not said", refuse, readOnly(driverVolume("v", "secretName", "a"), nil)},
		{"writable", refuse, readOnly(driverVolume("v", "secretName", "a"), new(false))},
		{"another file system", refuse, withFSType(driverVolume("v", "secretName", "a"), "ext4")},
		{"a block device", refuse, withFSType(driverVolume("v", "secretName", "a"), "block")},
		{"all at once", refuse, readOnly(withFSType(driverVolume("v", "uid", "root", "mode", "999", "colour", "red",
			"refresh", "no", "optional", "yes"), "xfs"), nil)},
		{"a name that is too long", refuse, driverVolume("v", "secretName", long)},
		{"another namespace", refuse, driverVolume("v", "secretName", "kube-system/a")},
	}
	for _, name := range attributes.Names() {
		all = append(all, volumeCase{"empty " + name, refuse, driverVolume("v", name, "")})
	}
	for _, name := range attributes.PathNames() {
		all = append(all, volumeCase{"empty " + name + "/PATH", refuse, driverVolume("v", name+"/PATH", "")})
	}
	all = append(all, templateCases()...)
	for _, name := range []string{"A", "a_b", "-a", "a-", "a..b", "a b", "ä", "a\n", "../a", "."} {
		all = append(all, volumeCase{fmt.Sprintf("secretName %q", name), refuse, driverVolume("v", "secretName", name)},
			volumeCase{fmt.Sprintf("configMapName %q", name), refuse, driverVolume("v", "configMapName", name)})
	}
	for value, verdict := range map[string]verdict{
		"0": good, "1": good, "65534": good, "2147483647": good,
		"2147483648": refuse, "4294967295": refuse, "99999999999999999999": refuse, "-1": refuse, "+1": refuse, " 1": refuse,
		"1 ": refuse, "1\n": refuse,
		"01": refuse, "00": refuse, "0x1": refuse, "1.0": refuse, "1e3": refuse, "1_000": refuse, "root": refuse, "١": refuse,
		strings.Repeat("1", 1000): refuse,
	} {
		for _, key := range []string{"uid", "gid"} {
			all = append(all, volumeCase{fmt.Sprintf("%s %.30q", key, value), verdict,
				driverVolume("v", "secretName", "a", key, value)})
		}
	}
	for value, verdict := range map[string]verdict{
		"0": good, "00": good, "000": good, "0000": good, "7": good, "07": good, "400": good, "0400": good, "644": good,
		"0777": good, "777": good, "0007": good,
		"00000": refuse, "1777": refuse, "4755": refuse, "7777": refuse, "800": refuse, "0o400": refuse, "-1": refuse,
		"0400 ": refuse, "0400\n": refuse,
		"u=r": refuse, "rw-": refuse, "1000": refuse, "٠": refuse,
	} {
		for _, key := range []string{"mode", "dirMode"} {
			all = append(all, volumeCase{fmt.Sprintf("%s %q", key, value), verdict,
				driverVolume("v", "secretName", "a", key, value)})
		}
	}
	for _, value := range []string{"True", "yes", "1", "true ", " false", "\"true\""} {
		all = append(all, volumeCase{"optional " + value, refuse, driverVolume("v", "secretName", "a", "optional", value)})
	}
	for _, value := range []string{"Watch", "on", "false", "watch\n"} {
		all = append(all, volumeCase{fmt.Sprintf("refresh %q", value), refuse,
			driverVolume("v", "secretName", "a", "refresh", value)})
	}
	for value, verdict := range map[string]verdict{
		"links": good, "files": good, "in-place": good, "Files": refuse, "inplace": refuse, "in-place\n": refuse, "0": refuse,
	} {
		all = append(all, volumeCase{fmt.Sprintf("layout %q", value), verdict,
			driverVolume("v", "secretName", "a", "layout", value)})
	}
	for _, key := range []string{
		"Mode", "UID", "secretname", "optionl", "password", "a b", "a\nb", "\"", "ä", long,
		"namespace", "podNamespace", "secretNamespace", "configMapNamespace", "objectNamespace",
		"defaultMode", "fileMode", "defaultUser", "fsUser", "user", "owner", "runAsUser", "defaultGroup", "fsGroup", "group",
		"runAsGroup", "template", "Templates",
	} {
		all = append(all, volumeCase{fmt.Sprintf("unknown %.30q", key), refuse,
			driverVolume("v", "secretName", "a", key, "x")})
	}
	for path, verdict := range map[string]verdict{
		"a": good, "a/b/c": good, "a:b": good, `a\b`: good, "a b": good, "...": refuse, "..a": refuse, "a/..b": good,
		"a..": good, ".a": good,
		"é\n": good, strings.Repeat("é", 127): good, strings.Repeat("é", 128): refuse, strings.Repeat("a", 256): refuse,
		"": refuse, ".": refuse, "./.": refuse, "/": refuse, "/a": refuse, "..": refuse, "a/..": refuse, "../a": refuse,
		"a/../b": refuse, "./a": refuse, "a/.": refuse, "a/": refuse, "a//b": refuse, "./..a": refuse, "a\x00b": refuse,
		strings.Repeat("aaaaaaa/", 511) + "aaaaaaaa": good, strings.Repeat("aaaaaaa/", 512) + "a": refuse,
	} {
		for key, value := range map[string]string{"uid": "1", "gid": "2", "mode": "0400", "template": "$(a)"} {
			all = append(all, volumeCase{fmt.Sprintf("%s/%.30q", key, path), verdict,
				driverVolume("v", "secretName", "a", key+"/"+path, value)})
		}
	}
	for _, key := range []string{"uid/a", "gid/a/b", "mode/a"} {
		all = append(all, volumeCase{key + " of nothing", refuse, driverVolume("v", "secretName", "a", key, "")},
			volumeCase{key + " of a word", refuse, driverVolume("v", "secretName", "a", key, "root")},
			volumeCase{key + " of a number with a leading zero", map[bool]verdict{true: good, false: refuse}[key == "mode/a"],
				driverVolume("v", "secretName", "a", key, "0400")})
	}
	for _, key := range []string{"secretName/a", "dirMode/a", "optional/a", "user/a", "uid:a", "UID/a"} {
		all = append(all, volumeCase{"unknown " + key, refuse, driverVolume("v", "secretName", "a", key, "1")})
	}
	for name, verdict := range map[string]verdict{
		"secret": good, "config-map": good, "downward-api": good, "projected": good,
		"v": refuse, "missing": refuse, "empty-dir": refuse, "other-csi": refuse, "Secret": refuse, "a.b": refuse,
		strings.Repeat("a", 64): refuse, "token": driverOnly, "no-name": driverOnly,
	} {
		all = append(all, volumeCase{fmt.Sprintf("volume %.30q", name), verdict,
			driverVolume("v", "volume", name, "uid", "1", "uid/a", "2")})
	}
	return all
}

// hidden is a word in a template. No message may contain it.
const hidden = "hunter2"

func templateCases() (all []volumeCase) {
	long := strings.Repeat("a", 256)
	for text, verdict := range map[string]verdict{
		"x": good, "$": good, "$$": good, "a$": good, "$a": good, "${a": good, "$$(": good, "$$(../a)": good, "$$$(a)": good,
		"$(a)": good, "$(a b/ä:c)\n$(a)": good, "$(.a)$(a..)$(a/..b)$(a/...)$(a/.b)": good, "$((a)": good, "a)(..)": good,
		"$(a)/..)": good, "(/)$$(/)": good,
		strings.Repeat("ä", 8192): good, strings.Repeat("$(a)", 4096): good, strings.Repeat("$", 16384): good,
		strings.Repeat("ä", 8192) + "x": refuse, strings.Repeat("x", 16385): refuse, "a\x00": refuse, "$(a\x00)": refuse,
		"$(": refuse, "$(a": refuse, "x$(a\n": refuse, "$$$(a": refuse, "$(a$)": refuse, "$(a$$)": refuse,
		"$(a$(b)": refuse, "$(a)$(b": refuse, "$(a$$(b))": refuse, "$(/": refuse,
		"$()": refuse, "$(.)": refuse, "$(..)": refuse, "$(/)": refuse, "$(/a)": refuse, "$(a/)": refuse, "$(a//b)": refuse,
		"$(./a)": refuse, "$(a/.)": refuse, "$(a/./b)": refuse, "$(../a)": refuse, "$(a/../b)": refuse, "$(a/..)": refuse,
		"$(..a)": refuse, "$(...)": refuse, "$(a)$(b)$(/c)": refuse, "$$$(/a)": refuse, "$(//" + long + ")": refuse,
		"$(" + long + ")": driverOnly,
	} {
		all = append(all,
			volumeCase{fmt.Sprintf("template %.30q", text), verdict, driverVolume("v", "secretName", "a", "template/a", text)})
		if len(text) < 1000 {
			all = append(all, volumeCase{fmt.Sprintf("template with text around %.30q", text), verdict,
				driverVolume("v", "secretName", "a", "template/a/Name", hidden+text+hidden)})
		}
	}
	return all
}

// otherVolumes returns the pod's volumes besides the volume of a case.
func otherVolumes() []corev1.Volume {
	return []corev1.Volume{
		secretVolume("secret", "s"), configMapVolume("config-map", "c"), secretVolume("no-name", "Upper"),
		otherDriverVolume("other-csi"), tokenVolume("token"),
		volumeOf(`{"name": "downward-api", "downwardAPI": ` +
			`{"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}}`),
		volumeOf(`{"name": "projected", "projected": ` +
			`{"sources": [{"secret": {"name": "s"}}, {"configMap": {"name": "c"}}]}}`),
		volumeOf(`{"name": "empty-dir", "emptyDir": {}}`),
	}
}

// The driver and the policy agree about every volume.
func TestTheDriverAndThePolicyAgree(t *testing.T) {
	c := startCluster(t)
	c.installPolicy(t, "policy-attributes.yaml")
	ask := startDriver(t)
	eventually(t, func() error {
		if _, err := c.dryRunPod(t, podWith("p", driverVolume("v"))); err == nil {
			return errors.New("the policy does nothing")
		}
		return nil
	})
	for _, test := range volumeCases() {
		t.Run(test.name, func(t *testing.T) {
			pod := podWith("p", append(otherVolumes(), test.volume)...)
			sentences := ask(t, test.volume)
			_, err := c.dryRunPod(t, pod)
			if driverRefuses := len(sentences) > 0; driverRefuses != (test.verdict != good) {
				t.Fatalf("the driver says %q", sentences)
			}
			if policyRefuses := err != nil; policyRefuses != (test.verdict == refuse) {
				t.Fatalf("the policy says %v, the driver %q", err, sentences)
			}
			if err == nil {
				return
			}
			if strings.Contains(err.Error(), hidden) || strings.Contains(fmt.Sprint(sentences), hidden) {
				t.Errorf("the policy says %v, the driver %q", err, sentences)
			}
			if !strings.Contains(err.Error(), `volume "v": `) || strings.Contains(err.Error(), "failed expression") {
				t.Errorf("the policy does not name the volume: %v", err)
			}
			for _, sentence := range sentences {
				if !strings.Contains(err.Error(), sentence) {
					t.Errorf("the policy says\n%v\nthe driver also\n%s", err, sentence)
				}
			}
		})
	}
	t.Run("two volumes", func(t *testing.T) {
		_, err := c.dryRunPod(t, podWith("p", driverVolume("first", "uid", "x", "secretName", "a"),
			driverVolume("second", "secretName", "a"), driverVolume("third")))
		if err == nil || !strings.Contains(err.Error(), `volume "first": volumeAttributes[uid]`) ||
			strings.Contains(err.Error(), `"second"`) || !strings.Contains(err.Error(), `; volume "third": `) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("many bad volumes", func(t *testing.T) {
		var volumes []corev1.Volume
		for i := range 300 {
			volumes = append(volumes, driverVolume(fmt.Sprint("v", i), "uid", "x", "mode", "y", "secretName", "A"))
		}
		if _, err := c.dryRunPod(t, podWith("p", volumes...)); err == nil ||
			!strings.Contains(err.Error(), `volume "v0": volumeAttributes[`) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("many good volumes", func(t *testing.T) {
		if _, err := c.dryRunPod(t, podWith("p", numbered(300)...)); err != nil {
			t.Error(err)
		}
	})
	t.Run("texts", func(t *testing.T) {
		bad := strings.Repeat("$(/)", 4096)
		for texts, reads := range map[int]bool{16: true, 60: false} {
			v := driverVolume("v", "secretName", "a")
			for i := range texts {
				v.CSI.VolumeAttributes[fmt.Sprint("template/", i)] = bad
			}
			_, err := c.dryRunPod(t, podWith("p", v))
			if (err != nil) != reads || err != nil && !strings.Contains(err.Error(), `"$(/)": must name a file`) {
				t.Errorf("%d texts: %v", texts, err)
			}
		}
	})
	t.Run("other drivers", func(t *testing.T) {
		if _, err := c.dryRunPod(t, podWith("p", otherDriverVolume("v", "uid", "x"))); err != nil {
			t.Error(err)
		}
	})
	t.Run("what makes pods", func(t *testing.T) {
		c.warnsOfTemplates(t, "volumeAttributes[uid]: Invalid value", driverVolume("v", "secretName", "a", "uid", "x"))
	})
}

// startDriver returns a function that sends a volume to the driver as kubelet would. The function returns the problems
// in the driver's answer.
func startDriver(t *testing.T) func(*testing.T, corev1.Volume) []string {
	t.Helper()
	root := t.TempDir()
	binding, err := driver.NewBinding(root, false)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(root, "s")
	d, err := driver.New(driver.Config{
		NodeID: "node", Binding: binding, Volumes: describes{podWith("p", otherVolumes()...)}, Endpoint: socket,
		Metrics: prometheus.NewRegistry(), MaxMessageBytes: 4 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	client := csi.NewNodeClient(conn)
	return func(t *testing.T, v corev1.Volume) []string {
		t.Helper()
		const uid = "8c5b1c5e-0000-4000-8000-000000000000"
		req := &csi.NodePublishVolumeRequest{
			VolumeId:   driver.VolumeID(uid, v.Name),
			TargetPath: filepath.Join(binding.PodsDir(), uid, "volumes/kubernetes.io~csi", v.Name, "mount"),
			Readonly:   v.CSI.ReadOnly != nil && *v.CSI.ReadOnly,
			VolumeContext: map[string]string{
				"csi.storage.k8s.io/pod.name": "p", "csi.storage.k8s.io/pod.namespace": apps,
				"csi.storage.k8s.io/pod.uid": uid, "csi.storage.k8s.io/ephemeral": "true",
			},
			VolumeCapability: &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{
				Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
			}},
		}
		mount := &csi.VolumeCapability_MountVolume{}
		req.VolumeCapability.AccessType = &csi.VolumeCapability_Mount{Mount: mount}
		if v.CSI.FSType != nil {
			mount.FsType = *v.CSI.FSType
			if mount.FsType == "block" { // Only kubelet knows this name.
				req.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
			}
		}
		for key, value := range v.CSI.VolumeAttributes {
			req.VolumeContext[key] = value
		}
		if v.CSI.NodePublishSecretRef != nil {
			req.Secrets = map[string]string{"k": "v"}
		}
		_, err := client.NodePublishVolume(t.Context(), req, grpc.WaitForReady(true))
		if err == nil {
			return nil
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Fatalf("the driver: %v", err)
		}
		// The driver joins its problems with semicolons, which the sentences also contain. So the split uses the known
		// beginnings of problems.
		next := regexp.MustCompile(`; (the volume must|csi\.|only mounted|volumeAttributes)`)
		text := strings.TrimPrefix(status.Convert(err).Message(), volume.ErrInvalid.Error()+": ")
		// An expression can find neither the nearest word nor out whether a Secret has data.
		text = regexp.MustCompile(`; the nearest known one is "[a-zA-Z]+"`).ReplaceAllString(text, "")
		text = strings.TrimSuffix(text,
			"; if nodePublishSecretRef is set, its Secret has no data: add a key")
		// The driver quotes a value as Go does, and the policy as CEL does. The same applies to the place of an attribute
		// whose name is not plain.
		plain := regexp.MustCompile(`^volumeAttributes(\[[-_./0-9A-Za-z]{1,64}\])?$`)
		var sentences []string
		for _, sentence := range strings.Split(next.ReplaceAllString(text, "\x00$1"), "\x00") {
			for _, problem := range []string{": Invalid value: ", ": Required value: ", ": Forbidden: "} {
				place, detail, ok := strings.Cut(sentence, problem)
				if !ok {
					continue
				}
				if plain.MatchString(place) {
					sentences = append(sentences, place+problem)
				}
				sentence = detail
				if problem == ": Invalid value: " {
					sentence = detail[strings.LastIndex(detail[:strings.Index(detail, `": `)+1], `"`)+1:]
				}
				break
			}
			sentences = append(sentences, sentence)
		}
		return sentences
	}
}

// describes takes the place of package volume. It makes the checks of the first publish of a volume that come before
// the requests for objects.
type describes struct{ pod *corev1.Pod }

func (d describes) Publish(_ context.Context, r volume.Request) error {
	if err := r.CheckContent(); err != nil {
		return err
	}
	if _, errs := r.Spec.Describe(&d.pod.Spec, "v"); len(errs) > 0 {
		return fmt.Errorf("%w: %w", volume.ErrInvalid, errs.ToAggregate())
	}
	return nil
}
func (describes) Unpublish(context.Context, string, string) error { return nil }
func (describes) Usage(context.Context, string, string) (tmpfs.Usage, error) {
	return tmpfs.Usage{}, nil
}
func (describes) Ready() error { return nil }

// warnsOfTemplates checks that a workload whose pods would be refused is created, with a warning.
func (c *cluster) warnsOfTemplates(t *testing.T, warning string, v corev1.Volume) {
	t.Helper()
	w := &warnings{}
	config := c.AdminConfig()
	config.WarningHandler = w
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for kind, create := range workloads(t, client, v) {
		// The API server learns of the binding with a watch.
		eventually(t, func() error {
			w.take()
			if err := create(); err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
			if told := w.take(); len(told) != 1 || !strings.Contains(told[0], warning) {
				return fmt.Errorf("%s: warnings %q", kind, told)
			}
			return nil
		})
	}
}

// If an administrator configures it, such workloads are refused. Existing ones can be changed and deleted.
func TestTemplatesAreRefused(t *testing.T) {
	c := startCluster(t)
	bad := driverVolume("v", "secretName", "a", "uid", "x")
	there := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "there"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "a"}},
			Spec: podWith("", bad).Spec},
	}}
	there, err := c.AppsV1().Deployments(apps).Create(t.Context(), there, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.installPolicy(t, "policy-attributes.yaml", `validate={"enabled": true, "templates": "Deny"}`)
	const want = `volume "v": volumeAttributes[uid]: Invalid value: "x"`
	for kind, create := range workloads(t, c, bad) {
		eventually(t, func() error {
			if err := create(); err == nil || !strings.Contains(err.Error(), want) {
				return fmt.Errorf("%s: error %w, want one that says %q", kind, err, want)
			}
			return nil
		})
	}
	for kind, create := range workloads(t, c, driverVolume("v", "secretName", "a", "uid", "1")) {
		if err := create(); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	c.mayNot(t, podWith("p", bad), want)
	there.Spec.Replicas = new(int32(0))
	there.Spec.Template.Spec.Containers[0].Image = "example.com/j"
	if there, err = c.AppsV1().Deployments(apps).Update(t.Context(), there, metav1.UpdateOptions{}); err != nil {
		t.Fatalf("an update of something else: %v", err)
	}
	there.Spec.Template.Spec.Volumes[0].CSI.VolumeAttributes["gid"] = "0"
	if _, err = c.AppsV1().Deployments(apps).Update(t.Context(), there, metav1.UpdateOptions{}); err == nil ||
		!strings.Contains(err.Error(), want) {
		t.Errorf("an update of the volume: %v", err)
	}
}

// workloads returns functions that create, as a dry run, each kind of workload with the volume.
func workloads(t *testing.T, client kubernetes.Interface, v corev1.Volume) map[string]func() error {
	labels := map[string]string{"app": "a"}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: podWith("", v).Spec}
	selector := &metav1.LabelSelector{MatchLabels: labels}
	once := template.DeepCopy()
	once.Spec.RestartPolicy = corev1.RestartPolicyNever
	meta, options := metav1.ObjectMeta{Name: "a"}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	return map[string]func() error{
		"Deployment": func() error {
			d := &appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Selector: selector, Template: template}}
			_, err := client.AppsV1().Deployments(apps).Create(t.Context(), d, options)
			return err
		},
		"StatefulSet": func() error {
			s := &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Selector: selector, Template: template}}
			_, err := client.AppsV1().StatefulSets(apps).Create(t.Context(), s, options)
			return err
		},
		"DaemonSet": func() error {
			d := &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Selector: selector, Template: template}}
			_, err := client.AppsV1().DaemonSets(apps).Create(t.Context(), d, options)
			return err
		},
		"Job": func() error {
			j := &batchv1.Job{ObjectMeta: meta, Spec: batchv1.JobSpec{Template: *once}}
			_, err := client.BatchV1().Jobs(apps).Create(t.Context(), j, options)
			return err
		},
		"CronJob": func() error {
			j := &batchv1.CronJob{ObjectMeta: meta,
				Spec: batchv1.CronJobSpec{Schedule: "@daily",
					JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: *once}}}}
			_, err := client.BatchV1().CronJobs(apps).Create(t.Context(), j, options)
			return err
		},
	}
}

// installPolicy creates the objects of one template of the chart.
func (c *cluster) installPolicy(t *testing.T, file string, values ...string) {
	t.Helper()
	args := []string{"--show-only", "templates/" + file}
	for _, v := range values {
		args = append(args, "--set-json", v)
	}
	c.create(t, template(t, args...))
}

func readOnly(v corev1.Volume, value *bool) corev1.Volume {
	v.CSI.ReadOnly = value
	return v
}

func withFSType(v corev1.Volume, fsType string) corev1.Volume {
	v.CSI.FSType = &fsType
	return v
}
