// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/fsuser-csi/fsuser-csi/pkg/confine"
	"github.com/fsuser-csi/fsuser-csi/pkg/driver"
	"github.com/fsuser-csi/fsuser-csi/pkg/record"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

const defaultStateDir = "/run/" + driver.Name

// The values of --access.
const (
	accessNode           = "node"
	accessServiceAccount = "service-account"
)

// minWatchDuration is the smallest --watch-duration. Shorter watches could flood the API server.
const minWatchDuration = 10 * time.Second

// nodeOptions are the flags of "fsuser-csi node".
type nodeOptions struct {
	nodeName        string
	kubeletRoot     string
	endpoint        string
	register        bool
	stateDir        string
	access          string
	kubeconfig      string
	manifests       string
	httpAddress     string
	selinuxContext  string
	requestChecks   string
	maxVolumeBytes  int64
	maxVolumeFiles  int
	refreshWorkers  int
	watchDuration   time.Duration
	collectInterval time.Duration
	seccomp         bool

	maxVolumes        int
	maxNodeBytes      int64
	maxWatchedObjects int
	podShare          int
	namespaceShare    int
	maxMessageBytes   int
	maxOpenFiles      uint64

	verbosity int
	logFormat string
}

func newNodeCommand() *cobra.Command {
	var o nodeOptions
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Run the driver on a node",
		Long: `node serves CSI to the kubelet of this node and registers with it. It needs root with CAP_SYS_ADMIN,
Linux 5.12 or later, and kubelet's root directory at the same path as on the host, with shared mount propagation
(in a DaemonSet: mountPropagation: Bidirectional).`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.nodeName, "node-name", os.Getenv("NODE_NAME"),
		"name of this Kubernetes node (default: the environment variable NODE_NAME)")
	f.StringVar(&o.kubeletRoot, "kubelet-root", "/var/lib/kubelet",
		"kubelet's root directory (its --root-dir), mounted at the same path as on the host")
	f.StringVar(&o.endpoint, "endpoint", "", "path of the CSI socket, the same as on the host "+
		"(default: plugins/fsuser.csi.io/csi.sock below --kubelet-root)")
	f.BoolVar(&o.register, "register", true,
		"register with kubelet, through a socket in plugins_registry below --kubelet-root")
	f.StringVar(&o.stateDir, "state-dir", defaultStateDir,
		"directory for the records of published volumes; a reboot must empty it")
	f.StringVar(&o.access, "access", accessNode,
		"identity that reads the objects: \"node\" (this node, by constrained impersonation: only objects that its pods "+
			"declare) or \"service-account\" (objects that RBAC allows)")
	f.DurationVar(&o.watchDuration, "watch-duration", 0,
		"longest duration of a watch of an object, and longest time after which an immutable object is read again; the "+
			"API server checks the rights again at the end (default: 1h with --access=node, else 10m)")
	f.StringVar(&o.kubeconfig, "kubeconfig", "",
		"kubeconfig file for the API server (default: the pod's service account)")
	f.StringVar(&o.manifests, "manifests", "",
		"directory of manifests; Secrets, ConfigMaps and pods are read from it instead of an API server")
	f.StringVar(&o.httpAddress, "http-address", "",
		"address:port for /healthz, /readyz and /metrics, on loopback or the pod's IP (default: not served)")
	f.StringVar(&o.selinuxContext, "selinux-context", "system_u:object_r:container_file_t:s0",
		"SELinux context of the files, used if SELinux is enabled")
	f.StringVar(&o.requestChecks, "request-checks", "strict",
		"requests that are accepted: \"strict\" (those of a real kubelet) or \"csi-sanity\" (any path and id; never in "+
			"a cluster)")
	f.Int64Var(&o.maxVolumeBytes, "max-volume-bytes", 4<<20,
		"maximum content of one volume in bytes; its tmpfs may grow to twice that size")
	f.IntVar(&o.maxVolumeFiles, "max-volume-files", 2048, "maximum number of files and directories of one volume")
	f.IntVar(&o.maxVolumes, "max-volumes", 2000, "maximum number of volumes on this node")
	f.Int64Var(&o.maxNodeBytes, "max-node-bytes", 1<<30,
		"maximum memory of all volumes in bytes: one version of their files in whole pages, 1.5 KiB for each file, "+
			"directory and link, their records, and the content of their objects, once for each volume")
	f.IntVar(&o.maxWatchedObjects, "max-watched-objects", 4000, "maximum number of watched objects")
	// If 110 pods, kubelet's default maximum, share the node evenly, each has less than 1 %. All pods of one namespace
	// reach 50 % if each has ten volumes, or nineteen objects of its own.
	f.IntVar(&o.podShare, "pod-share", 10, "maximum percentage of --max-volumes, --max-node-bytes and "+
		"--max-watched-objects that the volumes of one pod may use; 100: no limit for one pod")
	f.IntVar(&o.namespaceShare, "namespace-share", 50, "maximum percentage of --max-volumes, --max-node-bytes and "+
		"--max-watched-objects that the volumes of one namespace may use; 100: no limit for one namespace")
	f.IntVar(&o.maxMessageBytes, "max-message-bytes", 4<<20, "maximum length of a request in bytes")
	f.Uint64Var(&o.maxOpenFiles, "max-open-files", 65536,
		"maximum number of open file descriptors; the hard limit of the process bounds it")
	f.IntVar(&o.refreshWorkers, "refresh-workers", 4, "number of volumes that are refreshed at the same time")
	f.DurationVar(&o.collectInterval, "collect-interval", time.Minute,
		"interval for garbage-collecting volumes of deleted pods and checking that --state-dir is writable")
	f.BoolVar(&o.seccomp, "seccomp", true,
		"forbid the system calls that the driver does not make; set it to false if the kernel or the architecture "+
			"has no seccomp filters")
	f.IntVarP(&o.verbosity, "v", "v", 0, fmt.Sprintf("verbosity of the log, 0 to %d", maxVerbosity))
	f.StringVar(&o.logFormat, logFormatFlag, logText,
		`format of the log: "text" (klog's) or "json" (a JSON object for each line)`)
	return cmd
}

