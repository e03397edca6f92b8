{{/* The bindings of a policy, then the policy up to its variables. A caller gives kind (Mutating or Validating), name and condition. */}}
{{- define "fsuser-csi.policy" -}}
{{- $pods := printf "{apiGroups: [\"\"], apiVersions: [v1], operations: [%s], resources: [pods]}" (.operations | default "CREATE") }}
{{- $owners := "{apiGroups: [apps, batch], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments, statefulsets, daemonsets, jobs, cronjobs]}" }}
{{- $bindings := list (list .name .actions $pods) }}
{{- with .templates }}{{ $bindings = append $bindings (list (printf "%s-of-templates" $.name) . $owners) }}{{ end }}
{{- range $bindings }}
apiVersion: admissionregistration.k8s.io/v1
kind: {{ $.kind }}AdmissionPolicyBinding
metadata:
  name: {{ index . 0 }}.fsuser.csi.io
  labels:
    {{- include "fsuser-csi.labels" $.root | nindent 4 }}
spec:
  policyName: {{ $.name }}.fsuser.csi.io
  {{- with index . 1 }}
  validationActions: [{{ . }}]
  {{- end }}
  {{- if $.paramKind }}
  # Deny would refuse every pod of the cluster: the API server looks for the parameter before the conditions of the policy.
  paramRef: {name: fsuser.csi.io, parameterNotFoundAction: Allow}
  {{- end }}
  matchResources:
    resourceRules:
    - {{ index . 2 }}
---
{{- end }}
apiVersion: admissionregistration.k8s.io/v1
kind: {{ .kind }}AdmissionPolicy
metadata:
  name: {{ .name }}.fsuser.csi.io
  labels:
    {{- include "fsuser-csi.labels" .root | nindent 4 }}
spec:
  # A policy runs in the API server, so nothing can be down. It is not called for pods that its condition excludes.
  failurePolicy: {{ .failurePolicy | default "Fail" }}
  {{- if eq .kind "Mutating" }}
  # A webhook that runs later may add volumes.
  reinvocationPolicy: IfNeeded
  {{- end }}
  {{- with .paramKind }}
  paramKind: {apiVersion: storage.k8s.io/v1, kind: {{ . }}}
  {{- end }}
  matchConstraints:
    resourceRules:
    - {{ $pods }}
    {{- if .templates }}
    - {{ $owners }}
    {{- end }}
  matchConditions:
  - name: has-such-a-volume
    expression: >-
      {{- .condition | nindent 6 }}
  variables:
{{- end }}

{{/* The volumes of the driver in a pod or in a template of pods. */}}
{{- define "fsuser-csi.ofTheDriver" -}}
(object.spec.?jobTemplate.spec.template.spec.or(object.spec.?template.spec).orValue(object.spec))
.?volumes.orValue([]).exists(v, has(v.csi) && v.csi.driver == 'fsuser.csi.io')
{{- end }}

{{/* What the policies that validate have in common. */}}
{{- define "fsuser-csi.volumeVariables" -}}
- name: pod
  expression: object.spec.?jobTemplate.spec.template.spec.or(object.spec.?template.spec).orValue(object.spec)
- name: volumes
  expression: variables.pod.volumes.filter(v, has(v.csi) && v.csi.driver == 'fsuser.csi.io')
- name: attributes
  expression: variables.volumes.map(v, v.csi.?volumeAttributes.orValue({}))
- name: secretRefs
  expression: variables.volumes.map(v, v.csi.?nodePublishSecretRef.name.orValue(''))
- name: byName
  expression: "variables.pod.volumes.transformMapEntry(_, v, {v.name: dyn(v)})"
# For each volume of the driver the volume that its attribute volume names, or none.
- name: described
  expression: >-
    variables.attributes.map(a, a[?'volume'].orValue('') in variables.byName ? [variables.byName[a.volume]] : [])
{{- end }}

{{/* The driver's words for what is no user or group. */}}
{{- define "fsuser-csi.idRule" -}}
must be a number from 0 to 2147483647 in plain decimal digits, without sign, space or leading zero (names are not looked up), such as 1000
{{- end }}
