// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// consenting is a namespace with a RoleBinding of the reader, if the access has a reader.
const consenting = "consenting"

// TestAccess shows the rights of a token of the driver, with each kind of access. Each node has a token, so an attacker
// who takes over a node has these rights.
func TestAccess(t *testing.T) {
	t.Run("node", func(t *testing.T) {
		c := startAccess(t, "node")
		c.golden(t, "access-node.txt", map[string]string{"every namespace": apps})
		nodeAccess(t, c)
	})
	t.Run("namespaces", func(t *testing.T) {
		c := startAccess(t, "namespaces")
		c.consent(t)
		c.golden(t, "access-namespaces.txt", map[string]string{"a namespace": apps,
			"a namespace that has consented": consenting})
		namespacesAccess(t, c)
	})
	t.Run("cluster", func(t *testing.T) {
		c := startAccess(t, "cluster")
		c.golden(t, "access-cluster.txt", map[string]string{"every namespace": apps})
		clusterAccess(t, c)
	})
}

// access is a cluster with the chart, two nodes with one pod of the driver each, and on each node one pod of a user
// with a Secret and a ConfigMap, named node-1 and node-2.
type access struct{ *cluster }

func startAccess(t *testing.T, kind string) access {
	t.Helper()
	c := access{startCluster(t)}
	c.namespace(t, consenting)
	c.install(t, kind)
	c.waitForPolicy(t)
	for _, namespace := range []string{apps, consenting} {
		for _, name := range []string{"node-1", "node-2", "undeclared"} {
			meta := metav1.ObjectMeta{Name: name}
			if _, err := c.CoreV1().Secrets(namespace).Create(t.Context(), &corev1.Secret{ObjectMeta: meta},
				metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.CoreV1().ConfigMaps(namespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: meta},
				metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, node := range []string{"node-1", "node-2"} {
		if _, err := c.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}},
			metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		driver := podWith(node)
		driver.Spec.NodeName, driver.Spec.ServiceAccountName = node, "fsuser-csi"
		if _, err := c.CoreV1().Pods(Namespace).Create(t.Context(), driver, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		user := podWith(node, driverVolume("s", "secretName", node), driverVolume("c", "configMapName", node))
		user.Spec.NodeName = node
		c.createPod(t, user)
	}
	return c
}

// token returns the configuration of a client with a token of the driver's service account: of its pod on that node, or
// of no pod.
func (c access) token(t *testing.T, node string) *rest.Config {
	t.Helper()
	request := &authenticationv1.TokenRequest{}
	if node != "" {
		pod, err := c.CoreV1().Pods(Namespace).Get(t.Context(), node, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name,
			UID: pod.UID}
	}
	got, err := c.CoreV1().ServiceAccounts(Namespace).CreateToken(t.Context(), "fsuser-csi", request,
		metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := c.AdminConfig()
	config.BearerToken = got.Status.Token
	return config
}

// as returns a client with that token that acts as the node, or as itself if node is "".
func as(t *testing.T, config *rest.Config, node string) kubernetes.Interface {
	t.Helper()
	impersonate := rest.ImpersonationConfig{}
	if node != "" {
		impersonate.UserName = "system:node:" + node
	}
	return asUser(t, config, impersonate)
}

func asUser(t *testing.T, config *rest.Config, user rest.ImpersonationConfig) kubernetes.Interface {
	t.Helper()
	config = rest.CopyConfig(config)
	config.Impersonate = user
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func nodeAccess(t *testing.T, c access) {
	mine := c.token(t, "node-1")
	driver := as(t, mine, "node-1")
	t.Run("what the node's pods declare", func(t *testing.T) {
		for what, read := range readsOfOne(driver, apps, "node-1") {
			// The authorizer learns of the pod with a watch.
			eventually(t, func() error { return failed(what, read(t.Context())) })
		}
	})
	t.Run("the node's pods", func(t *testing.T) {
		for what, read := range readsOfPods(driver, apps, fields.OneTermEqualSelector(metav1.ObjectNameField, "node-1"),
			"node-1") {
			eventually(t, func() error { return failed(what, read(t.Context())) })
		}
		onThisNode := readsOfPods(driver, metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", "node-1"), "")
		for what, read := range onThisNode {
			if err := read(t.Context()); err != nil {
				t.Errorf("all of them: %s: %v", what, err)
			}
		}
		refused(t, "of another node: ", readsOfPods(driver, apps,
			fields.OneTermEqualSelector(metav1.ObjectNameField, "node-2"), "node-2"))
		refused(t, "all of another node: ", readsOfPods(driver, apps, fields.OneTermEqualSelector("spec.nodeName", "node-2"),
			""))
		refused(t, "all: ", readsOfPods(driver, apps, fields.Everything(), ""))
		refused(t, "all, everywhere: ", readsOfPods(driver, metav1.NamespaceAll, fields.Everything(), ""))
		refused(t, "as itself: ", readsOfPods(as(t, mine, ""), apps,
			fields.OneTermEqualSelector(metav1.ObjectNameField, "node-1"), "node-1"))
	})
	t.Run("its Node", func(t *testing.T) {
		if _, err := driver.CoreV1().Nodes().Get(t.Context(), "node-1", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		if _, err := as(t, mine, "").CoreV1().Nodes().Get(t.Context(), "node-1", metav1.GetOptions{}); !isForbidden(err) {
			t.Errorf("as itself: error %v, want Forbidden", err)
		}
	})
	t.Run("nothing else", func(t *testing.T) {
		refused(t, "not declared: ", readsOfOne(driver, apps, "undeclared"))
		refused(t, "the same name in another namespace: ", readsOfOne(driver, consenting, "node-1"))
		refused(t, "declared on another node: ", readsOfOne(driver, apps, "node-2"))
		refused(t, "all: ", readsOfAll(driver, apps))
		refused(t, "all, everywhere: ", readsOfAll(driver, metav1.NamespaceAll))
	})
	t.Run("nobody else", func(t *testing.T) {
		refused(t, "as another node, that node's: ", readsOfOne(as(t, mine, "node-2"), apps, "node-2"))
		refused(t, "as another node, one's own: ", readsOfOne(as(t, mine, "node-2"), apps, "node-1"))
		refused(t, "as a node that is not there: ", readsOfOne(as(t, mine, "node-3"), apps, "node-1"))
		refused(t, "as itself: ", readsOfOne(as(t, mine, ""), apps, "node-1"))
		refused(t, "as itself, all: ", readsOfAll(as(t, mine, ""), apps))
		refused(t, "a token of no pod: ", readsOfOne(as(t, c.token(t, ""), "node-1"), apps, "node-1"))
		refused(t, "a token of another node's pod: ", readsOfOne(as(t, c.token(t, "node-2"), "node-1"), apps, "node-1"))
		for what, user := range map[string]rest.ImpersonationConfig{
			"as an administrator: ":              {UserName: "admin", Groups: []string{"system:masters"}},
			"as the node, with a group: ":        {UserName: "system:node:node-1", Groups: []string{"system:masters"}},
			"as the node, with its own groups: ": {UserName: "system:node:node-1", Groups: []string{"system:nodes"}},
			"as the default service account: ":   {UserName: "system:serviceaccount:" + apps + ":default"},
			"as the node, with more about it: ":  {UserName: "system:node:node-1", Extra: map[string][]string{"a": {"b"}}},
			"as the controller manager: ":        {UserName: "system:kube-controller-manager"},
			"as the node, in capitals: ":         {UserName: "system:node:NODE-1"},
		} {
			refused(t, what, readsOfOne(asUser(t, mine, user), apps, "node-1"))
		}
	})
	t.Run("a node may do more; the driver as the node may not", func(t *testing.T) {
		core := driver.CoreV1()
		_, listNodes := core.Nodes().List(t.Context(), metav1.ListOptions{})
		_, otherNode := core.Nodes().Get(t.Context(), "node-2", metav1.GetOptions{})
		_, patchNode := core.Nodes().Patch(t.Context(), "node-1", types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
		_, patchStatus := core.Pods(apps).Patch(t.Context(), "node-1", types.MergePatchType,
			[]byte(`{"status":{"message":"b"}}`), metav1.PatchOptions{}, "status")
		_, token := core.ServiceAccounts(apps).CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{},
			metav1.CreateOptions{})
		for what, err := range map[string]error{
			"list Nodes": listNodes, "get another Node": otherNode, "change its Node": patchNode,
			"change a pod's status":   patchStatus,
			"delete a pod":            core.Pods(apps).Delete(t.Context(), "node-1", metav1.DeleteOptions{}),
			"make a token of the pod": token, "write an Event": event(t.Context(), driver, "as-node"),
		} {
			if !isForbidden(err) {
				t.Errorf("%s: error %v, want Forbidden", what, err)
			}
		}
	})
	writesEvents(t, as(t, mine, ""))
	t.Run("the pod goes, and the right with it", func(t *testing.T) {
		now := int64(0)
		if err := c.CoreV1().Pods(apps).Delete(t.Context(), "node-1",
			metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		for what, read := range readsOfOne(driver, apps, "node-1") {
			eventually(t, func() error {
				if err := read(t.Context()); !isForbidden(err) {
					return fmt.Errorf("%s: error %w, want Forbidden", what, err)
				}
				return nil
			})
		}
	})
}

// consent applies the RoleBinding that deploy/README.md shows to a namespace's owner.
func (c access) consent(t *testing.T) {
	t.Helper()
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "fsuser-csi"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "fsuser-csi-reader"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: Namespace, Name: "fsuser-csi"}},
	}
	if _, err := c.RbacV1().RoleBindings(consenting).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func namespacesAccess(t *testing.T, c access) {
	mine := c.token(t, "node-1")
	driver := as(t, mine, "")
	for what, read := range readsOfOne(driver, consenting, "node-1") {
		eventually(t, func() error { return failed(what, read(t.Context())) })
	}
	refused(t, "without consent: ", readsOfOne(driver, apps, "node-1"))
	refused(t, "without consent, all: ", readsOfAll(driver, apps))
	refused(t, "all, everywhere: ", readsOfAll(driver, metav1.NamespaceAll))
	refused(t, "as the node: ", readsOfOne(as(t, mine, "node-1"), apps, "node-1"))
	pod := fields.OneTermEqualSelector(metav1.ObjectNameField, "node-1")
	refused(t, "a pod without consent: ", readsOfPods(driver, apps, pod, "node-1"))
	if _, err := c.CoreV1().Pods(consenting).Create(t.Context(), podWith("node-1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for what, read := range readsOfPods(driver, consenting, pod, "node-1") {
		eventually(t, func() error { return failed(what, read(t.Context())) })
	}
	writesEvents(t, driver)
	readsNodes(t, driver)
}

func clusterAccess(t *testing.T, c access) {
	mine := c.token(t, "node-1")
	driver := as(t, mine, "")
	for what, read := range readsOfOne(driver, apps, "undeclared") {
		eventually(t, func() error { return failed(what, read(t.Context())) })
	}
	// This is the danger of this kind of access.
	for what, read := range readsOfAll(driver, metav1.NamespaceAll) {
		if err := read(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, read := range readsOfPods(driver, metav1.NamespaceAll, fields.Everything(), "") {
		if err := read(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused(t, "as the node: ", readsOfOne(as(t, mine, "node-1"), apps, "node-1"))
	if err := driver.CoreV1().Secrets(apps).Delete(t.Context(), "undeclared", metav1.DeleteOptions{}); !isForbidden(err) {
		t.Errorf("delete a Secret: error %v, want Forbidden", err)
	}
	writesEvents(t, driver)
	readsNodes(t, driver)
}

// readsNodes checks that the driver reads its Node with a right of its own if it has no right to act as its node.
func readsNodes(t *testing.T, driver kubernetes.Interface) {
	t.Helper()
	if _, err := driver.CoreV1().Nodes().Get(t.Context(), "node-1", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := driver.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); !isForbidden(err) {
		t.Errorf("list Nodes: error %v, want Forbidden", err)
	}
}

type reads map[string]func(context.Context) error

// readsOfOne returns the ways to read a Secret and a ConfigMap with a name.
func readsOfOne(client kubernetes.Interface, namespace, name string) reads {
	core := client.CoreV1()
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
	all := reads{
		"get Secret": func(ctx context.Context) error {
			_, err := core.Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
			return err
		},
		"get ConfigMap": func(ctx context.Context) error {
			_, err := core.ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
			return err
		},
	}
	addLists(all, client, namespace, selector)
	return all
}

// readsOfAll returns the ways to read all objects of a namespace, or of all namespaces.
func readsOfAll(client kubernetes.Interface, namespace string) reads {
	all := reads{}
	addLists(all, client, namespace, "")
	return all
}

func addLists(all reads, client kubernetes.Interface, namespace, selector string) {
	core := client.CoreV1()
	options := metav1.ListOptions{FieldSelector: selector}
	all["list Secrets"] = func(ctx context.Context) error {
		got, err := core.Secrets(namespace).List(ctx, options)
		if err == nil && len(got.Items) == 0 {
			return errors.New("the list is empty")
		}
		return err
	}
	all["list ConfigMaps"] = func(ctx context.Context) error {
		got, err := core.ConfigMaps(namespace).List(ctx, options)
		if err == nil && len(got.Items) == 0 {
			return errors.New("the list is empty")
		}
		return err
	}
	all["watch Secrets"] = func(ctx context.Context) error {
		w, err := core.Secrets(namespace).Watch(ctx, options)
		if err == nil {
			w.Stop()
		}
		return err
	}
	all["watch ConfigMaps"] = func(ctx context.Context) error {
		w, err := core.ConfigMaps(namespace).Watch(ctx, options)
		if err == nil {
			w.Stop()
		}
		return err
	}
}

// readsOfPods returns the ways to read the pods of a selector. name is the name of the only such pod, or "".
func readsOfPods(client kubernetes.Interface, namespace string, selector fields.Selector, name string) reads {
	pods, options := client.CoreV1().Pods(namespace), metav1.ListOptions{FieldSelector: selector.String()}
	all := reads{
		"list Pods": func(ctx context.Context) error {
			got, err := pods.List(ctx, options)
			if err == nil && len(got.Items) == 0 {
				return errors.New("the list is empty")
			}
			return err
		},
		"watch Pods": func(ctx context.Context) error {
			w, err := pods.Watch(ctx, options)
			if err == nil {
				w.Stop()
			}
			return err
		},
	}
	if name != "" {
		all["get Pod"] = func(ctx context.Context) error {
			_, err := pods.Get(ctx, name, metav1.GetOptions{})
			return err
		}
	}
	return all
}

func refused(t *testing.T, when string, all reads) {
	t.Helper()
	for what, read := range all {
		if err := read(t.Context()); !isForbidden(err) {
			t.Errorf("%s%s: error %v, want Forbidden", when, what, err)
		}
	}
}

func failed(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// writesEvents checks the driver's own rights with each kind of access.
func writesEvents(t *testing.T, driver kubernetes.Interface) {
	t.Helper()
	eventually(t, func() error { return event(t.Context(), driver, "as-itself") })
	if _, err := driver.CoreV1().Events(apps).Patch(t.Context(), "as-itself", types.MergePatchType, []byte(`{"count":2}`),
		metav1.PatchOptions{}); err != nil {
		t.Errorf("count up an Event: %v", err)
	}
	if _, err := driver.CoreV1().Events(apps).List(t.Context(), metav1.ListOptions{}); !isForbidden(err) {
		t.Errorf("list Events: error %v, want Forbidden", err)
	}
}

func event(ctx context.Context, client kubernetes.Interface, name string) error {
	_, err := client.CoreV1().Events(apps).Create(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: name, Namespace: apps},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: apps, Name: "node-1"},
		Reason:         "Test", Message: "test", Type: corev1.EventTypeNormal, Count: 1,
	}, metav1.CreateOptions{})
	return err
}

// golden compares the rights of the driver's service account, according to the API server, with a file in testdata that
// reviewers can read. It omits the rights of all service accounts.
func (c access) golden(t *testing.T, file string, namespaces map[string]string) {
	t.Helper()
	c.serviceAccount(t, apps, "any", nil)
	other, err := c.UserConfig("system:serviceaccount:"+apps+":any", "system:serviceaccounts",
		"system:serviceaccounts:"+apps, "system:authenticated")
	if err != nil {
		t.Fatal(err)
	}
	driver, anybody := as(t, c.token(t, "node-1"), ""), as(t, other, "")
	var text string
	eventually(t, func() error {
		var sections []string
		for title, namespace := range namespaces {
			rules := c.rules(t, driver, namespace)
			common := c.rules(t, anybody, namespace)
			rules = slices.DeleteFunc(rules, func(r string) bool { return slices.Contains(common, r) })
			sections = append(sections, "in "+title+":\n  "+strings.Join(rules, "\n  ")+"\n")
		}
		slices.Sort(sections)
		text = "# What a token of the driver's service account may do, more than that of any other.\n" +
			strings.Join(sections, "")
		return compareGolden(file, text)
	})
}

func (c access) rules(t *testing.T, client kubernetes.Interface, namespace string) []string {
	t.Helper()
	review := &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace},
	}
	got, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), review, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range got.Status.ResourceRules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				line := resource
				if group != "" {
					line += "." + group
				}
				if len(r.ResourceNames) > 0 {
					line += fmt.Sprint(" ", r.ResourceNames)
				}
				all = append(all, line+": "+strings.Join(r.Verbs, ", "))
			}
		}
	}
	for _, r := range got.Status.NonResourceRules {
		for _, url := range r.NonResourceURLs {
			all = append(all, url+": "+strings.Join(r.Verbs, ", "))
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func compareGolden(file, got string) error {
	path := filepath.Join("testdata", file)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		return os.WriteFile(path, []byte(got), 0o644)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if got != string(want) {
		return fmt.Errorf("it is now (UPDATE_GOLDEN=1 writes %s):\n%s", path, got)
	}
	return nil
}
