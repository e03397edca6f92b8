// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fsuser-csi/fsuser-csi/internal/kubelet"
	"github.com/fsuser-csi/fsuser-csi/pkg/attributes"
)

// singleVolume returns the rows about one operation on one volume.
func singleVolume(s size, y *yardsticks) []series {
	ms := func(what string, yardstick *row, g goal) *row {
		return &row{what: what, unit: milliseconds, yardstick: yardstick, goal: g}
	}
	publish, republish, refresh := goal{ratio: 1.5}, goal{p50: 0.4}, goal{p50: 0.25, p99: 2}
	// A refresh that ends before the PUT has returned to its caller counts as 0. The row from the start of the PUT shows
	// the whole time.
	apiRefresh := ms("refresh: PUT returned -> new bytes", y.changed, refresh)
	apiRefreshWhole := ms("refresh: PUT sent -> new bytes", y.update, goal{})

	apiRefresh.peers = []*row{y.storeChanged, y.kubeletChanged}
	apiPublish := ms("publish, object already watched", y.bind, publish)
	apiPublish.peers = []*row{y.spiffePublish, y.storePublish, y.kubeletSetUp}
	apiRepublish := ms("republish, nothing changed", y.unchanged, republish)
	apiRepublish.peers = []*row{y.kubeletUnchanged}

	getAndPublish := ms("API: GET of a pod, then publish, object already watched", nil, goal{})

	all := []series{
		comeAndGo((*env).apiSource, true, apiPublish, ms("unpublish", y.unbind, goal{})),
		publishDescribed(getAndPublish,
			ms("publish, another volume of the pod describes it, object already watched", getAndPublish, publish)),
		comeAndGo((*env).apiSource, false,
			ms("publish, object not yet watched", y.get, goal{p50: 3}),
			ms("unpublish, the object's last volume", y.unbind, goal{})),
		publishAsKubelet(ms("publish as kubelet: 3 calls, a connection each, already watched", y.bindKubelet, goal{})),
		republishUnchanged((*env).apiSource, apiRepublish),
		refreshOne((*env).apiSource, apiRefreshWhole, apiRefresh),
		refreshOne((*env).crowdSource,
			ms(fmt.Sprintf("refresh with %d other volumes held: PUT sent -> new bytes", s.held), apiRefreshWhole, goal{}),
			ms(fmt.Sprintf("refresh with %d other volumes held: PUT returned -> new bytes", s.held), apiRefresh, refresh)),
		comeAndGo((*env).manifestSource, true,
			ms("manifests: publish", y.bind, publish), ms("manifests: unpublish", y.unbind, goal{})),
		republishUnchanged((*env).manifestSource, ms("manifests: republish, nothing changed", y.unchanged, republish)),
		refreshOne((*env).manifestSource,
			ms("manifests: refresh, file written -> new bytes", y.changed, goal{}),
			ms("manifests: refresh, file renamed -> new bytes", y.changed, refresh)),
	}
	asLinks := goal{ratio: 1.2}
	for _, layout := range []attributes.Layout{attributes.LayoutFiles, attributes.LayoutInPlace} {
		name := "layout " + string(layout) + ": "
		all = append(all,
			comeAndGo(inLayout(layout), true,
				ms(name+"publish, object already watched", apiPublish, asLinks), ms(name+"unpublish", y.unbind, goal{})),
			refreshOne(inLayout(layout),
				ms(name+"refresh, PUT sent -> new bytes", apiRefreshWhole, goal{}),
				ms(name+"refresh, PUT returned -> new bytes", apiRefresh, asLinks)))
	}
	return all
}

// objectSource returns a driver, and a new object that the driver can read.
type objectSource func(*env, context.Context) (*node, object, error)

func (e *env) apiSource(ctx context.Context) (*node, object, error) {
	n, err := e.apiNode(ctx)
	if err != nil {
		return nil, nil, err
	}
	return e.withSecret(ctx, n)
}

// inLayout is apiSource for volumes with a layout.
func inLayout(l attributes.Layout) objectSource {
	return func(e *env, ctx context.Context) (*node, object, error) {
		n, object, err := e.apiSource(ctx)
		if err != nil {
			return nil, nil, err
		}
		of := *n
		of.layout = l
		return &of, object, nil
	}
}

// crowdSource is apiSource with a driver that has many volumes.
func (e *env) crowdSource(ctx context.Context) (*node, object, error) {
	c, err := e.newCrowd(ctx)
	if err != nil {
		return nil, nil, err
	}
	return e.withSecret(ctx, c.node)
}

func (e *env) withSecret(ctx context.Context, n *node) (*node, object, error) {
	c, err := e.newCluster(ctx)
	if err != nil {
		return nil, nil, err
	}
	secret, err := c.create(ctx, e.name("secret"))
	return n, secret, err
}

func (e *env) manifestSource(ctx context.Context) (*node, object, error) {
	dir := filepath.Join(e.dir, "manifests")
	n, err := e.manifests.get(func() (*node, error) {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		return e.startNode(ctx, "--manifests="+dir)
	})
	if err != nil {
		return nil, nil, err
	}
	m := &manifest{name: e.name("secret"), dir: dir}
	if err := m.write(); err != nil {
		return nil, nil, err
	}
	return n, m, m.known(ctx, n)
}

