{{/*
The names do not contain the release's name: a cluster can have one driver fsuser.csi.io, so one release. The CSIDriver
and the policies have the driver's name.
*/}}
{{- define "fsuser-csi.name" -}}
{{ .Values.nameOverride | default .Chart.Name }}
{{- end }}

{{- define "fsuser-csi.fullname" -}}
{{ .Values.fullnameOverride | default (include "fsuser-csi.name" .) }}
{{- end }}

{{- define "fsuser-csi.serviceAccountName" -}}
{{- if not (or .Values.serviceAccount.create .Values.serviceAccount.name) -}}
{{- fail "serviceAccount.create=false needs serviceAccount.name, the name of an existing ServiceAccount" -}}
{{- end -}}
{{ .Values.serviceAccount.name | default (include "fsuser-csi.fullname" .) }}
{{- end }}

{{/* The labels of all objects and pods: root, and labels for more of them. */}}
{{- define "fsuser-csi.labels" -}}
app.kubernetes.io/name: {{ include "fsuser-csi.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: csi-driver
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- with merge dict (.labels | default dict) (.root.Values.commonLabels | default dict) }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The labels that select the driver's pods. They can't be changed later. */}}
{{- define "fsuser-csi.selectorLabels" -}}
app.kubernetes.io/name: {{ include "fsuser-csi.name" . }}
{{- end }}

{{/*
The metadata of an object: root, name, namespaced, namespace (the default is the release's), annotations, labels. The
labels come last, so that a template can add more.
*/}}
{{- define "fsuser-csi.metadata" -}}
name: {{ .name }}
{{- if .namespaced }}
namespace: {{ .namespace | default .root.Release.Namespace }}
{{- end }}
{{- with merge dict (.annotations | default dict) (.root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
labels:
  {{- include "fsuser-csi.labels" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/*
The endpoint of a PodMonitor or ServiceMonitor, of which interval is used. The alerts and the dashboard use the labels
job and node.
*/}}
{{- define "fsuser-csi.metricsEndpoint" -}}
port: http
path: /metrics
{{- with .interval }}
interval: {{ . }}
{{- end }}
relabelings:
- {targetLabel: job, replacement: fsuser-csi}
- {sourceLabels: [__meta_kubernetes_pod_node_name], targetLabel: node}
{{- end }}

{{/* Refuses values of earlier versions, and the flags of limits in extraArgs. */}}
{{- define "fsuser-csi.refuseRenamed" -}}
{{- range $old, $new := dict "kubeletRoot" "kubeletRootDir" "verbosity" "logLevel"
  "maxUnavailable" "updateStrategy.rollingUpdate.maxUnavailable" }}
{{- if hasKey $.Values $old }}
{{- fail (printf "the value %s has been renamed to %s" $old $new) }}
{{- end }}
{{- end }}
{{- range .Values.extraArgs }}
{{- with regexFind "^--(max-[a-z-]+|pod-share|namespace-share)" . }}
{{- fail (printf "extraArgs contains %s: set limits.%s instead" . (trimPrefix "--" . | camelcase | untitle)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Refuses a memory limit with which the kernel could kill the driver (docs/operations.md). */}}
{{- define "fsuser-csi.checkMemoryLimit" -}}
{{- $limits := .Values.limits }}
{{- with dig "limits" "memory" nil (.Values.resources | default dict) }}
{{- if not (and $limits.maxNodeBytes $limits.maxVolumes) }}
{{- fail "resources.limits.memory needs limits.maxNodeBytes and limits.maxVolumes: the content of volumes is memory" }}
{{- end }}
{{- $units := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "k" 1000 "M" 1000000 "G" 1000000000 }}
{{- $text := kindIs "string" . | ternary . (int64 . | toString) }}
{{- $bytes := mul (regexFind "^[0-9]+" $text) (get $units (regexFind "[A-Za-z]+$" $text) | default 1) }}
{{- $least := add 67108864 (mul 65536 (int64 $limits.maxVolumes)) (mul 3 (int64 $limits.maxNodeBytes)) }}
{{- if lt $bytes $least }}
{{- fail (printf "resources.limits.memory is %s; it must be at least %d: 64Mi, 64Ki for each of %s, and 3 times %s" $text $least
  "limits.maxVolumes" "limits.maxNodeBytes") }}
{{- end }}
{{- end }}
{{- end }}

{{- define "fsuser-csi.needs136" -}}
{{- $version := .root.Capabilities.KubeVersion.Version -}}
{{- if semverCompare "<1.36.0-0" $version -}}
{{- fail (printf "%s needs Kubernetes 1.36 or later; this cluster is %s. %s" .what $version .remedy) -}}
{{- end -}}
{{- end }}

{{/*
A ClusterRole up to its rules: its name is the full name with a suffix. Its binding to the driver's service account, if
binding has a suffix for it, comes first.
*/}}
{{- define "fsuser-csi.clusterRole" -}}
{{- $fullname := include "fsuser-csi.fullname" .root -}}
{{- $name := print $fullname .suffix -}}
{{- if kindIs "string" .binding -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  {{- include "fsuser-csi.metadata" (dict "root" .root "name" (print $fullname .binding)) | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ $name }}
subjects:
- kind: ServiceAccount
  name: {{ include "fsuser-csi.serviceAccountName" .root }}
  namespace: {{ .root.Release.Namespace }}
---
{{ end -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  {{- include "fsuser-csi.metadata" (dict "root" .root "name" $name) | nindent 2 }}
rules:
{{- end }}