// run checks the flags, prepares the process and the node, and runs the agent until ctx ends.
func (o nodeOptions) run(ctx context.Context) error {
	if err := o.check(); err != nil {
		return err
	}
	if err := o.setUpLog(); err != nil {
		return err
	}
	defer klog.Flush()
	// The driver uses its memory on every node, and makes little garbage. With 50, 500 volumes take 2 MiB less, and make
	// bench shows no slowdown.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if err := confine.Process(o.seccomp); err != nil {
		return err
	}
	if err := limitOpenFiles(o.maxOpenFiles); err != nil {
		return fmt.Errorf("--max-open-files: %w", err)
	}
	binding, err := driver.NewBinding(o.kubeletRoot, o.requestChecks == "csi-sanity")
	if err != nil {
		return fmt.Errorf("--kubelet-root: %w", err)
	}
	features, err := selfTest(binding)
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	if err := checkSELinuxContext(features, o.selinuxContext); err != nil {
		return fmt.Errorf("--selinux-context: %w", err)
	}
	records, err := record.Open(o.stateDir)
	if err != nil {
		return fmt.Errorf("--state-dir: %w", err)
	}
	unlock, err := lockDir(o.stateDir)
	if err != nil {
		return fmt.Errorf("--state-dir: %w", err)
	}
	defer unlock()
	return agent{o, binding, features, records, o.newMetrics(features)}.run(ctx)
}

// check returns an error for flags with which the driver can't work.
func (o nodeOptions) check() error {
	switch {
	case o.requestChecks != "strict" && o.requestChecks != "csi-sanity":
		return fmt.Errorf(`--request-checks is %q; it must be "strict" or "csi-sanity"`, o.requestChecks)
	case o.access != accessNode && o.access != accessServiceAccount:
		return fmt.Errorf("--access is %q; it must be %q or %q", o.access, accessNode, accessServiceAccount)
	case o.logFormat != logText && o.logFormat != logJSON:
		return fmt.Errorf("--%s is %q; it must be %q or %q", logFormatFlag, o.logFormat, logText, logJSON)
	case o.manifests == "" && o.access == accessNode && o.nodeName == "":
		return fmt.Errorf("--access=%s needs the name of the node; set --node-name (in a DaemonSet: from spec.nodeName)",
			accessNode)
	case o.watchDuration != 0 && o.watchDuration < minWatchDuration:
		return fmt.Errorf("--watch-duration is %v; it must be at least %v", o.watchDuration, minWatchDuration)
	case o.collectInterval <= 0:
		return fmt.Errorf("--collect-interval is %v; it must be greater than 0s", o.collectInterval)
	case !filepath.IsAbs(o.stateDir):
		return fmt.Errorf("--state-dir is %q; it must be an absolute path", o.stateDir)
	}
	return o.checkLimits()
}

