{{/*
What the policies of fsUser have in common: which user a pod's volumes are to have, which volumes those are, and why one is left alone.
In an include, so that the policy that rewrites and the one that tells cannot differ.
*/}}

{{/* "true", or nothing. */}}
{{- define "fsuser-csi.fsUser" -}}
{{- if (.Values.fsUser | default dict).enabled -}}true{{- end -}}
{{- end }}

{{/* The driver's own pods are not touched, whatever is annotated. */}}
{{- define "fsuser-csi.fsUserScope" -}}
namespaceSelector:
  matchExpressions:
  - {key: kubernetes.io/metadata.name, operator: NotIn, values: [{{ .Release.Namespace }}]}
{{- end }}

{{/* Nearly every pod has the volume of its service account. */}}
{{- define "fsuser-csi.fsUserMatch" -}}
object.spec.?volumes.orValue([]).exists(v,
  has(v.secret) || has(v.configMap) || has(v.downwardAPI) || has(v.projected) && !v.name.startsWith('kube-api-access-'))
{{- end }}

{{/* Who the user is: the pod says, else its namespace, else there is none. */}}
{{- define "fsuser-csi.fsUserAnnotations" -}}
- name: fsUser
  expression: >-
    object.metadata.?annotations[?'fsuser.csi.io/fs-user'].orValue(
    namespaceObject.metadata.?annotations[?'fsuser.csi.io/fs-user'].orValue('none'))
- name: fsGroup
  expression: >-
    object.metadata.?annotations[?'fsuser.csi.io/fs-group'].orValue(
    namespaceObject.metadata.?annotations[?'fsuser.csi.io/fs-group'].orValue('none'))
{{- end }}

{{- define "fsuser-csi.fsUserVariables" -}}
{{ include "fsuser-csi.fsUserAnnotations" . }}
# Kubelet makes a mirror pod to show a static one, which runs already.
- name: wanted
  expression: >-
    [variables.fsUser, variables.fsGroup == 'none' ? '0' : variables.fsGroup]
    .all(n, n.matches('^(0|[1-9][0-9]{0,9})$') && int(n) <= 2147483647)
    && !('kubernetes.io/config.mirror' in object.metadata.?annotations.orValue({}))
- name: windows
  expression: >-
    object.spec.?os.name.orValue('') == 'windows' || object.spec.?nodeSelector[?'kubernetes.io/os'].orValue('') == 'windows'
- name: volumes
  expression: object.spec.?volumes.orValue([])
- name: containers
  expression: object.spec.?initContainers.orValue([]) + object.spec.?containers.orValue([])
# Of each container, sorted so that what lies beneath a path follows it at once: as \x01 the slash, which ends each path, is before all else.
- name: mounts
  expression: >-
    variables.containers.map(c, c.?volumeMounts.orValue([]).map(m, {
      'volume': string(m.name),
      'path': '\x01' + m.mountPath.split('/').filter(e, e != '' && e != '.').map(e, e + '\x01').join('')}).sortBy(m, m.path))
- name: upward
  expression: >-
    variables.containers.exists(c, c.?volumeMounts.orValue([]).exists(m, m.mountPath.matches('(^|/)[.][.](/|$)')))
- name: mounted
  expression: variables.containers.map(c, c.?volumeMounts.orValue([]).map(m, m.name)).flatten()
- name: subPathed
  expression: >-
    variables.containers.map(c, c.?volumeMounts.orValue([]).filter(m, m.?subPath.orValue('') != '' || m.?subPathExpr.orValue('') != '').map(m, m.name)).flatten()
- name: mountedOver
  expression: >-
    variables.mounts.map(ms, ms.transformList(i, m, i + 1 < size(ms) && ms[i + 1].path.startsWith(m.path), m.volume)).flatten()
# Each with its sources, in the form of a projected volume's. What has not exactly one kind of source is left for the API server to refuse.
# References, our own and those of declare-references, are mounted by nobody; kube-api-access-* is the service account's.
- name: found
  expression: >-
    !variables.wanted ? [] : variables.volumes.transformList(i, v,
      size(dyn(v)) == 2 && (has(v.secret) || has(v.configMap) || has(v.downwardAPI) || has(v.projected) && !v.name.startsWith('kube-api-access-'))
        && !(v.name.matches('^fsuser-csi-ref-[0-9]+$') && !(v.name in variables.mounted)),
      has(v.secret) ? {'at': dyn(i), 'name': dyn(v.name), 'kind': dyn('secret'), 'body': dyn(v.secret), 'sources': dyn([
        {'secret': {'name': dyn(v.secret.?secretName.orValue('')), ?'items': v.secret.?items, ?'optional': v.secret.?optional}}])}
      : has(v.configMap) ? {'at': dyn(i), 'name': dyn(v.name), 'kind': dyn('configMap'), 'body': dyn(v.configMap),
        'sources': dyn([{'configMap': v.configMap}])}
      : has(v.downwardAPI) ? {'at': dyn(i), 'name': dyn(v.name), 'kind': dyn('downwardAPI'), 'body': dyn(v.downwardAPI),
        'sources': dyn([{'downwardAPI': v.downwardAPI}])}
      : {'at': dyn(i), 'name': dyn(v.name), 'kind': dyn('projected'), 'body': dyn(v.projected), 'sources': v.projected.?sources.orValue(null) == null ? dyn([]) : dyn(v.projected.sources)})
