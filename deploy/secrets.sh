#!/bin/sh
# Makes the secrets of compose.yaml, once: a password for each user of Redis, its users file, what our processes prove to
# each other, the password of Grafana.
# The folder is closed to others; the files in it are readable, for in their containers other users read them.
#   sh deploy/secrets.sh [FOLDER]
#   sh deploy/secrets.sh FOLDER HOST:PORT,HOST:PORT    on a Redis Cluster of these nodes: docs/cluster.md
# With NOTELLM_CELLS above 1, for a store of several cells.
set -eu
here=$(dirname "$0")
folder=${1:-$here/secrets}
nodes=${2:-}
cells=${NOTELLM_CELLS:-1}
umask 077
mkdir -p "$folder"
chmod 700 "$folder"

password() { head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

# A folder of an earlier version has none.
if [ ! -e "$folder/rpc" ]; then
  password >"$folder/rpc"
  chmod 444 "$folder/rpc"
fi
if [ -e "$folder/redis-users" ]; then
  echo "$folder holds secrets already; remove it for new ones" >&2
  exit 0
fi

users="$here/redis/users.acl" names="gateway worker indexer ops" hashes="" scheme=redis place=redis:6379/0
if [ -n "$nodes" ]; then
  users="$users $here/redis/cluster.acl" names="$names replica cluster" scheme=redis+cluster place=$nodes
  tag="{c00}"
  [ "$cells" -eq 1 ] || tag="{c[0-9][0-9]}"
  hashes=";s/notellm:v1:/notellm:v1:$tag:/g"
elif [ "$cells" -gt 1 ]; then  # on one Redis, the first cell has no tag
  hashes=";s/\(%[RW]*\)\{0,1\}~notellm:v1:\([^ ]*\)/& \1~notellm:v1:{c[0-9][0-9]}:\2/g"
fi
for user in $names; do
  secret=$(password)
  printf '%s://%s:%s@%s\n' "$scheme" "$user" "$secret" "$place" >"$folder/redis-$user"
  name=$(echo "$user" | tr '[:lower:]' '[:upper:]')
  hashes="$hashes;s/@$name@/$(printf %s "$secret" | sha256sum | cut -d ' ' -f 1)/"
done
password >"$folder/grafana-admin"
# One line a user: a line that begins with a space goes on with the one before.
# shellcheck disable=SC2086 # one word a file
sed -e '/^#/d' -e '/^$/d' -e "${hashes#;}" $users |
  awk '/^ / { sub(/^ +/, " "); printf "%s", $0; next } NR > 1 { print "" } { printf "%s", $0 } END { print "" }' \
    >"$folder/redis-users"
chmod 444 "$folder"/*
