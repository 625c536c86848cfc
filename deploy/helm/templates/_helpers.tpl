{{/* Each takes a value and, as JSON, what kustomize wrote; the third, where it is used, is the list of the sets of shards. */}}
{{- define "notellm.or" -}}
{{- if kindIs "invalid" (index . 0) }}{{ index . 1 }}{{ else }}{{ toJson (index . 0) }}{{ end -}}
{{- end }}

{{/* A list that a variable holds as text. */}}
{{- define "notellm.list" -}}
{{- if kindIs "invalid" (index . 0) }}{{ index . 1 }}{{ else }}{{ toJson (toJson (index . 0)) }}{{ end -}}
{{- end }}

{{/* The stream of jobs of the model in this folder, which is named by its fingerprint. */}}
{{- define "notellm.jobs" -}}
{{- if kindIs "invalid" (index . 0) }}{{ index . 1 }}{{ else }}{{ toJson (regexReplaceAll "[^:]*$" (fromJson (printf `{"stream":%s}` (index . 1))).stream (base (index . 0))) }}{{ end -}}
{{- end }}

{{/* Where gateways find the shards: one entry a shard, its replicas with commas between. */}}
{{- define "notellm.shards" -}}
{{- if kindIs "invalid" (index . 0) }}{{ index . 1 }}{{ else }}
{{- $sets := index . 2 }}{{ $shards := list }}
{{- range $number := until (int (index . 0)) }}
{{- $replicas := list }}
{{- range $sets }}{{ $replicas = append $replicas (printf "%s-%d.indexer:9200" . $number) }}{{ end }}
{{- $shards = append $shards (join "," $replicas) }}
{{- end }}
{{- toJson (toJson $shards) }}{{ end -}}
{{- end }}

{{/* Where an indexer listens, once for each shard. */}}
{{- define "notellm.listen" -}}
{{- if kindIs "invalid" (index . 0) }}{{ index . 1 }}{{ else }}
{{- $given := (fromJson (printf `{"list":%s}` (fromJson (printf `{"text":%s}` (index . 1))).text)).list }}{{ $shards := list }}
{{- range until (int (index . 0)) }}{{ $shards = append $shards (first $given) }}{{ end }}
{{- toJson (toJson $shards) }}{{ end -}}
{{- end }}

{{/* An image of this chart: registry, name and tag as kustomize wrote them, or from the values. */}}
{{- define "notellm.image" -}}
{{- $images := (index . 0).Values.images }}
{{- $registry := kindIs "invalid" $images.registry | ternary (index . 1) $images.registry }}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end }}{{ index . 2 }}:{{ $images.tag | default (index . 3) -}}
{{- end }}

{{/* The settings of every process, and their name, which follows them so that pods start anew when they change. */}}
{{- define "notellm.settings" -}}
{{- $values := (index . 0).Values }}{{ $data := fromJson (index . 1) }}
{{- with $values.checkpoint }}{{ $_ := set $data "NOTELLM_CHECKPOINT" . }}{{ end }}
{{- range $name, $value := $values.settings }}{{ $_ := set $data $name (kindIs "string" $value | ternary $value (toJson $value)) }}{{ end }}
{{- toJson $data -}}
{{- end }}
{{- define "notellm.settings.name" -}}
{{- $data := include "notellm.settings" (list (index . 0) (index . 2)) }}
{{- if eq $data (toJson (fromJson (index . 2))) }}{{ index . 1 }}{{ else }}notellm-settings-{{ $data | sha256sum | trunc 10 }}{{ end -}}
{{- end }}