# keys are the items of Secrets and ConfigMaps, fields those of the downward API.
- name: parts
  expression: >-
    variables.found.map(f, {
      'objects': dyn(f.sources.filter(s, has(s.secret)).map(s, s.secret) + f.sources.filter(s, has(s.configMap)).map(s, s.configMap)),
      'downward': dyn(f.sources.filter(s, has(s.downwardAPI)).map(s, s.downwardAPI.?items.orValue([]))),
      'other': dyn(f.sources.exists(s, size(dyn(s)) != 1 || !(has(s.secret) || has(s.configMap) || has(s.downwardAPI))))})
- name: items
  expression: >-
    variables.parts.map(p, {
      'keys': dyn(p.objects.map(o, o.?items.orValue([])).flatten()),
      'fields': dyn(p.downward.flatten())})
- name: paths
  expression: >-
    variables.items.map(i, (i.keys + i.fields).map(f, f.?path.orValue('').replace('/', '\x01')).sort())
# The items of each source as JSON, with '&' as an escape: the driver takes that for the beginning of a YAML anchor.
- name: itemTexts
  expression: >-
    variables.found.map(f, f.sources.map(s, (has(s.secret) ? s.secret : has(s.configMap) ? s.configMap : s.?downwardAPI.orValue({}))
      .?items.orValue([]).map(i, '{'
        + (has(i.fieldRef) ? '"fieldRef":{"fieldPath":' + strings.quote(i.fieldRef.fieldPath) + '}'
          : has(i.resourceFieldRef) ? '"resourceFieldRef":{"containerName":' + strings.quote(i.resourceFieldRef.?containerName.orValue(''))
            + ',"resource":' + strings.quote(i.resourceFieldRef.resource)
            + (i.resourceFieldRef.?divisor.orValue('0') == '0' ? '' : ',"divisor":' + strings.quote(i.resourceFieldRef.divisor)) + '}'
          : '"key":' + strings.quote(i.?key.orValue('')))
        + ',"path":' + strings.quote(i.?path.orValue('')).replace('&', '\\u0026')
        + (has(i.mode) ? ',"mode":' + string(i.mode) : '')
        + (has(i.user) ? ',"uid":' + string(i.user) : '') + '}').join(',')))
# What becomes the attribute items of a Secret or ConfigMap, sources of the others.
- name: texts
  expression: >-
    lists.range(size(variables.found)).map(n, variables.found[n].kind in ['secret', 'configMap']
      ? (variables.itemTexts[n][0] == '' ? '' : '[' + variables.itemTexts[n][0] + ']')
      : '[' + variables.found[n].sources.transformList(i, s,
          (has(s.secret) ? '{"secret":{"name":' + strings.quote(s.secret.?name.orValue('')) + (s.secret.?optional.orValue(false) ? ',"optional":true' : '')
            : has(s.configMap) ? '{"configMap":{"name":' + strings.quote(s.configMap.?name.orValue('')) + (s.configMap.?optional.orValue(false) ? ',"optional":true' : '')
            : '{"downwardAPI":{')
          + (variables.itemTexts[n][i] == '' ? '' : (has(s.downwardAPI) ? '' : ',') + '"items":[' + variables.itemTexts[n][i] + ']') + '}}').join(',') + ']')
# The API server bounds what an expression may cost: sorting costs the square of the number, and declare-references reads all texts again.
- name: tooLarge
  expression: >-
    size(variables.volumes) > 400 || size(variables.mounted) > 400 || variables.found.map(f, size(f.sources)).sum() > 400
    || variables.items.map(i, size(i.keys) + size(i.fields)).sum() > 400
    || variables.items.map(i, i.keys + i.fields).flatten().map(i, size(i.?path.orValue(''))).sum() > 65536
    || variables.texts.map(t, size(bytes(t))).sum() > 131072
