{{/*
What the policies that validate have in common: they look at pods and at what makes pods, refuse the first and warn of the second, unless told otherwise.
*/}}

{{- define "fsuser-csi.validated" -}}
matchConstraints:
  resourceRules:
  - apiGroups: [""]
    apiVersions: [v1]
    operations: [CREATE]
    resources: [pods]
  - apiGroups: [apps]
    apiVersions: [v1]
    operations: [CREATE, UPDATE]
    resources: [deployments, statefulsets, daemonsets]
  - apiGroups: [batch]
    apiVersions: [v1]
    operations: [CREATE, UPDATE]
    resources: [jobs, cronjobs]
matchConditions:
- name: has-a-volume-of-the-driver
  expression: >-
    (object.spec.?jobTemplate.spec.template.spec.or(object.spec.?template.spec).orValue(object.spec))
    .?volumes.orValue([]).exists(v, has(v.csi) && v.csi.driver == 'fsuser.csi.io')
variables:
- name: pod
  expression: object.spec.?jobTemplate.spec.template.spec.or(object.spec.?template.spec).orValue(object.spec)
- name: volumes
  expression: >-
    variables.pod.volumes.filter(v, has(v.csi) && v.csi.driver == 'fsuser.csi.io')
- name: attributes
  expression: variables.volumes.map(v, v.csi.?volumeAttributes.orValue({}))
- name: secretRefs
  expression: variables.volumes.map(v, v.csi.?nodePublishSecretRef.name.orValue(''))
{{- end }}

{{/* A pod may still be changed for the better when it is made, so what makes it is refused only where someone asked for it (templates). */}}
{{- define "fsuser-csi.validatedBindings" }}
{{- $policy := .policy }}
{{- $params := .params }}
{{- $root := .root }}
{{- $templates := .templates | default "Warn" }}
{{- range $name := list $policy (printf "%s-of-templates" $policy) }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ $name }}.fsuser.csi.io
  labels:
    {{- include "fsuser-csi.labels" $root | nindent 4 }}
spec:
  policyName: {{ $policy }}.fsuser.csi.io
  validationActions: [{{ eq $name $policy | ternary "Deny" $templates }}]
  {{- with $params }}
  paramRef:
    name: {{ . }}
    # Deny would be for every pod of the cluster: a parameter is looked for before the policy's conditions.
    parameterNotFoundAction: Allow
  {{- end }}
  matchResources:
    resourceRules:
    {{- if eq $name $policy }}
    - apiGroups: [""]
      apiVersions: [v1]
      operations: [CREATE]
      resources: [pods]
    {{- else }}
    - apiGroups: [apps, batch]
      apiVersions: [v1]
      operations: [CREATE, UPDATE]
      resources: [deployments, statefulsets, daemonsets, jobs, cronjobs]
    {{- end }}
{{- end }}
{{- end }}

{{/* The rules of the policy "allow", as annotations. A list that is null allows everything, an empty one nothing. */}}
{{- define "fsuser-csi.allowed" }}
{{- $allow := .Values.allow | default dict }}
{{- if $allow.enabled }}
{{- range $key, $list := $allow }}
{{- if kindIs "slice" $list }}
{{- $texts := list }}
{{- range $list }}
{{- $texts = append $texts (kindIs "string" . | ternary . (int64 . | toString)) }}
{{- end }}
{{- printf "fsuser.csi.io/allow-%s: %s\n" (lower $key) (join "," $texts | quote) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
