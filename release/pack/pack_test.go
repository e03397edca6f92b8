// SPDX-License-Identifier: Apache-2.0

package pack

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"testing"
	"time"
)

// TestNothingButTheFiles checks that an archive has no time, no user and no group.
func TestNothingButTheFiles(t *testing.T) {
	file := File{Name: "a/b", Mode: 0o755, Content: []byte("content")}
	compressed, err := TarGz(file)
	if err != nil {
		t.Fatal(err)
	}
	content, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		t.Fatal(err)
	}
	h, err := tar.NewReader(content).Next()
	if err != nil {
		t.Fatal(err)
	}
	if !content.ModTime.IsZero() || content.Name != "" || h.Name != "a/b" || h.Mode != 0o755 || h.ModTime.Unix() != 0 ||
		h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" {
		t.Errorf("the tar archive has %+v in %+v", h, content.Header)
	}
	zipped, err := Zip(file)
	if err != nil {
		t.Fatal(err)
	}
	r, err := zip.NewReader(bytes.NewReader(zipped), int64(len(zipped)))
	if err != nil {
		t.Fatal(err)
	}
	z, earliest := r.File[0], time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	if z.Name != "a/b" || z.Mode() != 0o755 || !z.Modified.Equal(earliest) {
		t.Errorf("the zip archive has %+v", z.FileHeader)
	}
}
