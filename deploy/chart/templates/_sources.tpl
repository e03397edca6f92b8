{{/*
The objects that the attribute sources names, for expressions that have a variable attributes: the volumeAttributes of the driver's volumes.
*/}}
{{- define "fsuser-csi.sourcesVariables" -}}
# The attribute sources is YAML or JSON. Its tokens: a dash that begins an entry, a quoted text, a comment, a plain text, a bracket or comma,
# and a quote that never ends; to a text belongs the colon that makes it a key. That is enough, since a name belongs to the kind before it.
- name: tokens
  expression: >-
    variables.attributes.map(a, a[?'sources'].orValue('')).filter(s, s != '' && size(s) <= 65536).map(s, s.findAll(
    r"(?:^|\n)[ \t]*-(?:\s|$)|\x22(?:[^\x22\\]|\\.)*\x22(?:\s*:)?|'(?:[^']|'')*'(?:\s*:)?|#[^\n]*|(?:[^\s,\[\]{}'\x22#:]|:+[^\s,\[\]{}:])(?:[ \t]*(?:[^\s,\[\]{}#:]|:+[^\s,\[\]{}:])|#)*(?:[ \t]*:)?|[,\[\]{}'\x22:]"))
    .map(ts, size(ts) <= 20000 ? ts : [])
# Of each token one letter: the keys Secret, ConfigMap, Name, one of the others that such an entry has (K), any other (X); what divides. The
# rest are texts, behind an equals sign those that could be a name.
- name: letters
  expression: >-
    {',': ',', '[': ',', ']': ',', '{': ',', '}': ','
    {{- $keys := dict "secret" "S" "configMap" "C" "name" "N" "items" "K" "optional" "K" "key" "K" "path" "K" "mode" "K" "uid" "K" "gid" "K" }}
    {{- range $key, $letter := $keys }}
    {{- range list "" "'" "\"" }}, {{ printf "%s%s%s:" . $key . | quote }}: '{{ $letter }}'{{ end }}
    {{- end }} }
- name: outlines
  expression: >-
    variables.tokens.map(ts, ts.filter(t, !t.startsWith('#')).map(t, variables.letters[?t].orValue(
      t.endsWith(':') ? variables.letters[?t.replace(' ', '').replace('\t', '')].orValue('X')
      : t.matches('^(\n[ \t]*-\\s?|[ \t]*-\\s)$') ? ','
      : t.matches('^[\'"]?[a-z0-9][-.a-z0-9]*[\'"]?$') ? '=' + t
      : '=?')).join(' '))
{{- range $kind, $letter := dict "Secrets" "S" "ConfigMaps" "C" }}
- name: listed{{ $kind }}
  expression: >-
    variables.outlines.join(' X ').findAll('{{ $letter }} [^SCNX]*N =[^ ?]+( [^=]|$)')
    .map(m, m.substring(m.indexOf('N =') + 3).split(' ')[0])
    .filter(n, !n.matches('^([0-9.]+|y|n|yes|no|on|off|true|false|null)$')).map(n, n.replace('"', '').replace('\'', ''))
{{- end }}
{{- end }}
