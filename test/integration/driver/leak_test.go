// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
	"github.com/fsuser-csi/fsuser-csi/test/faultproxy"
)

const keyTokens = "csi.storage.k8s.io/serviceAccount.tokens"

// canaries are values that must appear only in the files of a volume, by a description.
type canaries map[string]string

// make returns a new value. Its first and last 8 bytes are letters and digits, which no escaping changes. The bytes
// between would be escaped.
func (c canaries) make(what string) string {
	value := rand.Text()[:12] + " \"<&%+/\\\n\u00e9" + rand.Text()[:12]
	c[what] = value
	return value
}

// found returns the canaries that text contains, as a whole or in part, plain or encoded.
func (c canaries) found(text []byte) (found []string) {
	for what, value := range c {
		for _, part := range []string{value[:8], value[len(value)-8:]} {
			for name, form := range forms(part) {
				if bytes.Contains(text, []byte(form)) {
					found = append(found, what+" "+name)
				}
			}
		}
	}
	return found
}

// forms returns a part of a value in the forms in which a program may print it. JSON, URLs and Go's %q do not change
// letters and digits.
func forms(part string) map[string]string {
	decimal := strings.Trim(fmt.Sprint([]byte(part)), "[]")
	all := map[string]string{
		"as it is": part, "in hex": fmt.Sprintf("%x", part), "in HEX": fmt.Sprintf("%X", part), "in bytes": decimal,
		"in bytes with commas": strings.ReplaceAll(decimal, " ", ", "), "in hex bytes": fmt.Sprintf("% x", part),
	}
	// In base64, three bytes become four letters. The form of a part depends on its offset, and its first and last letters
	// depend on its neighbours.
	for shift := range 3 {
		text := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + part))
		all[fmt.Sprint("in base64, shifted by ", shift)] = text[(shift*4+2)/3 : len(text)-2]
	}
	return all
}

// The search must be able to find a canary.
func TestCanariesAreFound(t *testing.T) {
	c := canaries{}
	value := c.make("value")
	inJSON, err := json.Marshal(map[string]any{"text": "before " + value + " after", "data": []byte("12" + value)})
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"raw": "x" + value + "y", "quoted": fmt.Sprintf("%q", value), "hex": fmt.Sprintf("%x", "ab"+value),
		"JSON":  string(inJSON),
		"bytes": fmt.Sprint([]byte("a" + value)), "cut": value[:10], "the end": value[14:],
		"base64":          base64.StdEncoding.EncodeToString([]byte("a" + value)),
		"base64 for URLs": base64.URLEncoding.EncodeToString([]byte(value)),
	} {
		if len(c.found([]byte(text))) == 0 {
			t.Errorf("%s: the value was not found in %q", what, text)
		}
	}
	if found := c.found([]byte(rand.Text() + rand.Text())); len(found) > 0 {
		t.Errorf("found in other text: %q", found)
	}
}

