// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asProgram is the environment variable with which the test binary runs as the program.
const asProgram = "KUBECTL_FSUSER_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

const (
	nativePod = `# the pod
kind: Pod
metadata: {name: a}
spec:
  containers: [{name: c, volumeMounts: [{name: v, mountPath: /v}]}]
  volumes:
  - name: v
    secret:
      secretName: s
      defaultMode: 0400
      defaultUser: 1000
`
	driverPod = `# the pod
kind: Pod
metadata: {name: a}
spec:
  containers: [{name: c, volumeMounts: [{name: v-fsuser, mountPath: /v}]}]
  volumes:
  - name: v
    secret:
      secretName: s
      defaultMode: 0400
      defaultUser: 1000
  - name: v-fsuser
    csi:
      driver: fsuser.csi.io
      readOnly: true
      volumeAttributes:
        volume: v
`
	mount = `containers: [{name: c, volumeMounts: [{name: v, mountPath: /v}]}]`
	// badPod has an error, warnedPod a warning.
	badPod = `{kind: Pod, metadata: {name: b}, spec: {` + mount +
		`, volumes: [{name: v, csi: {driver: fsuser.csi.io, volumeAttributes: {secretName: s, uid: 7}}}]}}`
	warnedPod = `{kind: Pod, metadata: {name: w}, spec: {` + mount +
		`, volumes: [{name: v, csi: {driver: fsuser.csi.io, volumeAttributes: {secretName: s}}}]}}`
	tokenPod = `{kind: Pod, metadata: {name: t}, spec: {` + mount +
		`, volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]}}`
)

// outcome is the result of a run of the program.
type outcome struct {
	code           int
	stdout, stderr string
}

// program returns a command that runs the program in dir.
func program(t *testing.T, dir string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), asProgram + "=1"}
	return cmd
}

