// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/volume"
)

// kubeletKeys is the prefix of kubelet's own keys. No key of a Secret can have it.
const kubeletKeys = "csi.storage.k8s.io/"

// The keys of volume_context that kubelet sets if the CSIDriver object has podInfoOnMount: true.
const (
	keyPodName      = kubeletKeys + "pod.name"
	keyPodNamespace = kubeletKeys + "pod.namespace"
	keyPodUID       = kubeletKeys + "pod.uid"
	keyEphemeral    = kubeletKeys + "ephemeral"
)

// problems are the mistakes in a request. One answer names all of them.
type problems []error

func (p *problems) add(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

// err joins the problems with semicolons, because an Event shows the text in one line.
func (p problems) err() error {
	if len(p) == 0 {
		return nil
	}
	text := p[0].Error()
	for _, problem := range p[1:] {
		text += "; " + problem.Error()
	}
	return errors.New(text)
}

// publishRequest checks a publish request as a whole and converts it. The error names every problem. It contains no
// values except those of the driver's own attributes.
func (b Binding) publishRequest(req *csi.NodePublishVolumeRequest) (volume.Request, error) {
	var p problems
	attrs := req.GetVolumeContext()
	pod := volume.Pod{Namespace: attrs[keyPodNamespace], Name: attrs[keyPodName], UID: attrs[keyPodUID]}

	target, podUID := "", ""
	switch {
	case req.GetVolumeId() == "" || req.GetTargetPath() == "":
		p.add("volume_id and target_path must be set")
	default:
		var err error
		if target, podUID, err = b.target(req.GetVolumeId(), req.GetTargetPath()); err != nil {
			p = append(p, err)
		}
	}
	group := p.capability(req.GetVolumeCapability())
	if !req.GetReadonly() && !b.lenient {
		p.add("the volume must be read-only: set csi.readOnly: true. " +
			"The files belong to the container's user, who could rewrite them otherwise")
	}
	if len(req.GetPublishContext()) > 0 || req.GetStagingTargetPath() != "" {
		p.add("publish_context and staging_target_path must be empty: this driver has no controller and stages nothing")
	}
	p.pod(pod, attrs[keyEphemeral])
	if podUID != "" && pod.UID != "" && podUID != pod.UID {
		p.add("%s does not belong to target_path: the pod is not the one that it says", keyPodUID)
	}
	secrets := secretsOf(req)
	spec, errs := attributes.Parse(attrs, len(secrets) > 0)
	if len(p) == 0 && len(errs) > 0 {
		// Kubelet sends the same request for a Secret without data and for a volume without nodePublishSecretRef. If nothing
		// else is wrong, package volume decides: the Secret of a published volume may lose its data.
		if emptied, others := attributes.Parse(attrs, true); len(others) == 0 {
			spec, errs = emptied, nil
		}
	}
	for _, err := range errs {
		p = append(p, err)
	}
	return volume.Request{
		ID: req.GetVolumeId(), TargetPath: target, Pod: pod, Spec: spec, MountGroup: group, Secrets: secrets,
	}, p.err()
}

// secretsOf returns the secrets of a request that come from a Secret. If the CSIDriver object has
// serviceAccountTokenInSecrets, kubelet also puts the pod's tokens there.
func secretsOf(req *csi.NodePublishVolumeRequest) map[string]string {
	secrets := maps.Clone(req.GetSecrets())
	maps.DeleteFunc(secrets, func(key, _ string) bool { return strings.HasPrefix(key, kubeletKeys) })
	return secrets
}

// capability checks the volume capability, and returns the pod's fsGroup.
func (p *problems) capability(c *csi.VolumeCapability) (group *uint32) {
	if c == nil {
		p.add("volume_capability must be set")
		return nil
	}
	if mode := c.GetAccessMode().GetMode(); mode != csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER {
		p.add("access mode %s is not supported, only SINGLE_NODE_WRITER", mode)
	}
	mount := c.GetMount()
	if mount == nil {
		p.add("only mounted volumes are supported; is csi.fsType block?")
		return nil
	}
	if fsType := mount.GetFsType(); fsType != "" && fsType != "tmpfs" {
		p.add("csi.fsType must be absent or tmpfs")
	}
	if len(mount.GetMountFlags()) > 0 {
		p.add("mount flags are not supported")
	}
	if text := mount.GetVolumeMountGroup(); text != "" {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			p.add("volume_mount_group (the pod's fsGroup) must be a number from 0 to 2147483647")
			return nil
		}
		gid := uint32(n)
		group = &gid
	}
	return group
}

// pod checks kubelet's information about the pod.
func (p *problems) pod(pod volume.Pod, ephemeral string) {
	if pod.Namespace == "" || pod.Name == "" || pod.UID == "" || ephemeral == "" {
		p.add("kubelet did not say whose volume it is: the CSIDriver object %s must have podInfoOnMount: true", Name)
		return
	}
	if ephemeral != "true" {
		p.add("only inline volumes are supported: declare the volume with csi: in the pod, not with a PersistentVolume")
	}
	if len(validation.IsDNS1123Label(pod.Namespace)) > 0 {
		p.add("%s is not a namespace's name", keyPodNamespace)
	}
	if len(validation.IsDNS1123Subdomain(pod.Name)) > 0 {
		p.add("%s is not a pod's name", keyPodName)
	}
	if !podUIDForm.MatchString(pod.UID) {
		p.add("%s is not a uid", keyPodUID)
	}
}

// unpublishRequest checks an unpublish request and returns its target path without symbolic links.
func (b Binding) unpublishRequest(req *csi.NodeUnpublishVolumeRequest) (target string, err error) {
	if req.GetVolumeId() == "" || req.GetTargetPath() == "" {
		return "", errors.New("volume_id and target_path must be set")
	}
	target, _, err = b.target(req.GetVolumeId(), req.GetTargetPath())
	return target, err
}
