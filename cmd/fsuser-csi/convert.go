// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/convert"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// conversion has the flags of convert.
type conversion struct {
	to, uid, gid            string
	write, diff, recursive  bool
	converted, left, unread int
	// unended says that what was printed last does not end its line.
	unended bool
}

func newConvertCommand() *cobra.Command {
	var c conversion
	cmd := &cobra.Command{
		Use:   "convert [flags] " + filesUse,
		Short: "Rewrite Secret, ConfigMap and projected volumes in manifests to the driver's, and back",
		Long: `convert rewrites the volumes of pods and pod templates in manifests and prints the result. All else in the text stays as it is: comments, order,
indentation, other documents. What can't be expressed on the other side stays too, and is listed on standard error.

  fsuser-csi convert --uid 1000 --diff deploy.yaml
  helm template my-chart | fsuser-csi convert - | kubectl apply -f -

Without --uid a volume that has no defaultUser gets no uid: the driver then takes the runAsUser that the pod's containers have in common.
With --to native it goes the other way, to volumes with defaultUser and user for clusters that have KEP-5936.

Exit codes: 0 all volumes were converted or there were none, 1 some were left as they are, 2 wrong usage, or something could not be read.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(args, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.to, "to", "driver", `"driver" or "native"`)
	f.StringVar(&c.uid, "uid", "", "owner of the files of volumes that do not name one by defaultUser")
	f.StringVar(&c.gid, "gid", "", "group of the files")
	f.BoolVarP(&c.write, "write", "w", false, "write the files, instead of printing them")
	f.BoolVarP(&c.diff, "diff", "d", false, "print what would change, as a unified diff")
	f.BoolVarP(&c.recursive, "recursive", "R", false, "directories with all that is below them")
	return withUsage(cmd)
}

func (c *conversion) run(args []string, in io.Reader, out, errOut io.Writer) error {
	options, err := c.options()
	if err != nil {
		return &exitError{exitUsage, err}
	}
	files, err := readManifests(args, c.recursive, in)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	for i, f := range files {
		if c.write && f.Name == stdin {
			return &exitError{exitUsage, errors.New("standard input can't be written with --write: leave it out, to print the result")}
		}
		result := convert.File(f, options)
		readable := c.list(errOut, f, result)
		if err := c.put(out, f, result.Text, i > 0, readable); err != nil {
			return &exitError{exitUsage, err}
		}
	}
	if c.write || c.diff {
		fmt.Fprintf(errOut, "%s converted\n", count(c.converted, "volume"))
	}
	switch {
	case c.unread > 0:
		return &exitError{exitUsage, fmt.Errorf("%s could not be read", count(c.unread, "document"))}
	case c.left > 0:
		were := "it was"
		if c.left > 1 {
			were = "they were"
		}
		return &exitError{exitProblems, fmt.Errorf("%s left as %s", count(c.left, "volume"), were)}
	}
	return nil
}

func (c *conversion) options() (convert.Options, error) {
	o := convert.Options{Native: c.to == "native"}
	switch {
	case c.to != "driver" && c.to != "native":
		return o, fmt.Errorf(`--to is %q; it must be "driver" or "native"`, c.to)
	case o.Native && c.uid+c.gid != "":
		return o, errors.New("--uid and --gid are for --to driver")
	case c.write && c.diff:
		return o, errors.New("--write and --diff exclude each other")
	}
	for _, flag := range []struct {
		name, text string
		into       **uint32
	}{{"uid", c.uid, &o.UID}, {"gid", c.gid, &o.GID}} {
		if flag.text == "" {
			continue
		}
		id, problem := attributes.ParseID(flag.text)
		if problem != "" {
			return o, fmt.Errorf("--%s is %q; it %s", flag.name, flag.text, problem)
		}
		*flag.into = &id
	}
	return o, nil
}

// list says what of a file stays as it is, and what to know of the rest. It reports whether all of the file could be read.
func (c *conversion) list(errOut io.Writer, f *manifest.File, result convert.Result) (readable bool) {
	readable = true
	c.converted += result.Converted
	for _, left := range result.Left {
		if left.Object == "" {
			readable = false
			c.unread++
			fmt.Fprintf(errOut, "%s:%d: %s\n", f.Name, left.Line, left.Reason)
			continue
		}
		c.left++
		fmt.Fprintf(errOut, "%s:%d: %s: volume %q is left as it is: %s\n", f.Name, left.Line, left.Object, left.Volume, left.Reason)
	}
	for _, note := range result.Notes {
		fmt.Fprintf(errOut, "%s:%d: %s: volume %q: note: %s\n", f.Name, note.Line, note.Object, note.Volume, note.Text)
	}
	return readable
}

// put prints or writes what became of a file. A file that could not be read as a whole is not written.
func (c *conversion) put(out io.Writer, f *manifest.File, text string, more, readable bool) error {
	switch {
	case c.diff:
		_, err := out.Write(diff.Diff(f.Name, []byte(f.Text), f.Name, []byte(text)))
		return err
	case c.write && (!readable || text == f.Text):
		return nil
	case c.write:
		return replaceFile(f.Name, text)
	}
	if more {
		text = strings.TrimPrefix(text, "\ufeff") // a byte order mark may only be where a stream begins
		if !strings.HasPrefix(text, "---") {
			text = "---\n" + text
		}
		if c.unended {
			text = "\n" + text
		}
	}
	c.unended = text != "" && !strings.HasSuffix(text, "\n")
	_, err := io.WriteString(out, text)
	return err
}

// replaceFile puts text in the place of a file's content, all at once: whoever reads it sees the old or the new. Its mode stays, and its owner
// where that is allowed. Of a symbolic link the file that it leads to is replaced.
func replaceFile(name, text string) (err error) {
	path, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	before, err := os.Stat(path)
	if err != nil {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".fsuser-csi-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			temporary.Close()
			os.Remove(temporary.Name())
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	if _, err = temporary.WriteString(text); err != nil {
		return err
	}
	if st, ok := before.Sys().(*syscall.Stat_t); ok {
		_ = temporary.Chown(int(st.Uid), int(st.Gid)) // only root may give files away; the content matters more
	}
	if err = temporary.Chmod(before.Mode().Perm()); err != nil {
		return err
	}
	if err = temporary.Sync(); err != nil {
		return err
	}
	if err = temporary.Close(); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), path)
}
