{{/* Names are fixed, not the release's: a cluster can have one driver of the name fsuser.csi.io, so one release. */}}
{{- define "fsuser-csi.labels" -}}
app.kubernetes.io/name: fsuser-csi
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "fsuser-csi.metadata" -}}
name: {{ .name }}
labels:
  {{- include "fsuser-csi.labels" .root | nindent 2 }}
{{- end }}

{{- define "fsuser-csi.needs136" -}}
{{- $version := .root.Capabilities.KubeVersion.Version -}}
{{- if semverCompare "<1.36.0-0" $version -}}
{{- fail (printf "%s needs Kubernetes 1.36 or later; this cluster is %s. %s" .what $version .remedy) -}}
{{- end -}}
{{- end }}

{{/* A ClusterRole up to its rules. Its binding to the driver's service account, if it has one, comes first. */}}
{{- define "fsuser-csi.clusterRole" -}}
{{- with .binding -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  {{- include "fsuser-csi.metadata" (dict "root" $.root "name" .) | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $.name }}
subjects:
- kind: ServiceAccount
  name: fsuser-csi
  namespace: {{ $.root.Release.Namespace }}
---
{{ end -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  {{- include "fsuser-csi.metadata" . | nindent 2 }}
rules:
{{- end }}
