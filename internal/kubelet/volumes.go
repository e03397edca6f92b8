// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrStranded means that a mount exists that kubelet does not know, so kubelet would never finish terminating the pod
// (kubelet.go, SyncTerminatedPod; csi_mounter.go, SetUpAt after a final error). A driver must not cause this.
var ErrStranded = errors.New("something is mounted that kubelet does not know of")

// callTimeout is kubelet's timeout for a volume operation (csi_plugin.go).
const callTimeout = 2 * time.Minute

// VolumeManager is the part of the fake kubelet that sets up the volumes of pods, by the rules of Kubernetes 1.37:
// which calls it makes, how it classifies errors, what it removes, how it retries, and what it knows after a restart.
// Want and Drop define the wanted volumes, and Settle reaches that state. The methods are safe for concurrent use,
// except that only one Settle may run at a time.
type VolumeManager struct {
	root, endpoint string
	// Backoff is the first pause after an error; each further one is twice as long, up to MaxBackoff. Kubelet's are 500 ms
	// and 2 min 2 s (goroutinemap/exponentialbackoff).
	Backoff, MaxBackoff time.Duration
	// Failed is called with each error of the driver. It may be nil.
	Failed func(call string, err error)

	mu      sync.Mutex
	volumes map[volumeKey]*podVolume
}

type volumeKey struct {
	podUID, name string
}

// podVolume is kubelet's state of a volume of a pod.
type podVolume struct {
	pod    Pod
	volume Volume
	wanted bool
	state  state
	// reconstructed means that the volume was found on the disk after a restart. Errors do not remove it.
	reconstructed bool
	// republish means that a mounted volume must be published again.
	republish bool
}

type state int

const (
	notMounted state = iota
	// uncertain means that the volume may be mounted, and will be unpublished.
	uncertain
	mounted
)

// NewVolumeManager returns a VolumeManager without pods for the driver at endpoint. Its pauses are a hundredth of
// kubelet's, and at most 200 ms.
func NewVolumeManager(root, endpoint string) *VolumeManager {
	return &VolumeManager{
		root: root, endpoint: endpoint, Backoff: 5 * time.Millisecond, MaxBackoff: 200 * time.Millisecond,
		volumes: map[volumeKey]*podVolume{},
	}
}

// Target returns the target path of a volume of a pod.
func (m *VolumeManager) Target(pod Pod, volume string) string {
	return (&Kubelet{root: m.root}).Target(pod, volume)
}

// Want adds a volume of a pod.
func (m *VolumeManager) Want(pod Pod, v Volume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.volumes[volumeKey{pod.UID, v.Name}] = &podVolume{pod: pod, volume: v, wanted: true}
}

// Drop marks a volume as unwanted, because its pod was deleted or has ended.
func (m *VolumeManager) Drop(pod Pod, volume string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[volumeKey{pod.UID, volume}]; v != nil {
		v.wanted = false
	}
}

// Forget removes a volume from kubelet's state, as if kubelet had never had the pod.
func (m *VolumeManager) Forget(pod Pod, volume string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.volumes, volumeKey{pod.UID, volume})
}

// Republish marks each mounted volume for a republish, as requiresRepublish of the CSIDriver does.
func (m *VolumeManager) Republish() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.volumes {
		v.republish = v.state == mounted
	}
}

// Push replaces the data of a volume's nodePublishSecretRef and republishes the volume. Kubelet reads the Secret
// before each republish.
func (m *VolumeManager) Push(pod Pod, volume string, secrets map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[volumeKey{pod.UID, volume}]; v != nil {
		v.volume.Secrets = secrets
		v.republish = v.state == mounted
	}
}

// Restart simulates a restart of kubelet. The new process knows the pods that it has to run and the state on disk
// (reconstruct.go): each volume with a vol_data.json may be mounted.
func (m *VolumeManager) Restart() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, v := range m.volumes {
		if !v.wanted {
			delete(m.volumes, key)
			continue
		}
		v.state, v.republish = notMounted, false
	}
	found, err := filepath.Glob(filepath.Join(m.root, "pods", "*", "volumes", "kubernetes.io~csi", "*", volumeDataFile))
	if err != nil {
		return err
	}
	for _, path := range found {
		dir := filepath.Dir(path)
		key := volumeKey{filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(dir)))), filepath.Base(dir)}
		v := m.volumes[key]
		if v == nil {
			v = &podVolume{pod: Pod{UID: key.podUID}, volume: Volume{Name: key.name}}
			m.volumes[key] = v
		}
		v.state, v.reconstructed = uncertain, true
	}
	return nil
}

// Settle publishes the wanted volumes and unpublishes the others, all in parallel, and retries each until it
// succeeds. It returns early if ctx ends, or with ErrStranded.
func (m *VolumeManager) Settle(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var running sync.WaitGroup
	m.mu.Lock()
	for key, v := range m.volumes {
		running.Go(func() {
			if err := m.settle(ctx, key, v); err != nil {
				fail(err)
			}
		})
	}
	m.mu.Unlock()
	running.Wait()
	return context.Cause(ctx)
}

