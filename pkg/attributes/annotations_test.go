// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"strings"
	"testing"
)

func TestAnnotations(t *testing.T) {
	for _, test := range []struct {
		name, key, value string
		says             []string // nothing: it is good
	}{
		{"a user", AnnotationFSUser, "1000", nil},
		{"root", AnnotationFSUser, "0", nil},
		{"the largest", AnnotationFSGroup, "2147483647", nil},
		{"none", AnnotationFSUser, "none", nil},
		{"no group", AnnotationFSGroup, "none", nil},
		{"another's", "other.io/fs-user", "x", nil},
		{"almost the driver's", "fsuser.csi.io.example/fs-user", "x", nil},
		{"too large", AnnotationFSUser, "2147483648", []string{"annotations[fsuser.csi.io/fs-user]", "2147483648", `"none"`}},
		{"a name", AnnotationFSGroup, "staff", []string{"annotations[fsuser.csi.io/fs-group]", "staff", "decimal"}},
		{"empty", AnnotationFSUser, "", []string{"decimal"}},
		{"a space", AnnotationFSUser, "1 ", []string{"decimal"}},
		{"None", AnnotationFSUser, "None", []string{`"none"`}},
		{"misspelt", "fsuser.csi.io/fsUser", "1000", []string{"unknown annotation",
			`nearest known one is "fsuser.csi.io/fs-user"`}},
		{"something else", "fsuser.csi.io/completely-different-and-long", "1000",
			[]string{"unknown annotation (known: fsuser.csi.io/fs-group, fsuser.csi.io/fs-user)"}},
		{"a rule", annotationAllowUIDs, "1000", []string{"has no effect on a pod: it belongs on a namespace or the " +
			"CSIDriver"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			errs := ValidateAnnotations(OnPod, map[string]string{test.key: test.value})
			if (len(errs) > 0) != (len(test.says) > 0) {
				t.Fatalf("problems: %v", errs)
			}
			for _, part := range test.says {
				if !strings.Contains(errs.ToAggregate().Error(), part) {
					t.Errorf("%v does not say %q", errs, part)
				}
			}
		})
	}
}

func TestAnnotationsElsewhere(t *testing.T) {
	for _, test := range []struct {
		on         Annotated
		key, value string
		says       string // "": it is good
	}{
		{OnNamespace, AnnotationFSUser, "1000", ""},
		{OnNamespace, annotationAllowGIDs, "", ""},
		{OnNamespace, "fsuser.csi.io/allow-configMaps", "x", `nearest known one is "fsuser.csi.io/allow-configmaps"`},
		{OnCSIDriver, annotationAllowUIDs, "0, 1000 - 1999,", ""},
		{OnCSIDriver, annotationAllowUIDs, "1000-1999 70", "numbers and ranges"},
		{OnCSIDriver, annotationAllowSecrets, "*, ssh-*,tls", ""},
		{OnCSIDriver, annotationAllowConfigMaps, "*x", "names and name*"},
		{OnCSIDriver, AnnotationFSGroup, "1", "has no effect on the CSIDriver: it belongs on a pod or a namespace"},
	} {
		errs := ValidateAnnotations(test.on, map[string]string{test.key: test.value})
		if (len(errs) > 0) != (test.says != "") || test.says != "" && !strings.Contains(errs.ToAggregate().Error(),
			test.says) {
			t.Errorf("%s on %s: %q: problems %v, want %q", test.key, test.on, test.value, errs, test.says)
		}
	}
}

func TestParseID(t *testing.T) {
	if id, problem := ParseID("1000"); id != 1000 || problem != "" {
		t.Errorf("1000 is %d, %q", id, problem)
	}
	for _, text := range []string{"", "-1", "+1", "01", "1e3", "2147483648", "root"} {
		if id, problem := ParseID(text); problem != idRule || id != 0 {
			t.Errorf("%q is %d, %q", text, id, problem)
		}
	}
}

func TestDefaultModeIsWhatParseFillsIn(t *testing.T) {
	for kind, key := range map[Kind]string{Secret: "secretName", ConfigMap: "configMapName"} {
		spec, errs := Parse(map[string]string{key: "a"}, false)
		if len(errs) > 0 || spec.Sources[0].Mode != defaultModeOf(kind) {
			t.Errorf("%s: %v, %v; want %04o", kind, spec, errs, defaultModeOf(kind))
		}
	}
}
