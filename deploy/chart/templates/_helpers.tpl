{{/* Names are fixed, not the release's: kubelet, sockets and the CSIDriver know one fsuser.csi.io only, so a cluster can have one release. */}}

{{- define "fsuser-csi.selectorLabels" -}}
app.kubernetes.io/name: fsuser-csi
{{- end }}

{{- define "fsuser-csi.labels" -}}
{{ include "fsuser-csi.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "fsuser-csi.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* "true" if the cluster has MutatingAdmissionPolicy v1 and constrained impersonation, else nothing. Vendors' versions have suffixes. */}}
{{- define "fsuser-csi.is136" -}}
{{- if semverCompare ">=1.36.0-0" .Capabilities.KubeVersion.Version -}}true{{- end -}}
{{- end }}

{{- define "fsuser-csi.needs136" -}}
{{- if not (include "fsuser-csi.is136" .root) -}}
{{- fail (printf "%s needs Kubernetes 1.36 or later; this cluster is %s. %s" .what .root.Capabilities.KubeVersion.Version .remedy) -}}
{{- end -}}
{{- end }}

{{/* Binds the driver's service account to a ClusterRole in the whole cluster. */}}
{{- define "fsuser-csi.clusterRoleBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels:
    {{- include "fsuser-csi.labels" .root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .role }}
subjects:
- kind: ServiceAccount
  name: fsuser-csi
  namespace: {{ .root.Release.Namespace }}
{{- end }}
