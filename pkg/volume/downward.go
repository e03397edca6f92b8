// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
	"github.com/fsuser-csi/fsuser-csi/pkg/source"
)

// downward returns the content of the file of an item of the downward API. The file of a label or annotation that the
// pod does not have is empty. If the container sets no limit, the file shows the node's allocatable, as in kubelet. The
// text of an error continues a sentence that begins with the pod's name.
func downward(pod source.Content, item attributes.Item, allocatable map[string]string) ([]byte, error) {
	if !item.IsResource() {
		return pod.Data[item.Key], nil
	}
	if _, ok := pod.Data[source.ResourceKey(item.Container, "")]; !ok {
		return nil, fmt.Errorf("has no container %q, whose %s the file %q is to show; name one of its containers",
			item.Container, item.Key, item.Path)
	}
	value, err := quantity(string(pod.Data[source.ResourceKey(item.Container, item.Key)]))
	if limit, ok := strings.CutPrefix(item.Key, "limits."); ok && err == nil && value.IsZero() {
		value, err = quantity(allocatable[limit])
	}
	if err != nil {
		return nil, fmt.Errorf("has a %s of container %q that is no quantity: %w", item.Key, item.Container, err)
	}
	divisor, err := quantity(cmp.Or(item.Divisor, "1"))
	if err != nil || divisor.Sign() <= 0 {
		return nil, fmt.Errorf("can't be shown by the divisor %q", item.Divisor)
	}
	// Kubelet counts CPUs in thousandths and all other resources in units, and rounds up (pkg/api/v1/resource).
	if strings.HasSuffix(item.Key, ".cpu") {
		return roundedUp(value.MilliValue(), divisor.MilliValue()), nil
	}
	return roundedUp(value.Value(), divisor.Value()), nil
}

// quantity parses a quantity. An empty text is zero.
func quantity(text string) (resource.Quantity, error) {
	if text == "" {
		return resource.Quantity{}, nil
	}
	return resource.ParseQuantity(text)
}

func roundedUp(value, divisor int64) []byte {
	quotient := value / divisor
	if value%divisor > 0 {
		quotient++
	}
	return strconv.AppendInt(nil, quotient, 10)
}