# Why a volume is left alone, or nothing. What the driver would refuse, or do otherwise than Kubernetes' own volume.
- name: why
  expression: >-
    lists.range(size(variables.found)).map(n,
      variables.windows ? 'the pod is for Windows'
      : variables.tooLarge ? 'the pod has more than 400 volumes, mounts, sources or items, or they are too long together: too much for a policy'
      : variables.parts[n].other
        ? 'a serviceAccountToken, clusterTrustBundle or podCertificate stays with the volumes of Kubernetes'
      : size(variables.found[n].sources) > 64 ? 'it has more than the 64 sources that the driver takes'
      : size(variables.found[n].sources) == 0 || variables.parts[n].downward.exists(d, size(d) == 0) ? 'it has a source without content'
      : !variables.parts[n].objects.all(o, size(o.?name.orValue('')) <= 253
          && o.?name.orValue('').matches(r'^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$'))
        ? 'what it names can be no Secret and no ConfigMap'
      : variables.found[n].name in variables.mountedOver
        ? 'another volume is mounted beneath it, and only Kubernetes makes mount points in its own volumes'
      : variables.upward && variables.found[n].name in variables.mounted ? 'a mountPath of the pod has .. in it, so what is mounted beneath what is not told here'
      : variables.found[n].name in variables.subPathed && variables.parts[n].objects.exists(o, o.?optional.orValue(false))
        ? 'it is optional and mounted by subPath, and only Kubernetes makes a directory where the file is missing'
      : !([variables.found[n].body.?defaultMode.orValue(0)] + (variables.items[n].keys + variables.items[n].fields).map(i, i.?mode.orValue(0)))
          .all(m, m >= 0 && m <= 511) ? 'a mode is not from 0 to 0777'
      : !([variables.found[n].body.?defaultUser.orValue(0)] + (variables.items[n].keys + variables.items[n].fields).map(i, i.?user.orValue(0)))
          .all(u, u >= 0 && u <= 2147483647) ? 'a user is not from 0 to 2147483647'
      : !variables.items[n].keys.all(i, i.?key.orValue('').matches('^[-._a-zA-Z0-9]{1,253}$') && i.key != '.' && !i.key.startsWith('..'))
        ? 'an item has a key that no object can have'
      : (variables.items[n].keys + variables.items[n].fields).exists(i,
          i.?path.orValue('').matches(r'[\p{Cc}\\:\x{2028}\x{2029}\x{feff}\x{fffe}\x{ffff}]|(^|/)(\.\.?)?(/|$)|^\.\.')
          || size(bytes(i.path)) > 4096 || i.path.split('/').exists(e, size(bytes(e)) > 255))
        ? 'the driver does not take the path of an item'
      : lists.range(size(variables.paths[n])).exists(i, i > 0 && (variables.paths[n][i] == variables.paths[n][i - 1]
          || variables.paths[n][i].startsWith(variables.paths[n][i - 1] + '\x01')))
        ? 'two items have the same path, or one lies below another'
      : !variables.items[n].fields.all(f, has(f.fieldRef) != has(f.resourceFieldRef) && (has(f.fieldRef)
          ? f.fieldRef.?apiVersion.orValue('v1') == 'v1' && f.fieldRef.fieldPath.matches(
            r"^metadata\.(name|namespace|uid|labels|annotations|(labels|annotations)\['([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?'\])$")
          : f.resourceFieldRef.resource.matches('^(limits|requests)[.](cpu|memory|ephemeral-storage|hugepages-[1-9][0-9]*([kMG]|[KMG]i)?)$')
            && f.resourceFieldRef.?divisor.orValue('0') in (f.resourceFieldRef.resource.endsWith('.cpu') ? ['0', '1', '1m']
              : ['0', '1', '1k', '1M', '1G', '1T', '1P', '1E', '1Ki', '1Mi', '1Gi', '1Ti', '1Pi', '1Ei'])))
        ? 'a field of the downward API is none that the driver knows'
      : !variables.items[n].fields.all(f, !has(f.resourceFieldRef) || variables.containers.exists(c, c.name == f.resourceFieldRef.?containerName.orValue('')
          && (f.resourceFieldRef.resource.startsWith('requests.')
            || c.?resources.?limits[?f.resourceFieldRef.resource.substring(7)].orValue('0') != '0')))
        ? 'it shows a limit that the container does not set, in place of which Kubernetes tells what the node has'
      : size(bytes(variables.texts[n])) > 65536 ? 'its items and sources are longer than the 64 KiB that the driver takes'
      : '')
{{- end }}
