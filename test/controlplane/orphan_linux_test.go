// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

const helperVariable = "FSUSER_TEST_ORPHAN_HELPER"

// TestChildrenDieWithTheProcess starts a control plane in another process and
// kills that with SIGKILL, as `go test` does after a timeout.
func TestChildrenDieWithTheProcess(t *testing.T) {
	if os.Getenv(helperVariable) != "" {
		orphanHelper(t)
		return
	}
	requireBinaries(t)
	ctx := testContext(t)
	helper := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$")
	helper.Env = append(os.Environ(), helperVariable+"=1", "TMPDIR="+t.TempDir())
	output, err := helper.StdoutPipe()
	if err != nil {
		t.Fatalf("make pipe: %v", err)
	}
	if err := helper.Start(); err != nil {
		t.Fatalf("start helper: %v", err)
	}
	var etcd, apiServer int
	line, readErr := bufio.NewReader(output).ReadString('\n')
	_, scanErr := fmt.Sscanf(line, "pids %d %d\n", &etcd, &apiServer)
	_ = helper.Process.Kill() // here is the point of the test
	_ = helper.Wait()
	if readErr != nil || scanErr != nil {
		t.Fatalf("read process ids from helper: got %q: %v, %v", line, readErr, scanErr)
	}

	t.Cleanup(func() { // if the kernel did not
		for _, pid := range []int{apiServer, etcd} {
			if alive(pid) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(10 * time.Second); alive(etcd) || alive(apiServer); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("10 s after the process was killed: etcd lives: %t, kube-apiserver lives: %t", alive(etcd),
				alive(apiServer))
		}
	}
}

// orphanHelper starts a control plane, prints its process ids and waits to be
// killed.
func orphanHelper(t *testing.T) {
	cp, err := Start(t.Context(), Options{})
	if err != nil {
		fmt.Println(err)
		t.Fatal(err)
	}
	defer cp.Stop()
	fmt.Printf("pids %d %d\n", cp.etcd.cmd.Process.Pid, cp.apiServer.cmd.Process.Pid)
	<-t.Context().Done() // never, but for the test's own timeout
}
