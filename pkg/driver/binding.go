// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Binding proves which pod a request is for, without a call to the API server. Kubelet makes the target path and the
// volume id from the pod's uid, which the API server generates and nobody can choose. The names in volume_context alone
// prove nothing: if the CSIDriver object lacks podInfoOnMount, the pod's author can choose them.
type Binding struct {
	// root is kubelet's root directory as kubelet writes it. resolved is the same directory without symbolic links.
	root, resolved string
	lenient        bool
}

// NewBinding returns the Binding for a kubelet with this root directory, which must exist. The path may contain
// symbolic links. NewBinding resolves them once.
//
// A lenient Binding accepts any target path and volume id, and volumes that are not read-only, because the csi-sanity
// suite sends them. It must not be used in a cluster.
func NewBinding(kubeletRoot string, lenient bool) (Binding, error) {
	if !filepath.IsAbs(kubeletRoot) {
		return Binding{}, fmt.Errorf("kubelet's root directory %q is not an absolute path", kubeletRoot)
	}
	resolved, err := filepath.EvalSymlinks(kubeletRoot)
	if err != nil {
		return Binding{}, fmt.Errorf("kubelet's root directory: %w", err)
	}
	return Binding{root: filepath.Clean(kubeletRoot), resolved: resolved, lenient: lenient}, nil
}

// PodsDir returns the directory of the volumes of kubelet's pods, without symbolic links.
func (b Binding) PodsDir() string { return filepath.Join(b.resolved, "pods") }

// VolumeID returns the id that kubelet gives to an inline volume: a hash of the pod's uid and the volume's name in the
// pod (kubelet's makeVolumeHandle).
func VolumeID(podUID, volumeName string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(podUID+volumeName)))
}

// maxPath is the longest path of a target, in bytes: PATH_MAX without the terminating zero.
const maxPath = 4095

var (
	podUIDForm = regexp.MustCompile(`^[0-9A-Za-z-]{1,63}$`)
	// volumeIDForm is the form of all volume ids. The CSI specification limits them to 128 bytes.
	volumeIDForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$`)
)

const badVolumeID = "volume_id must be 1 to 128 letters, digits, '-', '_' or '.', without two dots in a row"

func validVolumeID(id string) bool {
	return volumeIDForm.MatchString(id) && !strings.Contains(id, "..")
}

// target checks that a volume id and a target path belong together. It returns the path without symbolic links, and the
// uid of the volume's pod, which is empty for a lenient Binding.
func (b Binding) target(volumeID, path string) (resolved, podUID string, err error) {
	if !validVolumeID(volumeID) {
		return "", "", errors.New(badVolumeID)
	}
	if len(path) > maxPath || !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" {
		return "", "", fmt.Errorf("target_path must be an absolute path of at most %d bytes "+
			"without '.', '..' and double slashes", maxPath)
	}
	resolved = b.resolve(path)
	if b.lenient {
		return resolved, "", nil
	}
	podUID, volumeName, ok := b.parse(resolved)
	if !ok {
		return "", "", fmt.Errorf("target_path is not one of this kubelet's: it must be "+
			"%s/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount", b.root)
	}
	if volumeID != VolumeID(podUID, volumeName) {
		return "", "", errors.New("volume_id does not belong to target_path: " +
			"kubelet makes both from the pod's uid and the volume's name")
	}
	return resolved, podUID, nil
}

// parse splits <root>/pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount.
func (b Binding) parse(path string) (podUID, volumeName string, ok bool) {
	rest, below := strings.CutPrefix(path, b.PodsDir()+"/")
	parts := strings.Split(rest, "/")
	if !below || len(parts) != 5 || parts[1] != "volumes" || parts[2] != "kubernetes.io~csi" || parts[4] != "mount" {
		return "", "", false
	}
	podUID, volumeName = parts[0], parts[3]
	return podUID, volumeName, podUIDForm.MatchString(podUID) && len(validation.IsDNS1123Label(volumeName)) == 0
}

// resolve replaces kubelet's root directory by the directory without symbolic links, so that later uses of the path
// follow no link.
func (b Binding) resolve(path string) string {
	if rest, ok := strings.CutPrefix(path, b.root+"/"); ok {
		return b.resolved + "/" + rest
	}
	return path
}

// CheckTarget returns an error unless a volume of the pod may be at target, which is a path without symbolic links. A
// volume.Manager checks its records with it.
func (b Binding) CheckTarget(volumeID, target, podUID string) error {
	_, uid, err := b.target(volumeID, target)
	if err != nil {
		return err
	}
	if !b.lenient && uid != podUID {
		return fmt.Errorf("target_path is that of another pod (%s) than the one named (%s)", uid, podUID)
	}
	return nil
}