func (m *VolumeManager) settle(ctx context.Context, key volumeKey, v *podVolume) error {
	for pause := m.Backoff; ; pause = min(2*pause, m.MaxBackoff) {
		m.mu.Lock()
		now := *v
		m.mu.Unlock()
		var err error
		switch {
		case now.wanted && now.state == mounted && !now.republish:
			return nil
		case now.wanted:
			err = m.setUp(ctx, &now)
		default:
			err = m.tearDown(ctx, &now)
		}
		m.mu.Lock()
		v.state, v.reconstructed = now.state, now.reconstructed
		v.republish = v.republish && err != nil
		if !now.wanted && err == nil {
			delete(m.volumes, key)
		}
		m.mu.Unlock()
		if err == nil || errors.Is(err, ErrStranded) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("settle volume %s of pod %s: %w: %w", key.name, key.podUID, context.Cause(ctx), err)
		}
	}
}

// setUp implements csi_mounter.go, SetUpAt, and the handling of its error in operation_generator.go.
func (m *VolumeManager) setUp(ctx context.Context, v *podVolume) error {
	k := &Kubelet{root: m.root}
	req := k.Request(v.pod, v.volume)
	dir := filepath.Dir(req.GetTargetPath())
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if err := saveVolumeData(dir, req.GetVolumeId()); err != nil {
		return err
	}
	asked := false
	err := m.call(ctx, "NodePublishVolume", func(ctx context.Context, node csi.NodeClient) error {
		if _, err := node.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{}); err != nil {
			return err
		}
		asked = true
		_, err := node.NodePublishVolume(ctx, req)
		return err
	})
	switch {
	case err == nil:
		v.state = mounted
	case !asked, v.state == mounted, v.reconstructed:
		// The state of the volume is the same as before.
	case isFinal(err):
		v.state = notMounted
		return errors.Join(err, removeVolumeDir(req.GetTargetPath()))
	default:
		v.state = uncertain
	}
	return err
}

// tearDown implements operation_generator.go, UnmountVolume, with csi_mounter.go, TearDownAt, and the removal of the
// pod.
func (m *VolumeManager) tearDown(ctx context.Context, v *podVolume) error {
	target := m.Target(v.pod, v.volume.Name)
	if v.state != notMounted {
		id, err := loadVolumeData(filepath.Dir(target))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrStranded, err)
		}
		err = m.call(ctx, "NodeUnpublishVolume", func(ctx context.Context, node csi.NodeClient) error {
			_, err := node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
			return err
		})
		if err != nil {
			v.state = uncertain
			return err
		}
		v.state = notMounted
		if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: the driver left %s behind (%v)", ErrStranded, target, err)
		}
		if err := removeVolumeDir(target); err != nil {
			return err
		}
	}
	if isMountPoint(target) {
		return fmt.Errorf("%w: %s", ErrStranded, target)
	}
	return removeEmpty(filepath.Join(m.root, "pods", v.pod.UID), "volumes/kubernetes.io~csi/"+v.volume.Name,
		"volumes/kubernetes.io~csi", "volumes", "")
}

// call uses a new connection for each call, as kubelet does.
func (m *VolumeManager) call(ctx context.Context, name string, f func(context.Context, csi.NodeClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := dial(m.endpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = f(ctx, csi.NewNodeClient(conn))
	if err != nil && m.Failed != nil {
		m.Failed(name, err)
	}
	return err
}

// isFinal reports whether kubelet concludes from an error that nothing is left of a call (csi_client.go, isFinalError).
func isFinal(err error) bool {
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return false
	}
	return true
}

// volumeDataFile is the file in which kubelet stores a volume for its restarts.
const volumeDataFile = "vol_data.json"

func saveVolumeData(dir, id string) error {
	b, err := json.Marshal(map[string]string{"driverName": "fsuser.csi.io", "volumeHandle": id,
		"volumeLifecycleMode": "Ephemeral"})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, volumeDataFile), b, 0o600)
}

func loadVolumeData(dir string) (id string, err error) {
	b, err := os.ReadFile(filepath.Join(dir, volumeDataFile))
	if err != nil {
		return "", err
	}
	var data map[string]string
	err = json.Unmarshal(b, &data)
	return data["volumeHandle"], err
}

// removeVolumeDir removes the files that kubelet made for a volume, unless something is mounted there (csi_mounter.go,
// removeMountDir).
func removeVolumeDir(target string) error {
	if isMountPoint(target) {
		return nil
	}
	return removeEmpty(filepath.Dir(target), "mount", volumeDataFile, "")
}

// removeEmpty removes files and empty directories below dir. It ignores a name that does not exist, or is not empty
// yet.
func removeEmpty(dir string, names ...string) error {
	for _, name := range names {
		err := os.Remove(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}

func isMountPoint(path string) bool {
	var stx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &stx)
	return err == nil && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
