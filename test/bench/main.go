// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "github.com/container-storage-interface/spec/lib/go/csi"
	_ "github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	_ "github.com/fsuser-csi/fsuser-csi/pkg/projector"
	_ "github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
	_ "github.com/fsuser-csi/fsuser-csi/test/controlplane"
	_ "golang.org/x/sys/unix"
	_ "google.golang.org/grpc"
	_ "k8s.io/api/core/v1"
	_ "k8s.io/client-go/kubernetes"
	_ "k8s.io/kubernetes/pkg/volume/util"
	_ "k8s.io/mount-utils"
)

func main() {}
