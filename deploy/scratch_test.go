package deploy
import ("testing";"fmt";"os";"context";"strings"
 "k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
 "k8s.io/client-go/dynamic"
 "k8s.io/apimachinery/pkg/api/meta"
 metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
 "bytes"
 "sigs.k8s.io/yaml"
 corev1 "k8s.io/api/core/v1"
 "github.com/fsuser-csi/fsuser-csi/test/controlplane"
)
var _ = fmt.Sprint
var _ = os.Stdout
func template(t *testing.T, args ...string) objects { out, err := Template(t.Context(), ".", append(args, "--kube-version", os.Getenv("KV"))...); if err != nil { t.Fatal(err)}; return parse(t,out)}
type objects struct{ all []*unstructured.Unstructured }
func parse(t *testing.T, manifests []byte) objects {
	var all []*unstructured.Unstructured
	for _, document := range bytes.Split(manifests, []byte("\n---\n")) {
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict(document, &o.Object); err != nil { t.Fatalf("%v:\n%s", err, document) }
		if len(o.Object) > 0 { all = append(all, o) }
	}
	return objects{all}
}
func TestScratch(t *testing.T) {
 var args []string
 if v := os.Getenv("EMU"); v != "" { args = []string{"--emulated-version="+v} }
 c := startClusterWith(t, controlplane.Options{ExtraArgs: args})
 objs := template(t, "--set", os.Getenv("SET")+",namespace.create=true,allow.enabled=true,allow.uids={0-2000}")
 for _, one := range objs.all {
		resource, _ := meta.UnsafeGuessKindToResource(one.GroupVersionKind())
		var client dynamic.ResourceInterface = c.objects.Resource(resource)
		if ns := one.GetNamespace(); ns != "" { client = c.objects.Resource(resource).Namespace(ns) }
		if _, err := client.Create(context.Background(), one, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
			t.Errorf("create %s %s: %v", one.GetKind(), one.GetName(), strings.ReplaceAll(err.Error(),"\\n","\n"))
		}
 }
 if t.Failed() {return}
 for i := 0; i < 40; i++ { c.CoreV1().Pods(apps).Create(t.Context(), podWith("probe"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}) }
 eventually(t, func() error { got, err := c.CoreV1().Pods(apps).Create(t.Context(), podWith("p", driverVolume("a","secretName","x")), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); if err!=nil {return err}; if len(got.Spec.Volumes)!=2 && os.Getenv("SET")=="access=node,fsUser.enabled=true" {return fmt.Errorf("%d",len(got.Spec.Volumes))}; return nil})
 try := func(pod *corev1.Pod) { got, err := c.CoreV1().Pods(apps).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); if err != nil { t.Log("ERR", err); return }; b,_ := yaml.Marshal(got.Spec.Volumes); t.Log("\n"+string(b)) }
 p := podWith("p", secretVolume("s","s"), configMapVolume("c","c"), driverVolume("d","configMapName","q","uid","5")); p.Spec.Volumes[2].CSI.ReadOnly=nil; p.Annotations = map[string]string{"fsuser.csi.io/fs-user":"1000","fsuser.csi.io/fs-group":"7"}
 du := int64(42); p.Spec.Volumes[0].Secret.DefaultUser = &du
 try(p)
 try(podWith("p", driverVolume("d","configMapName","Q","uid","x","mode","8","Foo","1","items","2","uid/../x","1", "gid/a", "", "mode/b","999")))
 try(podWith("p", driverVolume("d","volume","x")))
 try(podWith("p", driverVolume("d","volume","d","uid","3000")))
}