// manifest is a Secret in a file of its own.
type manifest struct {
	name, dir string
	version   int
}

func (m *manifest) objectName() string { return m.name }

func (m *manifest) current() int { return m.version }

func (m *manifest) update(context.Context) error {
	m.version++
	return m.write()
}

// write replaces the file with a rename, as users of --manifests should.
func (m *manifest) write() error {
	b, err := json.Marshal(corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Name: m.name, Namespace: namespace}, Data: content(m.version),
	})
	if err != nil {
		return err
	}
	unfinished := m.dir + "-" + m.name
	if err := os.WriteFile(unfinished, b, 0o600); err != nil {
		return err
	}
	return os.Rename(unfinished, filepath.Join(m.dir, m.name+".json"))
}

// known waits until the driver has read a new manifest.
func (m *manifest) known(ctx context.Context, n *node) error {
	for {
		v, err := n.publish(ctx, m.name)
		if err == nil {
			return n.unpublish(ctx, v)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// comeAndGo publishes and unpublishes a volume of an object. With watched, another volume watches the object.
func comeAndGo(source objectSource, watched bool, publish, unpublish *row) series {
	return series{[]*row{publish, unpublish}, func(ctx context.Context, e *env) (step, error) {
		n, object, err := source(e, ctx)
		if err != nil {
			return nil, err
		}
		if watched {
			if _, err := n.publish(ctx, object.objectName()); err != nil {
				return nil, err
			}
		}
		return func(ctx context.Context) error { return n.comeAndGo(ctx, object.objectName(), publish, unpublish) }, nil
	}}
}

// publishDescribed publishes a volume that another volume of its pod describes, for which the driver reads the pod. The
// yardstick reads the pod itself and then publishes a volume that names the object.
func publishDescribed(yardstick, took *row) series {
	return series{[]*row{yardstick, took}, func(ctx context.Context, e *env) (step, error) {
		n, object, err := e.apiSource(ctx)
		if err != nil {
			return nil, err
		}
		c, err := e.newCluster(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := n.publish(ctx, object.objectName()); err != nil {
			return nil, err
		}
		pod, err := c.createDescribed(ctx, e.name("described"), object.objectName())
		if err != nil {
			return nil, err
		}
		var unmeasured row
		return func(ctx context.Context) error {
			start := time.Now()
			if _, err := c.client.CoreV1().Pods(namespace).Get(ctx, pod.Name, metav1.GetOptions{}); err != nil {
				return err
			}
			get := time.Since(start)
			var publish row
			if err := n.comeAndGo(ctx, object.objectName(), &publish, &unmeasured); err != nil {
				return err
			}
			yardstick.add(publish.samples[0] + float64(get)/float64(time.Millisecond))
			return n.comeAndGoOf(ctx, pod, kubelet.Volume{Name: volumeName, Attributes: described()}, took, &unmeasured)
		}, nil
	}}
}

func publishAsKubelet(took *row) series {
	return series{[]*row{took}, func(ctx context.Context, e *env) (step, error) {
		n, object, err := e.apiSource(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := n.publish(ctx, object.objectName()); err != nil {
			return nil, err
		}
		return func(ctx context.Context) error { return n.asKubelet(ctx, object.objectName(), took) }, nil
	}}
}

func republishUnchanged(source objectSource, took *row) series {
	return series{[]*row{took}, func(ctx context.Context, e *env) (step, error) {
		n, object, err := source(e, ctx)
		if err != nil {
			return nil, err
		}
		v, err := n.publish(ctx, object.objectName())
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) error {
			start := time.Now()
			_, err := n.NodePublishVolume(ctx, v.request)
			took.time(time.Since(start))
			return err
		}, nil
	}}
}

// refreshOne measures the time from the start and from the end of an update to the new bytes.
func refreshOne(source objectSource, sinceStart, sinceEnd *row) series {
	return series{[]*row{sinceStart, sinceEnd}, func(ctx context.Context, e *env) (step, error) {
		n, object, err := source(e, ctx)
		if err != nil {
			return nil, err
		}
		v, err := n.publish(ctx, object.objectName())
		if err != nil {
			return nil, err
		}
		a, err := e.watchArrivals(v)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context) error { return a.refresh(ctx, object, v, sinceStart, sinceEnd) }, nil
	}}
}

// refresh measures an update of the object of a volume.
func (a *arrivals) refresh(ctx context.Context, of object, v *volume, sinceStart, sinceEnd *row) error {
	if err := rest(ctx, refreshInterval, v); err != nil {
		return err
	}
	a.forget()
	start := time.Now()
	if err := of.update(ctx); err != nil {
		return err
	}
	updated := time.Now()
	arrived, err := a.await(ctx, of.current(), v)
	if err != nil {
		return err
	}
	sinceStart.time(arrived.Sub(start))
	sinceEnd.time(max(0, arrived.Sub(updated)))
	return nil
}
