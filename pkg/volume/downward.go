// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// downward returns what an item of the downward API shows of the pod. A label or annotation that is not there is empty, as are addresses
// that the pod does not have yet. The error goes on from the pod's name.
func downward(pod source.Content, item attributes.Item) ([]byte, error) {
	if !item.IsResource() {
		return pod.Data[item.Key], nil
	}
	if _, ok := pod.Data[source.ResourceKey(item.Container, "")]; !ok {
		return nil, fmt.Errorf("has no container %q, whose %s the file %q is to show; name one of its containers", item.Container, item.Key, item.Path)
	}
	var value resource.Quantity
	if text := pod.Data[source.ResourceKey(item.Container, item.Key)]; text != nil {
		var err error
		if value, err = resource.ParseQuantity(string(text)); err != nil {
			return nil, fmt.Errorf("has a %s of container %q that is no quantity: %w", item.Key, item.Container, err)
		}
	}
	if value.IsZero() && strings.HasPrefix(item.Key, "limits.") {
		// Kubelet takes what the node can give, which it alone knows.
		return nil, fmt.Errorf("sets no %s for container %q, which the file %q is to show; set the limit, or use a downwardAPI volume of Kubernetes, which shows the node's",
			item.Key, item.Container, item.Path)
	}
	divisor := resource.MustParse("1")
	if item.Divisor != "" && item.Divisor != "0" {
		var err error
		if divisor, err = resource.ParseQuantity(item.Divisor); err != nil {
			return nil, fmt.Errorf("can't be shown by the divisor %q: %w", item.Divisor, err)
		}
	}
	// Kubelet counts CPUs by the thousandth, all else by one, and rounds up (pkg/api/v1/resource).
	if strings.HasSuffix(item.Key, ".cpu") {
		return roundedUp(value.MilliValue(), divisor.MilliValue()), nil
	}
	return roundedUp(value.Value(), divisor.Value()), nil
}

func roundedUp(value, divisor int64) []byte {
	quotient := value / divisor
	if value%divisor > 0 {
		quotient++
	}
	return strconv.AppendInt(nil, quotient, 10)
}
