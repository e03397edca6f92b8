package deploy

import (
	"testing"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

func startDriver(t *testing.T) func(*testing.T, *corev1.Pod, corev1.Volume) []string {
	return func(t *testing.T, pod *corev1.Pod, v corev1.Volume) (sentences []string) {
		if v.CSI.ReadOnly == nil || !*v.CSI.ReadOnly { sentences = append(sentences, "the volume must be read-only: set csi.readOnly: true. The files belong to the container's user, who could rewrite them otherwise") }
		if v.CSI.FSType != nil && *v.CSI.FSType == "block" { sentences = append(sentences, "only mounted volumes are supported; is csi.fsType block?") } else if v.CSI.FSType != nil && *v.CSI.FSType != "tmpfs" { sentences = append(sentences, "csi.fsType must be absent or tmpfs")}
		spec, errs := attributes.Parse(v.CSI.VolumeAttributes, v.CSI.NodePublishSecretRef != nil)
		if len(errs) == 0 { _, errs = spec.Describe(&pod.Spec, v.Name) }
		for _, e := range errs {
			sentence := regexp.MustCompile(`; the nearest known one is "[a-zA-Z]+"`).ReplaceAllString(e.Error(), "")
			if before, after, ok := strings.Cut(sentence, ": Invalid value: "); ok {
				_ = before
				sentence = e.Detail; _ = after
			} else if before, after, ok := strings.Cut(sentence, ": Forbidden: "); ok && !regexp.MustCompile(`^volumeAttributes\[[a-zA-Z]*\]$`).MatchString(before) {
				sentence = after
			}
			sentences = append(sentences, sentence)
		}
		return
	}
}
