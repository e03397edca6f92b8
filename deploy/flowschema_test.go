// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

func TestFlowSchema(t *testing.T) {
	all := []string{"*"}
	everyRequest := flowcontrolv1.PolicyRulesWithSubjects{
		Subjects: []flowcontrolv1.Subject{{
			Kind:           flowcontrolv1.SubjectKindServiceAccount,
			ServiceAccount: &flowcontrolv1.ServiceAccountSubject{Namespace: Namespace, Name: "fsuser-csi"},
		}},
		ResourceRules: []flowcontrolv1.ResourcePolicyRule{
			{Verbs: all, APIGroups: all, Resources: all, Namespaces: all, ClusterScope: true},
		},
		NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: all, NonResourceURLs: all}},
	}
	for set, level := range map[string]string{
		"access=namespaces,flowSchema.enabled=true":                                  "workload-low",
		"access=cluster,flowSchema.enabled=true,flowSchema.priorityLevel=of-drivers": "of-drivers",
	} {
		var schema flowcontrolv1.FlowSchema
		template(t, "--set", set).find(t, "FlowSchema", "fsuser-csi", &schema)
		want := flowcontrolv1.FlowSchemaSpec{
			PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: level},
			MatchingPrecedence:         schema.Spec.MatchingPrecedence,
			DistinguisherMethod: &flowcontrolv1.FlowDistinguisherMethod{
				Type: flowcontrolv1.FlowDistinguisherMethodByNamespaceType,
			},
			Rules: []flowcontrolv1.PolicyRulesWithSubjects{everyRequest},
		}
		if !equality.Semantic.DeepEqual(schema.Spec, want) {
			t.Errorf("--set %s: got\n%+v\nwant\n%+v", set, schema.Spec, want)
		}
	}
	for _, set := range []string{"access=node", "access=namespaces", "access=cluster", "flowSchema=null"} {
		if template(t, "--set", set).has("FlowSchema") {
			t.Errorf("--set %s: there is a FlowSchema", set)
		}
	}
}

func TestFlowSchemaNeedsAnAccessWithRequestsOfTheServiceAccount(t *testing.T) {
	_, err := Template(t.Context(), ".", "--set", "access=node,flowSchema.enabled=true")
	if remedy := "Use --set flowSchema.enabled=false"; err == nil || !strings.Contains(err.Error(), remedy) {
		t.Errorf("access node: error %v; want the remedy %s", err, remedy)
	}
}

// The API server puts each request of the driver into the flow of the namespace of the request.
func TestFlows(t *testing.T) {
	c := startCluster(t)
	c.namespace(t, "others")
	c.install(t, "namespaces", "flowSchema.enabled=true")
	schemas := c.FlowcontrolV1().FlowSchemas()
	mine, err := schemas.Get(t.Context(), "fsuser-csi", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, builtIn := range []string{"service-accounts", "kube-system-service-accounts"} {
		schema, err := schemas.Get(t.Context(), builtIn, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if mine.Spec.MatchingPrecedence >= schema.Spec.MatchingPrecedence {
			t.Errorf("the precedence of %s is %d: it would match before %d", builtIn,
				schema.Spec.MatchingPrecedence, mine.Spec.MatchingPrecedence)
		}
	}
	level, err := c.FlowcontrolV1().PriorityLevelConfigurations().Get(t.Context(), "workload-low", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(access{c}.token(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	host := c.AdminConfig().Host

	// The driver's right to read does not matter: the API server classifies a request before it authorizes the request.
	for _, path := range []string{
		"/api/v1/namespaces/apps/secrets/any", "/api/v1/namespaces/apps/configmaps?fieldSelector=metadata.name%3Dany",
		"/api/v1/namespaces/apps/pods/any", "/api/v1/nodes/node-1", "/api/v1/namespaces/apps/events/any", "/version",
	} {
		eventually(t, func() error {
			response, err := get(t.Context(), client, host+path)
			if err != nil {
				return err
			}
			gotSchema := response.Header.Get(flowcontrolv1.ResponseHeaderMatchedFlowSchemaUID)
			gotLevel := response.Header.Get(flowcontrolv1.ResponseHeaderMatchedPriorityLevelConfigurationUID)
			if gotSchema != string(mine.UID) || gotLevel != string(level.UID) {
				return fmt.Errorf("%s: FlowSchema %s, priority level %s; want %s and %s", path, gotSchema, gotLevel, mine.UID,
					level.UID)
			}
			return nil
		})
	}

	for _, namespace := range []string{apps, "others"} {
		unfinishedRequest(t, client, host+"/api/v1/namespaces/"+namespace+"/events")
	}
	eventually(t, func() error {
		flows, err := c.flows(t.Context(), "fsuser-csi")
		if err == nil && !slices.Equal(flows, []string{apps, "others"}) {
			err = fmt.Errorf("the requests have the flows %q, want one for each namespace", flows)
		}
		return err
	})
}

func get(ctx context.Context, client *http.Client, url string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	return response, response.Body.Close()
}

// unfinishedRequest sends the head of a request, and the body only at the end of the test. Until then, the API server
// executes the request.
func unfinishedRequest(t *testing.T, client *http.Client, url string) {
	t.Helper()
	body, end := io.Pipe()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	done := make(chan struct{})
	go func() {
		defer close(done)
		if response, err := client.Do(request); err == nil { // At the end of the test, there is an error.
			response.Body.Close()
		}
	}()
	t.Cleanup(func() {
		end.Close()
		<-done
	})
}

// flows returns the flow distinguishers of the held requests of a FlowSchema, in order.
func (c *cluster) flows(ctx context.Context, schema string) ([]string, error) {
	dump, err := c.FlowcontrolV1().RESTClient().Get().AbsPath("/debug/api_priority_and_fairness/dump_requests").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	const schemaColumn, flowColumn = 1, 4
	var flows []string
	for line := range strings.Lines(string(dump)) {
		columns := strings.Split(line, ",")
		if len(columns) > flowColumn && strings.TrimSpace(columns[schemaColumn]) == schema {
			flows = append(flows, strings.TrimSpace(columns[flowColumn]))
		}
	}
	slices.Sort(flows)
	return flows, nil
}
