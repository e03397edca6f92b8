// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/internal/reliability"
	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

func TestMain(m *testing.M) {
	testkit.RunHelper(map[string]func([]string) error{"pry": pry, "idle": idle, "lockAndStick": lockAndStick,
		"logInJSON": logInJSON})
	testkit.RunInMountNamespace(m)
}

// run runs the program and returns its output on stderr. It fails the test if the program succeeds.
func run(t *testing.T, binary string, args ...string) string {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("%q ended with %v, want exit code 1\n%s", args, err, stderr.String())
	}
	return stderr.String()
}

func TestWhatIsWrongAtTheStartIsSaidInOneLine(t *testing.T) {
	testkit.NothingLeft(t)
	binary := testkit.BuildDriver(t)
	shared, state := testkit.SharedDir(t), t.TempDir()
	if err := kubelet.MakeRoot(shared); err != nil {
		t.Fatal(err)
	}
	private := t.TempDir()
	if err := kubelet.MakeRoot(private); err != nil {
		t.Fatal(err)
	}
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	node := func(args ...string) []string {
		return append([]string{"node", "--node-name=n", "--kubelet-root=" + shared, "--state-dir=" + state,
			"--manifests=" + t.TempDir()}, args...)
	}
	for _, test := range []struct {
		name string
		args []string
		says []string
	}{
		{"an unknown command", []string{"nodes"}, []string{`unknown command "nodes"`}},
		{"an unknown flag", []string{"node", "--nodename=x"}, []string{"unknown flag: --nodename"}},
		{"an argument that is none", []string{"node", "now"}, []string{"now"}},
		{"no node name", node("--node-name="), []string{"--node-name", "spec.nodeName"}},
		{"an access that is none", node("--access=all"), []string{"--access", `"all"`, `"node"`, `"service-account"`}},
		{"request checks that are none", node("--request-checks=off"), []string{"--request-checks", `"off"`, "strict"}},
		{"a format of the log that is none", node("--log-format=xml"), []string{"--log-format", `"xml"`, `"text"`, `"json"`}},
		{"a verbosity that would log Secrets", node("-v=6"), []string{"-v 6", "0 to 5", "Secrets"}},
		{"a kubelet root that is not there", node("--kubelet-root=/nowhere"), []string{"--kubelet-root", "/nowhere"}},
		{"a kubelet root that is relative", node("--kubelet-root=kubelet"), []string{"--kubelet-root", "absolute"}},
		{"a directory that is no kubelet's", node("--kubelet-root=" + state), []string{"pods", "--kubelet-root"}},
		{"mounts that would not reach the host", node("--kubelet-root=" + private),
			[]string{"self-test", "shared propagation", "Bidirectional"}},
		{"a directory of manifests that is not there", node("--manifests=/nowhere"), []string{"/nowhere"}},
		{"neither cluster nor kubeconfig", node("--manifests="), []string{"--kubeconfig", "--manifests"}},
		{"a kubeconfig that is not there", node("--manifests=", "--kubeconfig=/nowhere"),
			[]string{"--kubeconfig", "/nowhere"}},
		{"metrics for everybody", node("--http-address=:9808"), []string{"--http-address", "every address", "127.0.0.1"}},
		{"an endpoint with a scheme", node("--endpoint=unix:///csi.sock"), []string{"unix:///csi.sock"}},
		{"a socket path that is too long", node("--endpoint=/" + strings.Repeat("x", 107)), []string{"106 bytes"}},
		{"a file where the socket belongs", node("--endpoint=" + precious),
			[]string{precious, "is not a socket", "remove it"}},
		{"no workers", node("--refresh-workers=0"), []string{"--refresh-workers is 0; it must be at least 1"}},
		{"less than no volumes", node("--max-volumes=-1"), []string{"--max-volumes is -1; it must be at least 1"}},
		{"no share of a pod", node("--pod-share=0"), []string{"--pod-share is 0; it must be at least 1"}},
		{"more than the node for a pod", node("--pod-share=101"), []string{"--pod-share is 101; it must be at most 100"}},
		{
			"more than the node for a namespace", node("--namespace-share=200"),
			[]string{"--namespace-share is 200; it must be at most 100"},
		},
		{"too few descriptors", node("--max-open-files=1"), []string{"--max-open-files is 1; it must be at least 64"}},
		{
			"a flood of watches", node("--watch-duration=1s"),
			[]string{"--watch-duration is 1s; it must be at least 10s"},
		},
		{"no pause", node("--collect-interval=0"), []string{"--collect-interval is 0s"}},
		{"records below the working directory", node("--state-dir=records"),
			[]string{"--state-dir", `"records"`, "absolute"}},
		{"a socket in a directory that is not there", node("--endpoint=" + state + "/nowhere/csi.sock"),
			[]string{state + "/nowhere", "is not there", "--kubelet-root"}},
		{"status without a driver", []string{"status", "--state-dir=" + state}, []string{"is it running", "--state-dir"}},
		{"status in a format that is none", []string{"status", "-o", "yaml"}, []string{"--output", `"yaml"`, "json"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			stderr := run(t, binary, test.args...)
			lines := strings.Split(strings.TrimSpace(stderr), "\n")
			last := lines[len(lines)-1]
			if !strings.HasPrefix(last, "Error: ") || strings.Count(stderr, "Error: ") != 1 {
				t.Errorf("the last line, and no other, should say what is wrong:\n%s", stderr)
			}
			for _, part := range test.says {
				if !strings.Contains(last, part) {
					t.Errorf("it does not say %q: %s", part, last)
				}
			}
			if test.args[0] != "node" || slices.Contains(test.args, "--log-format=xml") {
				return
			}
			inJSON := testkit.JSONLines(t, run(t, binary, slices.Insert(test.args, 1, "--log-format=json")...))
			if len(inJSON) == 0 {
				t.Fatal("it says nothing in JSON")
			}
			end := inJSON[len(inJSON)-1]
			if want := strings.TrimPrefix(last, "Error: "); end["level"] != "ERROR" || end["err"] != want {
				t.Errorf("in JSON it says %v, want %q", end, want)
			}
		})
	}
	for _, left := range []string{filepath.Join(shared, "plugins/fsuser.csi.io"),
		filepath.Join(shared, "plugins_registry")} {
		if entries, err := os.ReadDir(left); err != nil || len(entries) > 0 {
			t.Errorf("%s: %v, %v", left, entries, err)
		}
	}
	reliability.Shown(t, "F-23", "the driver ends, and the last line of its log names the file")
	reliability.Shown(t, "F-32", "the driver ends, and the last line of its log says what to set")
}

