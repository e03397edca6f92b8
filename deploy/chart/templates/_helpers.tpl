{{/* Names are fixed, not the release's: CSIDriver objects, sockets and kubelet know one fsuser.csi.io only, so a cluster can have one release. */}}

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

{{/* "true", or nothing. */}}
{{- define "fsuser-csi.declareReferences" -}}
{{- $enabled := (.Values.declareReferences | default dict).enabled -}}
{{- if kindIs "bool" $enabled -}}
{{- if $enabled }}true{{ end -}}
{{- else if eq .Values.access "node" -}}
true
{{- end -}}
{{- end }}

{{- define "fsuser-csi.needs136" -}}
{{- if semverCompare "<1.36.0-0" .root.Capabilities.KubeVersion.Version -}}
{{- fail (printf "%s needs Kubernetes 1.36 or later; this cluster is %s" .what .root.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end }}
