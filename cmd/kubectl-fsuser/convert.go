// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/convert"
	"github.com/fsuser-csi/fsuser-csi/pkg/manifest"
)

// conversion is a run of convert.
type conversion struct {
	options                convert.Options
	write, diff, recursive bool

	converted, left, unreadable int
	unended                     bool // the last output did not end its line
}

func newConvertCommand() *cobra.Command {
	var c conversion
	cmd := &cobra.Command{
		Use:   "convert [flags] " + filesUse,
		Short: "Convert Secret, ConfigMap, downwardAPI and projected volumes in manifests to the driver, and back",
		Long: `convert edits pods and pod templates in manifests and prints the result. Each mounted secret, configMap,
downwardAPI and projected volume stays in the manifest. convert adds a csi volume that names it, and changes the mounts
to the csi volume. No other byte changes. Standard error lists the volumes that cannot be converted.

  kubectl fsuser convert --uid 1000 --diff deploy.yaml
  helm template my-chart | kubectl fsuser convert - | kubectl apply -f -

Without --uid, the files belong to the volume's defaultUser, or to the common runAsUser of the containers that mount
the volume. With --back, convert removes the csi volumes and changes the mounts back to Kubernetes' own volumes.

Exit codes: 0 all volumes could be converted, 1 some could not, 2 wrong usage or unreadable input.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(args, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&c.options.Back, "back", false, "convert the driver's volumes back to Kubernetes' own")
	f.Func("uid", "`number` of the owner of the files in volumes without a defaultUser", idFlag(&c.options.UID))
	f.Func("gid", "`number` of the group of the files", idFlag(&c.options.GID))
	f.BoolVarP(&c.write, "write", "w", false, "write the converted files instead of printing them")
	f.BoolVarP(&c.diff, "diff", "d", false, "print the changes as a unified diff")
	f.BoolVarP(&c.recursive, "recursive", "R", false, "read directories with their subdirectories")
	cmd.MarkFlagsMutuallyExclusive("write", "diff")
	cmd.MarkFlagsMutuallyExclusive("back", "uid")
	cmd.MarkFlagsMutuallyExclusive("back", "gid")
	return cmd
}

// idFlag returns a function that parses the value of a flag as an id.
func idFlag(into **uint32) func(string) error {
	return func(text string) error {
		id, problem := attributes.ParseID(text)
		if problem != "" {
			return errors.New(problem)
		}
		*into = &id
		return nil
	}
}

func (c *conversion) run(args []string, standard io.Reader, out, errOut io.Writer) error {
	var in input
	if err := in.read(args, c.recursive, standard); err != nil {
		return err
	}
	for i, f := range in.files {
		if c.write && f.Name == stdin {
			return errors.New("standard input cannot be written: leave --write out to print the result")
		}
		result := convert.File(f, c.options)
		if err := c.put(out, f, result.Text, i > 0, c.list(errOut, f, result)); err != nil {
			return err
		}
	}
	for _, path := range in.dangling {
		fmt.Fprintf(errOut, "%s: %s\n", path, danglingMessage)
	}
	if c.write || c.diff {
		fmt.Fprintf(errOut, "%s converted\n", count(c.converted, "volume"))
	}
	switch {
	case c.unreadable > 0:
		return fmt.Errorf("%s could not be read", count(c.unreadable, "document"))
	case c.left > 0:
		return problems("%s left as before", count(c.left, "volume"))
	case len(in.dangling) > 0:
		return problems("%s could not be read", count(len(in.dangling), "file"))
	}
	return nil
}

// list prints the notes and the volumes that stay as they are. It reports whether the whole file could be read.
func (c *conversion) list(errOut io.Writer, f *manifest.File, result convert.Result) (readable bool) {
	readable = true
	c.converted += result.Converted
	for _, left := range result.Left {
		if left.Unreadable {
			readable = false
			c.unreadable++
			fmt.Fprintf(errOut, "%s:%d: %s\n", f.Name, left.Line, left.Reason)
			continue
		}
		c.left++
		place := fmt.Sprintf("%s:%d: %s", f.Name, left.Line, left.Object)
		fmt.Fprintf(errOut, "%s: volume %q stays as it is: %s\n", strings.TrimSuffix(place, ": "), left.Volume,
			left.Reason)
	}
	for _, note := range result.Notes {
		fmt.Fprintf(errOut, "%s:%d: %s: volume %q: note: %s\n", f.Name, note.Line, note.Object, note.Volume,
			note.Reason)
	}
	return readable
}

// put prints or writes a converted file. It does not write a file that could not be read as a whole.
func (c *conversion) put(out io.Writer, f *manifest.File, text string, more, readable bool) error {
	switch {
	case c.diff:
		_, err := out.Write(diff.Diff(f.Name, []byte(f.Text), f.Name, []byte(text)))
		return err
	case c.write && (!readable || text == f.Text):
		return nil
	case c.write:
		return uninterrupted(func() error { return replaceFile(f.Name, text) })
	}
	if more {
		text = strings.TrimPrefix(text, "\ufeff") // A byte order mark is only allowed at the beginning of a stream.
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

// uninterrupted lets f finish if a signal arrives, and then returns an error that ends the program.
func uninterrupted(f func() error) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	err := f()
	signal.Stop(signals)
	if len(signals) > 0 {
		return &exitError{exitInterrupted, errors.Join(err, fmt.Errorf("ended by the signal %q", <-signals))}
	}
	return err
}

// replaceFile replaces the content of a file in one step: readers see the old or the new content. The mode stays, and
// the owner stays if that is permitted. A symbolic link stays, and its target is replaced.
func replaceFile(name, text string) error {
	path, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	before, err := os.Stat(path)
	if err != nil {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".kubectl-fsuser-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer os.Remove(temporary.Name()) // After the rename, this name does not exist any more.
	keepOwner(temporary, before)
	_, err = temporary.WriteString(text)
	err = errors.Join(err, temporary.Chmod(before.Mode().Perm()), temporary.Sync(), temporary.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(temporary.Name(), path)
}