// net/http/h2_bundle.go shows what Go would log: header fields, and the first bytes of each frame.
func TestASwitchOfGoThatLogsSecretsIsRefused(t *testing.T) {
	binary := testkit.BuildDriver(t)
	for _, value := range []string{"http2debug=1", "http2debug=2", "netdns=go,http2debug=2"} {
		cmd := exec.Command(binary, "node", "--node-name=n", "--manifests=/nowhere")
		cmd.Env = []string{"GODEBUG=" + value}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "GODEBUG has http2debug") || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%s: %v\n%s", value, err, out)
		}
	}
}

func TestSwapThatSecretsMayReachIsInTheLog(t *testing.T) {
	const head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "swaps")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	both := head + "/dev/sda2                               partition\t8388604\t\t0\t\t-2\n" +
		"/swap\\040file                " +
		"           file\t\t524284\t\t0\t\t-3\n"
	for _, test := range []struct {
		name   string
		noSwap bool
		swaps  string
		says   []string
	}{
		{"swap that a tmpfs is kept out of", true, file(both), nil},
		{"no swap", false, file(head), nil},
		{"a kernel without swap", false, "/nowhere", nil},
		{"swap", false, file(both), []string{"may be written to the disk", "Linux 6.4", "turn swap off", "/dev/sda2",
			"/swap"}},
		{"swap that can't be told", false, t.TempDir(), []string{"may be written to the disk", "is a directory"}},
	} {
		log := testkit.LogOf(t, 0)
		warnOfSwap(test.noSwap, test.swaps)
		text := log.Text()
		if len(test.says) == 0 && text != "" || len(test.says) > 0 && !strings.HasPrefix(text, "E") {
			t.Errorf("%s: %q", test.name, text)
		}
		for _, part := range test.says {
			if !strings.Contains(text, part) {
				t.Errorf("%s: the log does not say %q: %s", test.name, part, text)
			}
		}
	}
}

func TestASecondDriverWithTheSameRecordsEndsAtOnce(t *testing.T) {
	testkit.NothingLeft(t)
	binary := testkit.BuildDriver(t)
	d := testkit.StartDriver(t, binary, "--manifests="+t.TempDir())
	stderr := run(t, binary, "node", "--node-name=n", "--kubelet-root="+d.Root, "--state-dir="+d.State,
		"--manifests="+t.TempDir())
	if !strings.Contains(stderr, "another driver is running") {
		t.Errorf("it says:\n%s", stderr)
	}
	if status, body := d.Get("/readyz"); status != 200 {
		t.Errorf("the first driver: %d %s", status, body)
	}
}

// capabilities(7) and proc_pid_status(5) explain these values.
func TestTheProcessKeepsOnlyThePowerThatItNeeds(t *testing.T) {
	testkit.NothingLeft(t)
	d := testkit.StartDriver(t, testkit.BuildDriver(t), "--manifests="+t.TempDir())
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.PID()))
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads: %q, %v", threads, err)
	}
	for _, thread := range threads {
		status, err := os.ReadFile(thread)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrNotExist) {
			continue // The thread has ended.
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{
			"CapInh:\t0000000000000000", "CapPrm:\t000000000020000b", "CapEff:\t000000000020000b", "CapBnd:\t000000000020000b",
			"CapAmb:\t0000000000000000",
			"NoNewPrivs:\t1", "Seccomp:\t2",
		} {
			if !strings.Contains(string(status), line+"\n") {
				t.Errorf("%s lacks %q:\n%s", thread, line, status)
			}
		}
	}
	reliability.Shown(t, "F-40", fmt.Sprintf("each of %d threads", len(threads)))
}

func TestTheProcessKeepsItsMemoryToItself(t *testing.T) {
	testkit.NothingLeft(t)
	d := testkit.StartDriver(t, testkit.BuildDriver(t), "--manifests="+t.TempDir())
	d.Stop()
	if err := os.Chmod(d.State, 0o755); err != nil { // as kubelet makes it
		t.Fatal(err)
	}
	d.StartAgain()
	var core unix.Rlimit
	if err := unix.Prlimit(d.PID(), unix.RLIMIT_CORE, nil, &core); err != nil || core.Cur != 0 || core.Max != 0 {
		t.Errorf("core limit %+v, %v; want 0", core, err)
	}
	for _, path := range []string{d.State, filepath.Join(d.State, "lock"), filepath.Join(d.State, "status.sock"),
		filepath.Join(d.Root, "plugins/fsuser.csi.io/csi.sock")} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v; others must have no right to it", path, st.Mode(), err)
		}
	}
	reliability.Shown(t, "F-40", "core limit 0, set hard; the state directory has mode 0700 again")
}
