// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/krew/pkg/index"
	"sigs.k8s.io/yaml"

	"github.com/fsuser-csi/fsuser-csi/release/pack"
)

const plugin = "kubectl-fsuser"

// plugin writes an archive of kubectl-fsuser for each platform, and for a release the manifest of krew.
func (d *dist) plugin(ctx context.Context) error {
	var platforms []index.Platform
	for _, p := range []platform{
		{"darwin", "amd64"}, {"darwin", "arm64"},
		{"linux", "amd64"}, {"linux", "arm64"},
		{"windows", "amd64"}, {"windows", "arm64"},
	} {
		path, err := d.build(ctx, plugin, p)
		if err != nil {
			return err
		}
		name, archive, err := d.archive(path, p)
		if err != nil {
			return err
		}
		if err := d.write(name, archive); err != nil {
			return err
		}
		platforms = append(platforms, krewPlatform(p, source+"/releases/download/"+d.version+"/"+name, archive))
	}
	if !d.isRelease() {
		return nil // without addresses of archives there is nothing that krew could install
	}
	manifest, err := yaml.Marshal(krewPlugin(d.version, platforms))
	if err != nil {
		return err
	}
	return d.write("fsuser.yaml", manifest)
}

// archive returns the archive of the plugin at a path, in the usual format of its platform.
func (d *dist) archive(path string, p platform) (name string, content []byte, err error) {
	files := []pack.File{
		{Name: programFile(p), Mode: 0o755}, {Name: "LICENSE", Mode: 0o644}, {Name: "kubectl_complete-fsuser", Mode: 0o755},
	}
	for i, source := range []string{
		path, filepath.Join(d.root, "LICENSE"), filepath.Join(d.root, "cmd", plugin, "kubectl_complete-fsuser"),
	} {
		if files[i].Content, err = os.ReadFile(source); err != nil {
			return "", nil, err
		}
	}
	name = plugin + "-" + d.fileVersion() + "-" + p.String()
	if p.os == "windows" {
		content, err = pack.Zip(files[:2]...) // the completion is a shell script
		return name + ".zip", content, err
	}
	content, err = pack.TarGz(files...)
	return name + ".tar.gz", content, err
}

// programFile returns the name of the plugin in its archive.
func programFile(p platform) string {
	if p.os == "windows" {
		return plugin + ".exe"
	}
	return plugin
}

// krewPlatform returns krew's description of an archive.
func krewPlatform(p platform, uri string, archive []byte) index.Platform {
	sum := sha256.Sum256(archive)
	return index.Platform{
		URI: uri, Sha256: hex.EncodeToString(sum[:]), Bin: programFile(p),
		Files:    []index.FileOperation{{From: "*", To: "."}},
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"os": p.os, "arch": p.arch}},
	}
}

// krewPlugin returns the manifest for an index of krew.
func krewPlugin(version string, platforms []index.Platform) index.Plugin {
	return index.Plugin{
		TypeMeta:   metav1.TypeMeta{APIVersion: "krew.googlecontainertools.github.com/v1alpha2", Kind: "Plugin"},
		ObjectMeta: metav1.ObjectMeta{Name: "fsuser"},
		Spec: index.PluginSpec{
			Version:          version,
			Homepage:         source,
			ShortDescription: "Check clusters and manifests for fsuser.csi.io",
			Description: `For people who use fsuser-csi, a CSI driver whose volumes show Secrets and
ConfigMaps as files of the user who needs them. The plugin checks clusters and
manifests, converts manifests, and shows the volumes of all nodes.
`,
			Platforms: platforms,
		},
	}
}
