// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"strings"
	"testing"
)

// The smallest memory limit is that of docs/operations.md.
func TestMemoryLimitIsChecked(t *testing.T) {
	const limits = ",limits.maxVolumes=500,limits.maxNodeBytes=134217728" // 479.25Mi
	for set, refusal := range map[string]string{
		"resources.limits.memory=480Mi" + limits:     "",
		"resources.limits.memory=1Gi" + limits:       "",
		"resources.limits.memory=503M" + limits:      "",
		"resources.limits.memory=502530048" + limits: "",
		"resources.limits.memory=479Mi" + limits:     "is 479Mi; it must be at least 502530048",
		"resources.limits.memory=502M" + limits:      "is 502M; it must be at least 502530048",
		"resources.limits.memory=502530047" + limits: "is 502530047; it must be at least 502530048",
		"resources.limits.memory=490751Ki" + limits:  "is 490751Ki; it must be at least 502530048",
		"resources.limits.memory=8Gi":                "needs limits.maxNodeBytes and limits.maxVolumes",
		"resources.limits.cpu=1":                     "",
		"resources=null":                             "",
	} {
		_, err := Template(t.Context(), ".", "--set", set)
		if refused := err != nil; refused != (refusal != "") || refused && !strings.Contains(err.Error(), refusal) {
			t.Errorf("--set %s: error %v, want %q", set, err, refusal)
		}
	}
}