// tool runs the program in dir.
func tool(t *testing.T, dir, stdin string, args ...string) outcome {
	t.Helper()
	cmd := program(t, dir, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// manifests writes files into a new directory.
func manifests(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// exampleManifests returns a directory with one manifest of each kind.
func exampleManifests(t *testing.T) string {
	dir := manifests(t, map[string]string{
		"good.yaml": driverPod, "bad.yaml": badPod, "warned.yaml": warnedPod, "native.yaml": nativePod, "token.yml": tokenPod,
		"broken.yaml": driverPod + "---\na: [\n", "template.yaml": "a: {{ .Values.a }}\n",
		"unended.yaml": strings.TrimSuffix(nativePod, "\n"), "json.json": "{}", "marked.yaml": "\ufeff" + nativePod,
		"separated.yaml": "\ufeff---\n" + nativePod,
		"dir/a.yaml":     driverPod, "dir/b.yml": warnedPod, "dir/c.JSON": "{}", "dir/notes.txt": "a: [",
		"dir/below/bad.yaml": badPod, "dangling/good.yaml": nativePod,
	})
	for link, target := range map[string]string{
		"link": "dir", "dangling/a.yaml": "nowhere.yaml", "dangling/.#b.yaml": "user@host.1234",
		"dangling/dir.yaml": "../dir",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLintAndConvertFromTheCommandLine(t *testing.T) {
	dir := exampleManifests(t)
	for _, test := range []struct {
		name           string
		args           string
		stdin          string
		code           int
		stdout, stderr []string // parts of the output; none means that the output is empty
	}{
		{"all is good", "lint good.yaml", "", 0, nil, []string{"no problems in 1 volume of the driver in 1 file"}},
		{"nothing was there to look at", "lint native.yaml", "", 0, nil, []string{"no problems in 0 volumes"}},
		{"an error", "lint good.yaml bad.yaml", "", 1,
			[]string{"bad.yaml:1:", "error: Pod/b spec.volumes[0].csi.volumeAttributes[uid]:", `write "7"`},
			[]string{"Error: 1 error and 0 warnings in 2 volumes of the driver in 2 files"}},
		{"a warning", "lint warned.yaml", "", 0, []string{"warned.yaml:1:", "warning: Pod/w"},
			[]string{"0 errors and 1 warning"}},
		{"a warning that counts", "lint --strict warned.yaml", "", 1, []string{"warning: Pod/w"},
			[]string{"Error: 0 errors and 1 warning"}},
		{"standard input", "lint -", badPod, 1, []string{"stdin:1:"}, []string{"Error: 1 error"}},
		{"a directory", "lint dir", "", 0, []string{"dir/b.yml:1:"},
			[]string{"0 errors and 1 warning in 2 volumes of the driver in 3 files"}},
		{"all below a directory", "lint -R dir", "", 1, []string{"dir/below/bad.yaml:1:"}, []string{"in 4 files"}},
		{"a link to a directory", "lint link", "", 0, []string{"link/b.yml:1:"},
			[]string{"0 errors and 1 warning in 2 volumes of the driver in 3 files"}},
		{"all below a link to a directory", "lint -R link", "", 1, []string{"link/below/bad.yaml:1:"},
			[]string{"in 4 files"}},
		{"a file of any name", "lint dir/notes.txt", "", 2, []string{"dir/notes.txt:1:1: error: this is not YAML"},
			[]string{"Error:"}},
		{"broken YAML", "lint broken.yaml", "", 2, []string{"broken.yaml:19:"},
			[]string{"Error: 1 error and 0 warnings in 1 volume"}},
		{"a template", "lint template.yaml", "", 2, []string{"helm template"}, []string{"Error:"}},
		{"lint without files", "lint", "", 2, nil, []string{"Error: requires at least 1 arg"}},
		{"a file that is not there", "lint nowhere.yaml", "", 2, nil, []string{"Error:", "nowhere.yaml"}},
		{"an unknown flag of lint", "lint --all good.yaml", "", 2, nil, []string{"unknown flag: --all"}},
		{"an output that is none", "lint -o yaml good.yaml", "", 2, nil, []string{"--output", `"yaml"`, "json"}},
		{"standard input twice", "lint - -", "", 2, nil, []string{"given twice"}},

		{"convert", "convert native.yaml", "", 0, []string{driverPod}, nil},
		{"convert back", "convert --back good.yaml", "", 0, []string{nativePod}, nil},
		{"convert standard input", "convert -", nativePod, 0, []string{driverPod}, nil},
		{"nothing to convert", "convert good.yaml", "", 0, []string{driverPod}, nil},
		{"several files are one stream", "convert native.yaml good.yaml", "", 0, []string{driverPod + "---\n" + driverPod},
			nil},
		{"several files, the first without its last line break", "convert unended.yaml good.yaml", "", 0,
			[]string{driverPod + "---\n" + driverPod}, nil},
		{"several files without their last line breaks", "convert unended.yaml json.json unended.yaml", "", 0,
			[]string{driverPod + "---\n{}\n---\n" + strings.TrimSuffix(driverPod, "\n")}, nil},
		{"several files with a byte order mark", "convert marked.yaml marked.yaml separated.yaml", "", 0,
			[]string{"\ufeff" + driverPod + "---\n" + driverPod + "---\n" + driverPod}, nil},
		{"a note", "convert -", strings.Replace(nativePod, "0400", "400", 1), 0, []string{"volume: v"},
			[]string{`stdin:10: Pod/a: volume "v": note: defaultMode: 400 is decimal and means 0620; write 0400, or 256`}},
		{"dangling links", "convert dangling", "", 1, []string{driverPod},
			[]string{"dangling/.#b.yaml: this link leads to no file\ndangling/a.yaml: this link leads to no file\nError: 2 " +
				"files could not be read"}},
		{"dangling links of lint", "lint dangling", "", 1, []string{"dangling/a.yaml:1:1: error: this link leads to no file"},
			[]string{"Error: 2 errors and 0 warnings in 0 volumes of the driver in 1 file"}},
		{"what stays", "convert token.yml", "", 1, []string{tokenPod},
			[]string{`token.yml:1: Pod/t: volume "v" stays as it is: it has a serviceAccountToken`,
				"Error: 1 volume left as before"}},
		{"several that stay", "convert token.yml token.yml", "", 1, []string{tokenPod},
			[]string{"Error: 2 volumes left as before"}},
		{"a document that can't be read", "convert broken.yaml", "", 2, []string{"a: [\n"},
			[]string{"broken.yaml:19: this is not YAML", "Error: 1 document could not be read"}},
		{"owner and group", "convert --uid 7 --gid 8 -", strings.Replace(nativePod, "      defaultUser: 1000\n", "", 1), 0,
			[]string{`uid: "7"`, `gid: "8"`}, nil},
		{"a volume's own user is kept", "convert --uid 7 native.yaml", "", 0, []string{driverPod}, nil},
		{"a diff", "convert --diff native.yaml good.yaml", "", 0, []string{"--- native.yaml\n", "+    csi:\n"},
			[]string{"1 volume converted"}},
		{"a user that is none", "convert --uid root native.yaml", "", 2, nil, []string{"--uid", `"root"`, "decimal"}},
		{"a group that is none", "convert --gid 01 native.yaml", "", 2, nil, []string{"--gid", `"01"`}},
		{"a user for the way back", "convert --back --uid 1 good.yaml", "", 2, nil, []string{"[back uid]"}},
		{"write and diff", "convert -w -d native.yaml", "", 2, nil, []string{"[diff write]"}},
		{"write standard input", "convert -w -", nativePod, 2, nil, []string{"standard input"}},
		{"convert without files", "convert", "", 2, nil, []string{"Error: requires at least 1 arg"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := tool(t, dir, test.stdin, strings.Fields(test.args)...)
			if got.code != test.code {
				t.Errorf("exit code %d, want %d", got.code, test.code)
			}
			for _, out := range []struct {
				name, text string
				parts      []string
			}{{"stdout", got.stdout, test.stdout}, {"stderr", got.stderr, test.stderr}} {
				for _, part := range out.parts {
					if !strings.Contains(out.text, part) {
						t.Errorf("%s does not have %q:\n%s", out.name, part, out.text)
					}
				}
				if len(out.parts) == 0 && out.text != "" {
					t.Errorf("%s should be empty:\n%s", out.name, out.text)
				}
			}
		})
	}
}

func TestLintSaysItInJSON(t *testing.T) {
	dir := exampleManifests(t)
	got := tool(t, dir, "", "lint", "-o", "json", "bad.yaml", "warned.yaml")
	var report struct {
		Files, Volumes, Errors, Warnings int
		Problems                         []struct {
			File, Severity, Object, Field, Message string
			Line, Column                           int
		}
	}
	decoder := json.NewDecoder(strings.NewReader(got.stdout))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&report); err != nil || got.code != 1 {
		t.Fatalf("%v, exit code %d:\n%s", err, got.code, got.stdout)
	}
	if report.Files != 2 || report.Volumes != 2 || report.Errors != 1 || report.Warnings != 1 ||
		len(report.Problems) != 2 {
		t.Fatalf("it says %+v", report)
	}
	if p := report.Problems[0]; p.File != "bad.yaml" || p.Line != 1 || p.Column != 196 || p.Severity != "error" ||
		p.Object != "Pod/b" ||
		p.Field != "spec.volumes[0].csi.volumeAttributes[uid]" || p.Message == "" {
		t.Errorf("the problem is %+v", p)
	}
	if got := tool(t, dir, "", "lint", "-o", "json", "good.yaml"); !strings.Contains(got.stdout, `"problems": []`) ||
		got.code != 0 {
		t.Errorf("of a good file it says %d\n%s", got.code, got.stdout)
	}
}

func TestConvertWritesFiles(t *testing.T) {
	dir := exampleManifests(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Chmod(path("native.yaml"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path("native.yaml"), 7, 8); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("native.yaml", path("link.yaml")); err != nil {
		t.Fatal(err)
	}
	unchanged, err := os.Stat(path("good.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("half.yaml"), []byte(nativePod+"---\na: [\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := tool(t, dir, "", "convert", "--write", "link.yaml", "good.yaml")
	if got.code != 0 || got.stdout != "" || got.stderr != "1 volume converted\n" {
		t.Fatalf("it ended with %+v", got)
	}
	if text, err := os.ReadFile(path("native.yaml")); err != nil || string(text) != driverPod {
		t.Errorf("%v: it is now\n%s", err, text)
	}
	if target, err := os.Readlink(path("link.yaml")); err != nil || target != "native.yaml" {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	if out, err := exec.Command("stat", "-c", "%a %u %g", path("native.yaml")).Output(); err != nil ||
		string(out) != "640 7 8\n" {
		t.Errorf("mode and owner are now %s, %v", out, err)
	}
	if now, err := os.Stat(path("good.yaml")); err != nil || !os.SameFile(now, unchanged) ||
		now.ModTime() != unchanged.ModTime() {
		t.Errorf("what did not change was written: %v", err)
	}
	if got := tool(t, dir, "", "convert", "-w", "half.yaml"); got.code != 2 {
		t.Errorf("a file that can't be read as a whole: %+v", got)
	}
	if text, err := os.ReadFile(path("half.yaml")); err != nil || string(text) != nativePod+"---\na: [\n" {
		t.Errorf("%v: the file that can't be read as a whole is now\n%s", err, text)
	}
	left, err := filepath.Glob(path(".kubectl-fsuser*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestADiffCanBeApplied(t *testing.T) {
	patch, err := exec.LookPath("patch")
	if err != nil {
		patch, err = exec.LookPath("git")
	}
	if err != nil {
		t.Fatal("neither patch nor git is installed, and one of them has to say whether the diff is one")
	}
	dir := exampleManifests(t)
	diff := tool(t, dir, "", "convert", "--diff", "native.yaml")
	cmd := exec.Command(patch, "-p0")
	if filepath.Base(patch) == "git" {
		cmd = exec.Command(patch, "apply", "-p0")
	}
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(diff.stdout)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\n%s", err, out, diff.stdout)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "native.yaml")); err != nil || string(text) != driverPod {
		t.Errorf("%v: it is now\n%s", err, text)
	}
}

func TestSIGINTEndsAtOnce(t *testing.T) {
	for _, args := range [][]string{{"lint", "-"}, {"convert", "-"}} {
		cmd := program(t, t.TempDir(), args...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The pipe holds 64 KiB. When more has been written, the program reads.
		if _, err := io.WriteString(in, strings.Repeat("# a comment\n", 10000)); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		if !late.Stop() {
			t.Errorf("%q still ran 10 s after SIGINT", args)
		}
		if status := cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGINT {
			t.Errorf("%q ended with %v", args, cmd.ProcessState)
		}
	}
}

func TestASignalWaitsForTheFile(t *testing.T) {
	arrived := make(chan os.Signal, 1)
	signal.Notify(arrived, syscall.SIGINT)
	defer signal.Stop(arrived)
	err := uninterrupted(func() error {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			return err
		}
		select {
		case <-arrived: // The runtime sends the signal to all channels at once.
			return nil
		case <-time.After(10 * time.Second):
			return errors.New("waited for SIGINT")
		}
	})
	var exit *exitError
	if !errors.As(err, &exit) || exit.code != exitInterrupted {
		t.Errorf("it ended with %v", err)
	}
}

func TestCompletionAndVersion(t *testing.T) {
	dir := t.TempDir()
	if got := tool(t, dir, "", "__complete", "li"); got.code != 0 || !strings.HasPrefix(got.stdout, "lint\t") {
		t.Errorf("completion of li: %+v", got)
	}
	if got := tool(t, dir, "", "__complete", "ch"); got.code != 0 || !strings.HasPrefix(got.stdout, "check\t") {
		t.Errorf("completion of ch: %+v", got)
	}
	if got := tool(t, dir, "", "completion", "bash"); got.code != 0 || !strings.Contains(got.stdout, "kubectl-fsuser") {
		t.Errorf("completion bash: %d %s", got.code, got.stderr)
	}
	if got := tool(t, dir, "", "--version"); got.code != 0 || !strings.HasPrefix(got.stdout, "kubectl fsuser version ") {
		t.Errorf("version: %+v", got)
	}
	if got := tool(t, dir, "", "convert", "--help"); !strings.Contains(got.stdout, "kubectl fsuser convert [flags]") {
		t.Errorf("help: %+v", got)
	}
	for _, args := range [][]string{{"check", "now"}, {"check", "-o", "yaml"}, {"check", "--kubeconfig", "/nowhere"}} {
		if got := tool(t, dir, "", args...); got.code != 2 || got.stdout != "" || !strings.HasPrefix(got.stderr, "Error: ") {
			t.Errorf("%q: %+v", args, got)
		}
	}
	if got := tool(t, dir, "", "lnit"); got.code != 2 || !strings.Contains(got.stderr, `unknown command "lnit"`) {
		t.Errorf("an unknown command: %+v", got)
	}
}