// limitOpenFiles sets the maximum number of the process's file descriptors. The administrator's hard limit bounds it.
func limitOpenFiles(most uint64) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = min(most, limit.Max)
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
}

// checkLimits returns an error for limits with which no volume can be published.
func (o nodeOptions) checkLimits() error {
	for _, limit := range []struct {
		flag         string
		value, least int64
	}{
		{"max-volume-bytes", o.maxVolumeBytes, 1},
		{"max-volume-files", int64(o.maxVolumeFiles), 1},
		{"max-volumes", int64(o.maxVolumes), 1},
		{"max-node-bytes", o.maxNodeBytes, 1},
		{"max-watched-objects", int64(o.maxWatchedObjects), 1},
		{"pod-share", int64(o.podShare), 1},
		{"namespace-share", int64(o.namespaceShare), 1},
		{"refresh-workers", int64(o.refreshWorkers), 1},
		// A request with a nodePublishSecretRef may be as long as a Secret.
		{"max-message-bytes", int64(o.maxMessageBytes), 1 << 16},
		// Sockets, connections and watches take descriptors, too.
		{"max-open-files", int64(min(o.maxOpenFiles, math.MaxInt64)), 64},
	} {
		if limit.value < limit.least {
			return fmt.Errorf("--%s is %d; it must be at least %d", limit.flag, limit.value, limit.least)
		}
	}
	switch {
	case o.podShare > 100:
		return fmt.Errorf("--pod-share is %d; it must be at most 100 (percent)", o.podShare)
	case o.namespaceShare > 100:
		return fmt.Errorf("--namespace-share is %d; it must be at most 100 (percent)", o.namespaceShare)
	}
	return nil
}

// selfTest returns an error if a property of the node would make every publish fail.
func selfTest(binding driver.Binding) (tmpfs.Features, error) {
	features, err := tmpfs.Probe()
	if err != nil {
		return features, err
	}
	if st, err := os.Stat(binding.PodsDir()); err != nil || !st.IsDir() {
		return features, fmt.Errorf("%s is not there or no directory; is --kubelet-root kubelet's root directory?",
			binding.PodsDir())
	}
	shared, err := tmpfs.IsShared(binding.PodsDir())
	if err != nil {
		return features, err
	}
	if !shared {
		return features, fmt.Errorf("mounts below %s would not reach the host: it lies on a mount without shared "+
			"propagation; in a DaemonSet set mountPropagation: Bidirectional, elsewhere run: "+
			"mount --make-rshared <mount point>", binding.PodsDir())
	}
	return features, nil
}

// checkSELinuxContext creates a file system with the context, without attaching it. The kernel refuses a context that
// is not in the node's policy.
func checkSELinuxContext(features tmpfs.Features, context string) error {
	if !features.SELinux || context == "" {
		return nil
	}
	d, err := tmpfs.Create(tmpfs.Options{Limits: tmpfs.Limits{Bytes: 1 << 12, Inodes: 1}, SELinuxContext: context})
	if err != nil {
		return fmt.Errorf("this node's SELinux policy refuses the context; set the context of files that containers may "+
			"read (on Talos: system_u:object_r:ephemeral_t:s0): %w", err)
	}
	return d.Close()
}

// warnOfSwap logs that the kernel may write volumes to swap. swaps is /proc/swaps: a header, and a line for each area.
// A kernel without swap has no such file.
func warnOfSwap(noSwap bool, swaps string) {
	if noSwap {
		return
	}
	b, err := os.ReadFile(swaps)
	_, areas, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	if errors.Is(err, fs.ErrNotExist) || err == nil && areas == "" {
		return
	}
	var names []string
	for line := range strings.Lines(areas) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	klog.ErrorS(err, "Secrets may be written to the disk: the node has swap, and its kernel can't keep a tmpfs out "+
		"of it (that takes Linux 6.4, outside of user namespaces); turn swap off or have it encrypted", "swap", names)
}
