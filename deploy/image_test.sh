#!/bin/sh
# Builds the gateway's image with buildah, without a container engine, runs it, and asks it for an answer. Redis, a
# worker and two shards run beside it from the local environment. Needs root on Debian; installs what it needs.
set -eu
cd "$(dirname "$0")/.."

image=notellm-gateway:test
base=docker.io/library/python:3.11-slim-bookworm
work=$(mktemp -d)
bin=$PWD/.venv/bin
trap 'podman rm -f notellm-gateway-test >/dev/null 2>&1 || true; kill $(cat "$work"/*.pid 2>/dev/null) 2>/dev/null || true; rm -rf "$work"' EXIT

need="podman buildah runc conmon netavark aardvark-dns uidmap catatonit debootstrap redis-server curl"
dpkg -s $need >/dev/null 2>&1 || {
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need
}
cat >"$work/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["/usr/lib/podman", "/usr/libexec/podman"]
[network]
network_backend = "netavark"
CONF
export CONTAINERS_CONF="$work/containers.conf"

if ! podman image exists "$base"; then
  # The base image, made from Debian's packages where no registry of images can be reached.
  podman pull -q "$base" 2>/dev/null || {
    mirror=$(sed -n 's/^URIs: *//p; s/^deb  *\(\[[^]]*\] *\)\{0,1\}\(http[^ ]*\).*/\2/p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1)
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip,curl,libgomp1 \
      bookworm "$work/root" "$mirror" >"$work/debootstrap.log"
    ln -sf python3 "$work/root/usr/bin/python"
    rm -f "$work"/root/usr/lib/python3*/EXTERNALLY-MANAGED
    tar -C "$work/root" -c . | podman import -q - "$base"
  }
fi

pip_conf=/dev/null
[ -n "$("$bin/python" -m pip config list)" ] && {
  pip_conf="$work/pip.conf"
  echo "[global]" >"$pip_conf"
  "$bin/python" -m pip config list | sed -n "s/^\(global\|:env:\)\.\([a-z-]*\)='\(.*\)'$/\2 = \3/p" | grep -v '^find-links\|extra-index-url' | sort -u -t= -k1,1 >>"$pip_conf"
}
buildah bud --isolation chroot --pull-never --layers --format docker --target gateway \
  -v /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro \
  --secret "id=pip,src=$pip_conf" -t "$image" . >"$work/build.log" 2>&1 || { tail -n 30 "$work/build.log"; exit 1; }
podman image inspect "$image" --format 'image: {{.Size}} bytes, user {{.User}}'
podman run --rm --network none --no-healthcheck "$image" python -c "
import importlib.util, sys
heavy = [name for name in ('torch', 'transformers', 'tokenizers', 'faiss', 'pyarrow', 'pip') if importlib.util.find_spec(name)]
sys.exit(f'the image holds {heavy}' if heavy else 0)"

export NOTELLM_REDIS_URL=redis://127.0.0.1:16379/0 NOTELLM_STATE_DIR="$work"
export NOTELLM_WORKER__ADDRESSES='["127.0.0.1:19100"]' NOTELLM_INDEX__ADDRESSES='["127.0.0.1:19200","127.0.0.1:19201"]'
export NOTELLM_INDEX__SNAPSHOT_DIR="$work/index"
redis-server --port 16379 --bind 127.0.0.1 --dir "$work" --appendonly yes --appendfsync always --save '' >"$work/redis.log" & echo $! >"$work/redis.pid"
NOTELLM_OPS__PORT=0 "$bin/notellm" worker >"$work/worker.log" 2>&1 & echo $! >"$work/worker.pid"
for shard in 0 1; do
  NOTELLM_OPS__PORT=0 NOTELLM_INDEX__NUMBER=$shard "$bin/notellm" indexer >"$work/shard-$shard.log" 2>&1 & echo $! >"$work/shard-$shard.pid"
done
podman run -d --name notellm-gateway-test --network host --no-healthcheck --read-only --cap-drop all \
  --security-opt no-new-privileges --memory 512m -e NOTELLM_HTTP__ALLOW_OPEN=1 -e NOTELLM_HTTP__PORT=18000 \
  -e NOTELLM_OPS__PORT=19000 -e NOTELLM_REDIS_URL -e NOTELLM_WORKER__ADDRESSES -e NOTELLM_INDEX__ADDRESSES \
  "$image" >/dev/null

attempts=0
until curl -fs http://127.0.0.1:19000/readyz >/dev/null; do
  attempts=$((attempts + 1))
  [ "$attempts" -lt 120 ] || { podman logs notellm-gateway-test; tail -n 5 "$work"/*.log; exit 1; }
  sleep 0.5
done
api=http://127.0.0.1:18000
for note in a b c; do
  curl -fsS -X PUT "$api/notes/$note?wait=10" -H 'Content-Type: application/json' \
    -d "{\"title\": \"Three days in Kyoto, part $note\", \"hashtags\": [\"travel\"]}"
  echo
done
curl -fsS "$api/notes/a/related?k=2"
echo
curl -fsS -X POST "$api/notes/tags" -H 'Content-Type: application/json' -d '{"title": "A weekend of ramen in Osaka"}'
echo
curl -fsS http://127.0.0.1:19000/metrics | grep -E '^notellm_http_requests_total' | head -n 3
echo "the image answers"