// withToken gives the driver a service account with a token, as in a pod. The token becomes a canary. The kubeconfig is
// for this server.
func (c *cluster) withToken(t *testing.T, secret canaries, server *rest.Config) (kubeconfig string) {
	t.Helper()
	// The beginning of a token names the algorithm. The rest is secret.
	keep := func(token string) { secret["the driver's token"] = token[20:] }
	if c.access == "node" {
		keep(c.credentials.BearerToken)
		return c.kubeconfig
	}
	ctx := context.Background()
	account, err := c.CoreV1().ServiceAccounts(namespace).Create(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{GenerateName: "leak-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.RbacV1().RoleBindings(namespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: account.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "fsuser-csi"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: account.Name}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := c.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account.Name, &authenticationv1.TokenRequest{},
		metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	keep(token.Status.Token)
	config := &rest.Config{Host: server.Host, TLSClientConfig: server.TLSClientConfig, BearerToken: token.Status.Token}
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := c.Kubeconfig(kubeconfig, config); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// everythingWithSecrets makes the driver perform all operations with secrets, successful and failing ones, and returns
// the messages of its errors.
func everythingWithSecrets(t *testing.T, c *cluster, d *testkit.Driver, secret canaries, pods [3]kubelet.Pod,
	outage bool) (messages string) {
	t.Helper()
	ctx := context.Background()
	tokens := func(what string) string {
		return fmt.Sprintf(`{"":{"token":%q,"expirationTimestamp":"2026-01-01T00:00:00Z"}}`, secret.make(what))
	}
	call := func(p kubelet.Pod, v kubelet.Volume, want codes.Code, change func(*csi.NodePublishVolumeRequest)) {
		t.Helper()
		req := d.Request(p, v)
		req.VolumeContext[keyTokens] = tokens("a token in attributes")
		req.VolumeContext["csi.storage.k8s.io/new"] = secret.make("in a key of kubelet that is new")
		if req.Secrets == nil {
			req.Secrets = map[string]string{}
		}
		req.Secrets[keyTokens] = tokens("a token in secrets")
		if err := os.MkdirAll(filepath.Dir(req.TargetPath), 0o750); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(req)
		}
		_, err := d.NodePublishVolume(deadline(t), req)
		if status.Code(err) != want {
			t.Errorf("got %v, want %v", err, want)
		}
		if err != nil {
			messages += err.Error() + "\n"
		}
	}
	along := func(attributes ...string) kubelet.Volume {
		v := ssh(attributes...)
		v.Secrets = map[string]string{"k": secret.make("sent along"), "token": tokens("a token sent along")}
		return v
	}
	value := func() map[string]string {
		return map[string]string{"k": secret.make("in a Secret"), "other": secret.make("in another key")}
	}
	c.secret(t, "canary", value())
	watched, sent, bad := pods[0], pods[1], pods[2]
	v := ssh("secretName", "canary")

	call(watched, v, codes.OK, nil)
	call(watched, v, codes.OK, nil)
	call(sent, along(), codes.OK, nil)
	call(sent, along(), codes.OK, nil)
	next := value()
	c.update(t, "canary", next)
	holds(t, filepath.Join(d.Target(watched, "ssh"), "k"), next["k"])

	missing, missingKey := c.describe(t, secretVolume("canary", false, items("none", "x")...))
	call(missing, missingKey, codes.FailedPrecondition, nil)
	call(missing, ssh("volume", "none"), codes.InvalidArgument, nil)
	call(bad, ssh("secretName", "canary", "uid/none", "0"), codes.FailedPrecondition, nil)
	call(bad, ssh("secretName", "nowhere"), codes.NotFound, nil)
	call(bad, ssh("secretName", "canary", "uid", "x", "mode", "y", "uid/k", "z"), codes.InvalidArgument, nil)
	call(bad, along("secretName", "canary", "uid", "x"), codes.InvalidArgument, nil)
	call(kubelet.Pod{Namespace: "kube-system", Name: "bad", UID: bad.UID}, v, codes.PermissionDenied, nil)
	call(bad, along(), codes.InvalidArgument, func(r *csi.NodePublishVolumeRequest) { r.Readonly = false })
	call(bad, along(), codes.FailedPrecondition,
		func(r *csi.NodePublishVolumeRequest) { r.Secrets["../x"] = secret.make("behind a bad key") })
	call(bad, along(), codes.FailedPrecondition, func(r *csi.NodePublishVolumeRequest) {
		r.Secrets["big"] = secret.make("in much") + strings.Repeat("x", 1<<20)
	})
	call(bad, along(), codes.ResourceExhausted, func(r *csi.NodePublishVolumeRequest) {
		r.Secrets["huge"] = secret.make("in too much") + strings.Repeat("x", 5<<20)
	})
	call(bad, along(), codes.InvalidArgument, func(r *csi.NodePublishVolumeRequest) {
		r.PublishContext = map[string]string{"k": secret.make("in the publish context")}
		r.TargetPath = "/etc"
	})
	call(bad, along(), codes.FailedPrecondition, func(r *csi.NodePublishVolumeRequest) {
		if err := os.WriteFile(r.TargetPath, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	// An author who writes a Secret's value into the pod has revealed it already. But the driver must not reveal it to
	// readers of Events and logs.
	call(bad, ssh("secretName", "canary", "password", secret.make("in an unknown attribute")), codes.InvalidArgument, nil)
	call(bad, ssh("secretName", "canary", "items", secret.make("in an attribute of other drivers")), codes.InvalidArgument,
		nil)
	call(bad, ssh("secretName", "canary", "password/k", secret.make("in an unknown attribute of a file")),
		codes.InvalidArgument, nil)
	call(watched, ssh("secretName", "canary", "uid", "7"), codes.AlreadyExists, nil)
	call(sent, along("uid", "7"), codes.AlreadyExists, nil)

	stays := func(target string, want codes.Code) {
		t.Helper()
		_, err := d.NodeUnpublishVolume(deadline(t),
			&csi.NodeUnpublishVolumeRequest{VolumeId: kubelet.VolumeID(sent, "ssh"), TargetPath: target})
		if status.Code(err) != want {
			t.Errorf("unpublish: got %v, want %v", err, want)
		} else {
			messages += err.Error() + "\n"
		}
	}
	stays(d.Target(watched, "ssh"), codes.InvalidArgument)
	parent := filepath.Dir(d.Target(sent, "ssh"))
	if err := errors.Join(os.Rename(parent, parent+".away"), os.Symlink(parent+".away", parent)); err != nil {
		t.Fatal(err)
	}
	stays(d.Target(sent, "ssh"), codes.FailedPrecondition)
	if err := errors.Join(os.Remove(parent), os.Rename(parent+".away", parent)); err != nil {
		t.Fatal(err)
	}

	// These refreshes can't succeed: the content is too large, and then the object is deleted.
	c.update(t, "canary", map[string]string{"k": secret.make("in a version that is too large") + strings.Repeat("x",
		1<<19)})
	c.event(t, watched, "VolumeRefreshFailed")
	if err := c.CoreV1().Secrets(c.namespace).Delete(ctx, "canary", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.event(t, watched, "VolumeObjectMissing")
	last := value()
	c.secret(t, "canary", last)
	holds(t, filepath.Join(d.Target(watched, "ssh"), "k"), last["k"])

	if outage {
		if err := c.StopAPIServer(deadline(t)); err != nil {
			t.Fatal(err)
		}
		call(watched, v, codes.OK, nil)
		call(sent, along(), codes.OK, nil)
	}
	d.Kill()
	damaged := []string{
		`{"version":4,"volumeID":"` + secret.make("in a record that is cut off"), secret.make("in a record that is none"),
		fmt.Sprintf(`{"version":4,"password":%q}`, secret.make("in an unknown field of a record")),
		fmt.Sprintf(`{"version":4,"device":%q}`, secret.make("in a number of a record")),
		fmt.Sprintf(`{"version":4,"volumeID":%q,"targetPath":"/x","pod":{"uid":"x"}}`, secret.make("in the id of a record")),
	}
	for i, text := range damaged {
		if err := os.WriteFile(filepath.Join(d.State, fmt.Sprintf("%064d.json", i)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.StartAgain()
	aside := filepath.Join(d.State, "bad")
	if entries, err := os.ReadDir(aside); err != nil || len(entries) != len(damaged) {
		t.Errorf("%d records were moved aside, %v", len(entries), err)
	}
	if err := os.RemoveAll(aside); err != nil { // The records may contain the canary.
		t.Fatal(err)
	}
	call(watched, v, codes.OK, nil)
	call(sent, along(), codes.OK, nil)
	if outage {
		if err := c.StartAPIServer(deadline(t)); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, time.Minute, "the volumes to be current",
		func() bool { return d.Metric("fsuser_stale_volumes") == 0 })
	return messages
}

// surfaces returns, by name, all places in which unauthorized users could read a value.
func surfaces(t *testing.T, c *cluster, d *testkit.Driver, messages string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{"the messages": []byte(messages), "the log": []byte(d.Log()),
		"the status": []byte(d.Status())}
	for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
		_, body := d.Get(path)
		all[path] = []byte(body)
	}
	events, err := c.CoreV1().Events("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if all["the events"], err = json.Marshal(events); err != nil {
		t.Fatal(err)
	}
	records := 0
	err = filepath.WalkDir(d.State, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		records++
		all["the record "+entry.Name()], err = os.ReadFile(path)
		return err
	})
	if err != nil || records < 3 { // two volumes, and the lock
		t.Fatalf("%d files in the directory of records, %v", records, err)
	}
	for _, name := range []string{"cmdline", "environ", "comm", "maps", "mountinfo", "mounts", "status", "stack",
		"limits"} {
		path := fmt.Sprintf("/proc/%d/%s", d.PID(), name)
		if all[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", d.PID()))
	if err != nil || len(links) < 5 {
		t.Fatalf("descriptors: %q, %v", links, err)
	}
	for _, link := range links {
		target, _ := os.Readlink(link) // The descriptor may be closed now.
		all["the descriptors"] = append(all["the descriptors"], target+"\n"...)
	}
	return all
}

// nothingLeaks is H-112: the driver reveals no secret, whatever the requests and the verbosity of the log.
func nothingLeaks(t *testing.T, c *cluster) {
	for verbosity := range 6 {
		t.Run(fmt.Sprint("-v=", verbosity), func(t *testing.T) {
			leaksNothing(t, c, "text", verbosity, fmt.Sprint("level-", verbosity))
		})
	}
	t.Run("--log-format=json", func(t *testing.T) { leaksNothing(t, c, "json", 5, "json") })
	reliability.Shown(t, "F-39", "6 levels of the log, and the last one in JSON; at the last one through an outage, too")
}

// nothingLeaksAsNode is the same with access node, where a request has two identities, and refusals have other words.
func nothingLeaksAsNode(t *testing.T, c *cluster) string {
	leaksNothing(t, c, "text", 5, "as-node")
	return "the last level of the log"
}

func leaksNothing(t *testing.T, c *cluster, format string, verbosity int, name string) {
	secret := canaries{}
	d := testkit.StartDriver(t, c.binary, "--access="+c.access, "--kubeconfig="+c.withToken(t, secret, c.AdminConfig()),
		"--log-format="+format, fmt.Sprint("-v=", verbosity), "--max-volume-bytes=100000")
	// The names are new in each run, so that each Event belongs to this run.
	pods := [3]kubelet.Pod{
		c.pod(t, name+"-watched", ssh("secretName", "canary")), c.pod(t, name+"-sent", ssh("secretName", "sent")),
		c.pod(t, name+"-bad", ssh("secretName", "nowhere")),
	}
	messages := everythingWithSecrets(t, c, d, secret, pods, name == "level-5")
	for place, text := range surfaces(t, c, d, messages) {
		if len(text) == 0 && !strings.HasPrefix(place, "/proc") && !strings.Contains(place, "record") {
			t.Errorf("%s: there is nothing to search in", place)
		}
		if found := secret.found(text); len(found) > 0 {
			t.Errorf("in %s: %q", place, found)
		}
	}
	// Here a file was in the way.
	if err := os.Remove(d.Target(pods[2], "ssh")); err != nil {
		t.Error(err)
	}
	for _, p := range pods {
		unpublish(t, d, p, "ssh")
	}
	d.Stop()
	if found := secret.found([]byte(d.Log())); len(found) > 0 {
		t.Errorf("in the log at the end: %q", found)
	}
	if format == "json" {
		testkit.JSONLines(t, d.Log())
	}
	d.StartAgain() // The end of the test stops the driver once more.
}

// answersLeakNothing uses a proxy between the driver and the API server that answers with secret content: an object, or
// the request itself, as some proxies do for debugging.
func answersLeakNothing(t *testing.T, c *cluster) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			answersLeakNothingTo(t, c, format)
		})
	}
}

// answersLeakNothingTo is answersLeakNothing with one format of the log.
func answersLeakNothingTo(t *testing.T, c *cluster, format string) {
	name := "answers-" + format
	secret := canaries{}
	server := c.AdminConfig()
	server.BearerToken = "" // The driver's own token is passed on.
	proxy := faultproxy.New(t, server)
	d := testkit.StartDriver(t, c.binary, "--access=service-account",
		"--kubeconfig="+c.withToken(t, secret, proxy.Config()), "-v=5", "--log-format="+format)
	c.secret(t, name, map[string]string{"k": secret.make("in a Secret")})
	pods := []kubelet.Pod{pod(name + "-1"), pod(name + "-2")}
	for _, p := range pods {
		if _, err := d.Publish(deadline(t), p, ssh("secretName", name)); err != nil {
			t.Fatal(err)
		}
	}
	bad := pod(name + "-bad")
	object := func() *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
			Data: map[string][]byte{"k": []byte(secret.make("in an answer's object"))}}
	}
	inJSON, err := json.Marshal(object())
	if err != nil {
		t.Fatal(err)
	}
	messages, answers := "", 0
	for kind, body := range map[string][]byte{
		"application/vnd.kubernetes.protobuf": faultproxy.Encoded(object()), "application/json": inJSON,
		"text/plain": []byte(secret.make("in an answer's text")),
	} {
		for code, want := range map[int]codes.Code{500: codes.Unavailable, 502: codes.Unavailable, 401: codes.Unavailable,
			403: codes.PermissionDenied} {
			proxy.Answer(func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("Content-Type", kind)
				w.WriteHeader(code)
				w.Write(body)
				if kind == "text/plain" {
					fmt.Fprintln(w, r.Header)
				}
				return true
			})
			answers++
			// The test publishes again, like kubelet: 502 is an outage, in which the driver makes few requests.
			testkit.Eventually(t, converged, fmt.Sprintf("%v after %d with %s", want, code, kind), func() bool {
				_, err := d.Publish(deadline(t), bad, ssh("secretName", fmt.Sprint("other-", answers)))
				messages += fmt.Sprintln(err)
				return status.Code(err) == want
			})
		}
		// The watch of the published object ends, and its next request fails.
		proxy.Say(nil)
		testkit.Eventually(t, converged, "the volumes to be stale",
			func() bool { return strings.Contains(d.Status(), staleText) })
		messages += d.Status()
	}
	proxy.Answer(nil)
	for place, text := range surfaces(t, c, d, messages) {
		if found := secret.found(text); len(found) > 0 {
			t.Errorf("in %s: %q", place, found)
		}
	}
	for _, p := range append(pods, bad) {
		unpublish(t, d, p, "ssh")
	}
	reliability.Shown(t, "F-39",
		fmt.Sprintf("%d errors that hold an object, or the request, with the log as %s", answers, format))
}

// The libraries have debugging switches of their own, which no flag of the driver limits. Another one,
// GODEBUG=http2debug, would print Secrets. The driver does not start with it (cmd/fsuser-csi).
func switchesOfLibraries(t *testing.T, c *cluster) {
	keys := filepath.Join(t.TempDir(), "tls-keys")
	for name, value := range map[string]string{
		"GRPC_GO_LOG_SEVERITY_LEVEL": "info", "GRPC_GO_LOG_VERBOSITY_LEVEL": "99", "GRPC_BINARY_LOG_FILTER": "*",
		"SSLKEYLOGFILE": keys,
	} {
		t.Setenv(name, value)
	}
	leaksNothing(t, c, "text", 5, "switches")
	if _, err := os.Lstat(keys); err == nil {
		t.Error("the keys of TLS connections are in a file")
	}
}
