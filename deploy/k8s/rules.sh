#!/bin/sh
# Write the PrometheusRules of Kubernetes anew from deploy/prometheus/rules: the same groups, one object a file.
set -eu
cd "$(dirname "$0")"
out=components/monitoring/rules.yaml
echo "# Made by deploy/k8s/rules.sh from deploy/prometheus/rules; change it there." >"$out"
for file in ../prometheus/rules/*.yml; do
  test -e "$file" || continue
  # Beside the rules lie their tests, which hold no groups.
  grep -q '^groups:' "$file" || continue
  name=$(basename "$file" .yml | tr _ -)
  printf -- '---\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: %s\nspec:\n' "$name" >>"$out"
  sed 's/^./  &/' "$file" >>"$out"
done
