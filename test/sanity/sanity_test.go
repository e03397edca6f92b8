// SPDX-License-Identifier: Apache-2.0

// Package sanity runs the CSI project's own test suite, csi-test, against the driver's real binary.
//
// The suite makes its volumes with a Controller service, which this driver does not have. So the suite talks to a proxy
// (proxy_test.go) that acts as a Controller and forwards all other calls to the driver. The driver's socket, its check
// of the peer and its mounts are real.
package sanity

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"google.golang.org/grpc/codes"

	"github.com/fsuser-csi/fsuser-csi/internal/testkit"
)

// The numbers of the suite's specs for the Identity and Node services that apply to the driver. If a number changes,
// with a new csi-test or another capability, check the specs.
const (
	wantSpecs       = 17
	idempotentCount = 10
)

func TestMain(m *testing.M) {
	testkit.RunHelper(map[string]func([]string) error{"suite": suite})
	testkit.RunInMountNamespace(m)
}

func TestSanity(t *testing.T) {
	testkit.NothingLeft(t)
	// The driver is built with the dependencies of its own module, like a release.
	t.Chdir(filepath.Join("..", ".."))
	manifests := t.TempDir()
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\nstringData: {%s: %s}\n",
		secret, namespace, key, content)
	if err := os.WriteFile(filepath.Join(manifests, "secret.yaml"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	d := testkit.StartDriver(t, testkit.BuildDriver(t), "--manifests="+manifests, "--request-checks=csi-sanity")
	p := startProxy(t, filepath.Join(d.Root, "plugins", "fsuser.csi.io", "csi.sock"))
	before := testkit.MountTable(t)

	report := runSuite(t, p.socket)
	count := map[types.SpecState]int{}
	ran := 0
	for _, spec := range report.SpecReports.WithLeafNodeType(types.NodeTypeIt) {
		count[spec.State]++
		if spec.State.Is(types.SpecStateSkipped | types.SpecStatePending) {
			continue
		}
		ran++
		t.Logf("%s: %s", spec.State, spec.FullText())
		if spec.State != types.SpecStatePassed {
			t.Errorf("%s: %s\n%s", spec.FullText(), spec.Failure.Message, spec.CapturedGinkgoWriterOutput)
		}
	}
	t.Logf("csi-test: %d specs, %d ran, %d passed, %d skipped", report.PreRunStats.TotalSpecs, ran,
		count[types.SpecStatePassed], count[types.SpecStateSkipped])
	if ran != wantSpecs || count[types.SpecStatePassed] != wantSpecs || !report.SuiteSucceeded {
		t.Errorf("%d specs ran and %d passed, want %d and %[3]d; the suite succeeded: %v", ran, count[types.SpecStatePassed],
			wantSpecs, report.SuiteSucceeded)
	}

	// The calls show that the specs did what they are for.
	calls := p.calls()
	t.Logf("calls that reached the driver: %v", calls)
	for call, atLeast := range map[call]int{
		{"NodePublishVolume", codes.OK}:              idempotentCount + 3, // four volumes
		{"NodePublishVolume", codes.InvalidArgument}: 3,
		{"NodeUnpublishVolume", codes.OK}:            4,
		{"NodeGetVolumeStats", codes.OK}:             2,
		{"NodeGetVolumeStats", codes.NotFound}:       2,
		{"Probe", codes.OK}:                          1,
		{"GetPluginInfo", codes.OK}:                  1,
	} {
		if calls[call] < atLeast {
			t.Errorf("%d calls of %s ended with %s, want %d or more", calls[call], call.method, call.code, atLeast)
		}
	}

	if after := testkit.MountTable(t); after != before {
		t.Errorf("the mount table is not as before.\nbefore:\n%s\nafter:\n%s", before, after)
	}
	if records := d.Records(); len(records) > 0 {
		t.Errorf("records are left: %q", records)
	}
	for _, name := range []string{"fsuser_volumes", "fsuser_watched_objects"} {
		if n := d.Metric(name); n != 0 {
			t.Errorf("%s is %v after the last volume is gone", name, n)
		}
	}
}

// runSuite runs the suite in a process of its own, because ginkgo runs only once in a process, and go test -count runs
// it more often.
func runSuite(t *testing.T, socket string) types.Report {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "report.json")
	// The report contains the same result as the exit status.
	out, runErr := testkit.Helper(t, false, "suite", socket, dir, file).CombinedOutput()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("the suite gave no report: %v; it ended with: %v\n%s", err, runErr, out)
	}
	var reports []types.Report
	if err := json.Unmarshal(b, &reports); err != nil {
		t.Fatal(err)
	}
	if len(reports) != 1 {
		t.Fatalf("%d reports, want one", len(reports))
	}
	if runErr != nil {
		t.Errorf("the suite ended with: %v\n%s", runErr, out)
	}
	return reports[0]
}

// suite is the main function of the other process. Its arguments are the socket to test, a working directory, and the
// file for the report.
func suite(args []string) error {
	socket, dir, file := args[0], args[1], args[2]
	config := sanity.NewTestConfig()
	config.Address = "unix:" + socket
	config.TargetPath, config.StagingPath = filepath.Join(dir, "target"), filepath.Join(dir, "staging")
	config.IdempotentCount = idempotentCount

	which, reporter := ginkgo.GinkgoConfiguration()
	which.SkipStrings = append(which.SkipStrings, "Controller Server")
	reporter.JSONReport = file
	context := sanity.GinkgoTest(&config)
	defer context.Finalize()
	gomega.RegisterFailHandler(ginkgo.Fail)
	var result outcome
	ginkgo.RunSpecs(&result, "csi-test", which, reporter)
	return result.err
}

// outcome takes the place of testing.T. ginkgo reports failures to it.
type outcome struct{ err error }

func (o *outcome) Fail() { o.err = fmt.Errorf("the suite failed") }
