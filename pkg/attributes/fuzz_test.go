// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"encoding/json"
	"path"
	"reflect"
	"strings"
	"testing"
	"unicode"

	corev1 "k8s.io/api/core/v1"
)

// FuzzParse checks that Parse never panics, that it returns either errors or a Spec, that Validate accepts the Spec,
// that a token never appears in a message, and that messages fit into a line of the log.
func FuzzParse(f *testing.F) {
	f.Add("secretName", "keys", "uid", "1000", "mode/a/b", "0400", false)
	f.Add("configMapName", "conf", "mode", "0444", "uid/a", "5", false)
	f.Add("dirMode", "0700", "optional", "true", "refresh", "off", true)
	f.Add("secretname", "a/b", "namespace", "x", "items", "[]", false)
	f.Add("volume", "keys", "gid/../x", "1", "gid", "2", false)
	f.Add("secretName", "keys", "layout", "files", "template/a", "$(b)$$(c)$d", false)
	f.Add("", "", "secretName", "", "a\nb]", "\xff", true)
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3 string, requestHasSecrets bool) {
		const token = "s3cr3t-t0k3n"
		if strings.Contains(k1+v1+k2+v2+k3+v3, token) {
			t.Skip()
		}
		context := map[string]string{k1: v1, k2: v2, k3: v3, kubeletPrefix + "serviceAccount.tokens": token,
			kubeletPrefix + token: "x"}
		spec, errs := Parse(context, requestHasSecrets)
		if zero := reflect.DeepEqual(spec, Spec{}); zero != (len(errs) > 0) {
			t.Fatalf("%q: %d errors and %+v", context, len(errs), spec)
		}
		message := messages(errs)
		if strings.Contains(message, token) || strings.Count(message, "\n") > maxProblems {
			t.Fatalf("%q: %q", context, message)
		}
		if i := strings.IndexFunc(message, func(r rune) bool { return unicode.IsControl(r) && r != '\n' }); i >= 0 {
			t.Fatalf("%q: control character in %q", context, message)
		}
		if len(message) > maxProblems*1024 {
			t.Fatalf("%d bytes of message", len(message))
		}
		if len(errs) > 0 {
			return
		}
		if errs := Validate(spec); len(errs) > 0 {
			t.Fatalf("%q: Validate refuses what Parse accepted: %s", context, messages(errs))
		}
		if again, _ := Parse(context, requestHasSecrets); !reflect.DeepEqual(again, spec) {
			t.Fatalf("%q: not the same again: %+v, %+v", context, spec, again)
		}
	})
}

// FuzzDescribe checks that Describe never panics on a pod of a manifest, that it returns either errors or a Spec, that
// Validate accepts the Spec, and that its paths stay in the volume.
func FuzzDescribe(f *testing.F) {
	for _, seed := range []string{
		`{"volumes":[{"name":"v","secret":{"secretName":"s","defaultMode":384,` +
			`"items":[{"key":"a","path":"certs.d/host:5000/ca","mode":256,"user":5}]}}]}`,
		`{"volumes":[{"name":"v","projected":{"defaultUser":7,"sources":[{"secret":{"name":"s"}},` +
			`{"configMap":{"name":"c","optional":true}},` +
			`{"downwardAPI":{"items":[{"path":"l","fieldRef":{"fieldPath":"metadata.labels['a']"}},` +
			`{"path":"m","resourceFieldRef":{"containerName":"c","resource":"limits.memory"}}]}}]}}]}`,
		`{"containers":[{"name":"c","volumeMounts":[{"name":"csi","mountPath":"/a"},` +
			`{"name":"x","mountPath":"/a/b/c"},{"name":"csi","mountPath":"/d","subPath":"e"}]}],` +
			`"volumes":[{"name":"v","configMap":{"name":"c"}}]}`,
		`{"volumes":[{"name":"v","secret":{"secretName":"../x","items":[{"path":"../y","mode":-1,"user":-1}]}}]}`,
		`{"volumes":[{"name":"v","emptyDir":{}}]}`, `{"volumes":[{"name":"csi"}]}`, `{}`,
	} {
		f.Add(seed, "v")
	}
	f.Fuzz(func(t *testing.T, pod, volume string) {
		var spec corev1.PodSpec
		if json.Unmarshal([]byte(pod), &spec) != nil {
			return
		}
		request, errs := Parse(map[string]string{"volume": volume}, false)
		if len(errs) > 0 {
			return
		}
		described, errs := request.Describe(&spec, "csi")
		if zero := reflect.DeepEqual(described, Spec{}); zero != (len(errs) > 0) {
			t.Fatalf("%s: %d errors and %+v", pod, len(errs), described)
		}
		if len(errs) > 0 {
			return
		}
		if errs := Validate(described); len(errs) > 0 {
			t.Fatalf("%s: Validate refuses what Describe accepted: %s", pod, messages(errs))
		}
		for _, source := range described.Sources {
			for _, item := range source.Items {
				if full := path.Join("/volume", item.Path); !strings.HasPrefix(full, "/volume/") ||
					strings.HasPrefix(full, "/volume/..") {
					t.Fatalf("%s: the path %q leaves the volume", pod, item.Path)
				}
			}
		}
		if !described.SameRequest(request) {
			t.Fatalf("%s: no longer the same request", pod)
		}
	})
}
