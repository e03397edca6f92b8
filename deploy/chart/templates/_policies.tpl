{{- define "fsuser-csi.podSpec" -}}
object.spec.?jobTemplate.spec.template.spec.or(object.spec.?template.spec).orValue(object.spec)
{{- end }}

{{/*
The bindings of a policy, and the policy up to its variables. Without condition, the policy is for pods with volumes of
the driver. With templates, which is an action, it is also for Deployments and other workloads, and has variables for
these volumes.
*/}}
{{- define "fsuser-csi.policy" -}}
{{- $pods := .operations | default "CREATE"
  | printf `{apiGroups: [""], apiVersions: [v1], operations: [%s], resources: [pods]}` }}
{{- $templates := `{apiGroups: [apps, batch], apiVersions: [v1], operations: [CREATE, UPDATE],
      resources: [deployments, statefulsets, daemonsets, jobs, cronjobs]}` }}
{{- $bindings := list (list .name .actions $pods) }}
{{- with .templates }}{{ $bindings = append $bindings (list (printf "%s-of-templates" $.name) . $templates) }}{{ end }}
{{- range $bindings }}
apiVersion: admissionregistration.k8s.io/v1
kind: {{ $.kind }}AdmissionPolicyBinding
metadata:
  {{- include "fsuser-csi.metadata" (dict "root" $.root "name" (printf "%s.fsuser.csi.io" (first .))) | nindent 2 }}
spec:
  policyName: {{ $.name }}.fsuser.csi.io
  {{- with index . 1 }}
  validationActions: [{{ . }}]
  {{- end }}
  {{- if $.paramKind }}
  # With Deny, a missing parameter would refuse every pod of the cluster, because the API server does not check the
  # conditions before.
  paramRef: {name: fsuser.csi.io, parameterNotFoundAction: Allow}
  {{- end }}
  matchResources:
    resourceRules:
    - {{ last . }}
---
{{- end }}
apiVersion: admissionregistration.k8s.io/v1
kind: {{ .kind }}AdmissionPolicy
metadata:
  {{- include "fsuser-csi.metadata" (dict "root" .root "name" (printf "%s.fsuser.csi.io" .name)) | nindent 2 }}
spec:
  failurePolicy: Fail
  {{- if eq .kind "Mutating" }}
  # A webhook that runs later may add volumes.
  reinvocationPolicy: IfNeeded
  {{- end }}
  {{- with .paramKind }}
  paramKind: {apiVersion: storage.k8s.io/v1, kind: {{ . }}}
  {{- end }}
  matchConstraints:
    resourceRules:
    {{- range $bindings }}
    - {{ last . }}
    {{- end }}
  matchConditions:
  - name: has-such-a-volume
    expression: >-
      {{- include "fsuser-csi.podSpec" . | printf `(%s)
.?volumes.orValue([]).exists(v, has(v.csi) && v.csi.driver == 'fsuser.csi.io')` | coalesce .condition | nindent 6 }}
  variables:
  {{- if .templates }}
  - name: pod
    expression: {{ include "fsuser-csi.podSpec" . }}
  - name: volumes
    expression: variables.pod.volumes.filter(v, has(v.csi) && v.csi.driver == 'fsuser.csi.io')
  - name: attributes
    expression: variables.volumes.map(v, v.csi.?volumeAttributes.orValue({}))
  - name: secretRefs
    expression: variables.volumes.map(v, v.csi.?nodePublishSecretRef.name.orValue(''))
  - name: byName
    expression: "variables.pod.volumes.transformMapEntry(_, v, {v.name: dyn(v)})"
  # For each volume of the driver, the volume that its attribute volume names, or none.
  - name: described
    expression: >-
      variables.attributes.map(a, a[?'volume'].orValue('') in variables.byName ? [variables.byName[a.volume]] : [])
  {{- end }}
{{- end }}

{{/* Refuses a request unless a variable is empty. The variable is the message, which may have at most 4 KiB. */}}
{{- define "fsuser-csi.refuseWith" -}}
validations:
- expression: {{ . }} == ''
  messageExpression: "size({{ . }}) <= 3000 ? {{ . }} : {{ . }}.substring(0, 3000) + '...'"
{{- end }}

{{/* The driver's rule for the number of a user or group. */}}
{{- define "fsuser-csi.idRule" -}}
must be a number from 0 to 2147483647 in plain decimal digits, without sign, space or leading zero
{{- " (names are not looked up), such as 1000" }}
{{- end }}
