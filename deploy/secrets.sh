#!/bin/sh
# Makes the secrets of compose.yaml, once: a password for each user of Redis, its users file, what our processes prove to
# each other, the password of Grafana.
# The folder is closed to others; the files in it are readable, for in their containers other users read them.
#   sh deploy/secrets.sh [FOLDER]
set -eu
here=$(dirname "$0")
folder=${1:-$here/secrets}
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

hashes=""
for user in gateway worker indexer ops; do
  secret=$(password)
  printf 'redis://%s:%s@redis:6379/0\n' "$user" "$secret" >"$folder/redis-$user"
  name=$(echo "$user" | tr '[:lower:]' '[:upper:]')
  hashes="$hashes;s/@$name@/$(printf %s "$secret" | sha256sum | cut -d ' ' -f 1)/"
done
password >"$folder/grafana-admin"
# One line a user: a line that begins with a space goes on with the one before.
sed -e '/^#/d' -e '/^$/d' -e "${hashes#;}" "$here/redis/users.acl" |
  awk '/^ / { sub(/^ +/, " "); printf "%s", $0; next } NR > 1 { print "" } { printf "%s", $0 } END { print "" }' \
    >"$folder/redis-users"
chmod 444 "$folder"/*
