// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/kubernetes/pkg/volume/util"
	"k8s.io/mount-utils"

	"github.com/fsuser-csi/fsuser-csi/pkg/projector"
	"github.com/fsuser-csi/fsuser-csi/pkg/tmpfs"
)

// yardsticks are rows for comparison with the driver's rows: the least possible work, and the work of other programs.
type yardsticks struct {
	classic, detached, packages, exec, first, changed, unchanged *row
	get, update, event                                           *row
	bind, unbind, bindKubelet                                    *row
	spiffePublish, storePublish, storeChanged                    *row
	kubeletSetUp, kubeletUnchanged, kubeletChanged               *row
}

func newYardsticks() *yardsticks {
	var y yardsticks
	y.classic = &row{what: "bare system calls, classic: mount tmpfs, write, own, link, bind ro", unit: milliseconds}
	y.detached = &row{
		what: "bare system calls, detached: fsopen, write, own, link, seal, move_mount",
		unit: milliseconds, yardstick: y.classic,
	}
	y.packages = &row{what: "pkg/tmpfs and pkg/projector alone, the same", unit: milliseconds, yardstick: y.detached}
	y.exec = &row{what: "exec of mount (mount-utils), the same", unit: milliseconds, yardstick: y.classic}
	y.first = &row{what: "AtomicWriter alone, first", unit: milliseconds}
	y.changed = &row{what: "AtomicWriter alone, changed", unit: milliseconds}
	y.unchanged = &row{what: "AtomicWriter alone, unchanged", unit: milliseconds}
	y.get = &row{what: "API: GET of a Secret, warm connection, protobuf", unit: milliseconds}
	y.update = &row{what: "API: PUT of a Secret, the same", unit: milliseconds}
	y.event = &row{what: "API: PUT returned -> event of a bare watch", unit: milliseconds}
	y.bind = &row{what: "bind mount over a gRPC socket", unit: milliseconds}
	y.unbind = &row{what: "unmount over a gRPC socket", unit: milliseconds}
	y.bindKubelet = &row{what: "bind mount over a gRPC socket, as kubelet: 3 calls, a connection each", unit: milliseconds}
	y.spiffePublish = &row{what: "spiffe-csi's steps: publish", unit: milliseconds}
	y.storePublish = &row{what: "secrets-store's steps, without API request: publish", unit: milliseconds}
	y.storeChanged = &row{what: "secrets-store's steps, without API request: republish, changed", unit: milliseconds}
	y.kubeletSetUp = &row{what: "kubelet's Secret volume: SetUp, Secret already watched", unit: milliseconds}
	y.kubeletUnchanged = &row{what: "kubelet's Secret volume: SetUp again, nothing changed", unit: milliseconds}
	y.kubeletChanged = &row{what: "kubelet's Secret volume: SetUp again, changed", unit: milliseconds}
	return &y
}

func (y *yardsticks) series() []series {
	return []series{
		{[]*row{y.classic}, y.runClassic},
		{[]*row{y.detached}, y.runDetached},
		{[]*row{y.packages}, y.runPackages},
		{[]*row{y.exec}, y.runExec},
		{[]*row{y.first, y.changed, y.unchanged}, y.runAtomicWriter},
		{[]*row{y.get}, y.runGet},
		{[]*row{y.update, y.event}, y.runUpdate},
		{[]*row{y.bind, y.unbind}, y.runBind},
		{[]*row{y.bindKubelet}, y.runBindAsKubelet},
		{[]*row{y.spiffePublish}, y.runSpiffe},
		{[]*row{y.storePublish, y.storeChanged}, y.runSecretsStore},
		{[]*row{y.kubeletSetUp, y.kubeletUnchanged, y.kubeletChanged}, y.runInKubelet},
	}
}

const tmpfsOptions = "size=131072,nr_inodes=64,mode=0755"

func (y *yardsticks) runClassic(_ context.Context, e *env) (step, error) {
	return e.stagedMount(y.classic, func(stage, target string) error {
		const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
		if err := unix.Mount("tmpfs", stage, "tmpfs", flags, tmpfsOptions); err != nil {
			return err
		}
		if err := writeBare(stage); err != nil {
			return err
		}
		if err := unix.Mount(stage, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|flags, "")
	})
}

func (y *yardsticks) runExec(_ context.Context, e *env) (step, error) {
	mounter := mount.New("")
	return e.stagedMount(y.exec, func(stage, target string) error {
		if err := mounter.Mount("tmpfs", stage, "tmpfs", []string{"nosuid", "nodev", "noexec", tmpfsOptions}); err != nil {
			return err
		}
		if err := writeBare(stage); err != nil {
			return err
		}
		return mounter.Mount(stage, target, "", []string{"bind", "ro"})
	})
}

// stagedMount measures f, which mounts at two directories. It then unmounts both.
func (e *env) stagedMount(r *row, f func(stage, target string) error) (step, error) {
	stage, err := e.newDir("stage")
	if err != nil {
		return nil, err
	}
	target, err := e.newDir("target")
	if err != nil {
		return nil, err
	}
	return func(context.Context) error {
		start := time.Now()
		if err := f(stage, target); err != nil {
			return err
		}
		r.time(time.Since(start))
		if err := unix.Unmount(target, 0); err != nil {
			return err
		}
		return unix.Unmount(stage, 0)
	}, nil
}

func (y *yardsticks) runDetached(_ context.Context, e *env) (step, error) {
	return e.attachedMount(y.detached, func(target string) error {
		fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(fs)
		for _, option := range [][2]string{{"size", "131072"}, {"nr_inodes", "64"}, {"mode", "0755"}} {
			if err := unix.FsconfigSetString(fs, option[0], option[1]); err != nil {
				return err
			}
		}
		if err := unix.FsconfigCreate(fs); err != nil {
			return err
		}
		const attributes = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
		mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
		if err != nil {
			return err
		}
		defer unix.Close(mnt)
		if err := writeBareAt(mnt); err != nil {
			return err
		}
		readOnly := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH, readOnly); err != nil {
			return err
		}
		return unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	})
}

func (y *yardsticks) runPackages(_ context.Context, e *env) (step, error) {
	payload := projector.Payload{DirMode: dirMode, UID: owner, GID: owner}
	for key, data := range content(0) {
		payload.Files = append(payload.Files, projector.File{Path: key, Data: data, Mode: fileMode, UID: owner, GID: owner})
	}
	return e.attachedMount(y.packages, func(target string) error {
		point, err := tmpfs.OpenTarget(target)
		if err != nil {
			return err
		}
		defer point.Close()
		mnt, err := tmpfs.Create(tmpfs.Options{Limits: tmpfs.Limits{Bytes: 128 << 10, Inodes: 64}})
		if err != nil {
			return err
		}
		defer mnt.Close()
		if _, err := projector.Write(mnt.Dir(), payload); err != nil {
			return err
		}
		if err := mnt.Seal(); err != nil {
			return err
		}
		return mnt.Attach(point)
	})
}

// attachedMount measures f, which mounts at a directory. It then unmounts the directory.
func (e *env) attachedMount(r *row, f func(target string) error) (step, error) {
	target, err := e.newDir("target")
	if err != nil {
		return nil, err
	}
	return func(context.Context) error {
		start := time.Now()
		if err := f(target); err != nil {
			return err
		}
		r.time(time.Since(start))
		return unix.Unmount(target, 0)
	}, nil
}

// writeBare writes the layout of AtomicWriter into a directory with the least number of system calls.
func writeBare(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return writeBareAt(fd)
}

func writeBareAt(dir int) error {
	const generation = "..2026_01_01_00_00_00.1"
	if err := unix.Mkdirat(dir, generation, dirMode); err != nil {
		return err
	}
	if err := unix.Fchownat(dir, generation, owner, owner, 0); err != nil {
		return err
	}
	for name, data := range content(0) {
		if err := writeBareFile(dir, generation+"/"+name, data); err != nil {
			return err
		}
		if err := linkBare(dir, "..data/"+name, name); err != nil {
			return err
		}
	}
	return linkBare(dir, generation, "..data")
}

func writeBareFile(dir int, path string, data []byte) error {
	fd, err := unix.Openat(dir, path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, fileMode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, data); err != nil {
		return err
	}
	return unix.Fchown(fd, owner, owner)
}

func linkBare(dir int, to, name string) error {
	if err := unix.Symlinkat(to, dir, name); err != nil {
		return err
	}
	return unix.Fchownat(dir, name, owner, owner, unix.AT_SYMLINK_NOFOLLOW)
}

// runAtomicWriter measures Kubernetes' AtomicWriter in an existing tmpfs.
func (y *yardsticks) runAtomicWriter(_ context.Context, e *env) (step, error) {
	mnt, err := e.newDir("atomic-writer")
	if err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, ""); err != nil {
		return nil, err
	}
	version, uid := 0, int64(owner)
	payload := func() map[string]util.FileProjection {
		version++
		files := map[string]util.FileProjection{}
		for key, data := range content(version) {
			files[key] = util.FileProjection{Data: data, Mode: fileMode, FsUser: &uid}
		}
		return files
	}
	return func(context.Context) error {
		dir := filepath.Join(mnt, e.name("volume"))
		if err := os.Mkdir(dir, dirMode); err != nil {
			return err
		}
		writer, err := util.NewAtomicWriter(dir, "bench")
		if err != nil {
			return err
		}
		first := payload()
		second := payload()
		for _, write := range []struct {
			row     *row
			payload map[string]util.FileProjection
		}{{y.first, first}, {y.changed, second}, {y.unchanged, second}} {
			start := time.Now()
			if err := writer.Write(write.payload, nil); err != nil {
				return err
			}
			write.row.time(time.Since(start))
		}
		return os.RemoveAll(dir)
	}, nil
}

func (y *yardsticks) runGet(ctx context.Context, e *env) (step, error) {
	c, err := e.newCluster(ctx)
	if err != nil {
		return nil, err
	}
	secret, err := c.create(ctx, e.name("get"))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		start := time.Now()
		if err := secret.get(ctx); err != nil {
			return err
		}
		y.get.time(time.Since(start))
		return nil
	}, nil
}

func (y *yardsticks) runUpdate(ctx context.Context, e *env) (step, error) {
	c, err := e.newCluster(ctx)
	if err != nil {
		return nil, err
	}
	secret, err := c.create(ctx, e.name("event"))
	if err != nil {
		return nil, err
	}
	events, err := secret.watch(e)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		start := time.Now()
		if err := secret.update(ctx); err != nil {
			return err
		}
		returned := time.Now()
		y.update.time(returned.Sub(start))
		for {
			select {
			case event := <-events:
				if event.version == secret.version {
					y.event.time(max(0, event.at.Sub(returned)))
					return nil
				}
			case <-ctx.Done():
				return fmt.Errorf("wait for the event: %w", context.Cause(ctx))
			}
		}
	}, nil
}
