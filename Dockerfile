# One small image a process: docker build --target gateway|indexer|worker|worker-cuda|trainer|trainer-cuda .
# For x86-64; gateway and indexer for arm64, too. Packages come by version and hash, as deploy/requirements/lock.py wrote
# them. Where pip needs a configuration of its own (a mirror, a password), give it as a secret; where torch's CPU build
# is, as an argument:
#   docker build --secret id=pip,src=pip.conf --build-arg PIP_EXTRA_INDEX_URL --target worker .
ARG BASE=docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# hadolint ignore=DL3006
FROM ${BASE} AS build
# The same sources give the same layers: no times in wheels, no random order in bytecode.
ENV SOURCE_DATE_EPOCH=1767225600 PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY deploy/requirements/build.txt build.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    python -m venv /build && /build/bin/pip install --require-hashes -r build.txt && python -m venv --without-pip /opt/notellm

FROM build AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY model model
COPY indexer indexer
RUN /build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheel .

# Bytecode that is never checked against its source: nothing can write here, and times do not matter.
FROM build AS build-gateway
COPY deploy/requirements/gateway.txt packages.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    /build/bin/pip --python /opt/notellm install --require-hashes -r packages.txt
COPY --from=wheel /wheel /wheel
RUN /build/bin/pip --python /opt/notellm install --no-deps --no-index /wheel/*.whl \
 && /opt/notellm/bin/python -m compileall -q -x '/(testing|tests)/' --invalidation-mode unchecked-hash /opt/notellm/lib

FROM build AS build-indexer
COPY deploy/requirements/indexer.txt packages.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    /build/bin/pip --python /opt/notellm install --require-hashes -r packages.txt
COPY --from=wheel /wheel /wheel
RUN /build/bin/pip --python /opt/notellm install --no-deps --no-index /wheel/*.whl \
 && /opt/notellm/bin/python -m compileall -q -x '/(testing|tests)/' --invalidation-mode unchecked-hash /opt/notellm/lib

FROM build AS build-worker
ARG PIP_EXTRA_INDEX_URL
COPY deploy/requirements/worker.txt packages.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    /build/bin/pip --python /opt/notellm install --require-hashes -r packages.txt
COPY --from=wheel /wheel /wheel
RUN /build/bin/pip --python /opt/notellm install --no-deps --no-index /wheel/*.whl \
 && /opt/notellm/bin/python -c "import sys, torch; sys.exit(torch.version.cuda and 'torch is the CUDA build')" \
 && /opt/notellm/bin/python -m compileall -q -x '/(testing|tests)/' --invalidation-mode unchecked-hash /opt/notellm/lib

FROM build AS build-worker-cuda
COPY deploy/requirements/worker-cuda.txt packages.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    /build/bin/pip --python /opt/notellm install --require-hashes -r packages.txt
COPY --from=wheel /wheel /wheel
RUN /build/bin/pip --python /opt/notellm install --no-deps --no-index /wheel/*.whl \
 && /opt/notellm/bin/python -c "import sys, torch; sys.exit(not torch.version.cuda and 'torch is the CPU build')" \
 && /opt/notellm/bin/python -m compileall -q -x '/(testing|tests)/' --invalidation-mode unchecked-hash /opt/notellm/lib

# Some packages of the trainer come as source: setuptools is at hand, and nothing is fetched to build them.
FROM build AS build-trainer
ARG PIP_EXTRA_INDEX_URL
COPY deploy/requirements/trainer.txt packages.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    /build/bin/pip --python /opt/notellm install --require-hashes -r packages.txt
COPY --from=wheel /wheel /wheel
RUN /build/bin/pip --python /opt/notellm install --no-deps --no-index /wheel/*.whl \
 && /opt/notellm/bin/python -c "import sys, torch; sys.exit(torch.version.cuda and 'torch is the CUDA build')" \
 && /opt/notellm/bin/python -m compileall -q -x '/(testing|tests)/' --invalidation-mode unchecked-hash /opt/notellm/lib

FROM build AS build-trainer-cuda
COPY deploy/requirements/trainer-cuda.txt packages.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    /build/bin/pip --python /opt/notellm install --require-hashes -r packages.txt
COPY --from=wheel /wheel /wheel
RUN /build/bin/pip --python /opt/notellm install --no-deps --no-index /wheel/*.whl \
 && /opt/notellm/bin/python -c "import sys, torch; sys.exit(not torch.version.cuda and 'torch is the CPU build')" \
 && /opt/notellm/bin/python -m compileall -q -x '/(testing|tests)/' --invalidation-mode unchecked-hash /opt/notellm/lib

# The base without what builds or installs Python packages, and without any way to another user.
# hadolint ignore=DL3006
FROM ${BASE} AS base
RUN rm -rf /usr/local/bin/pip* /usr/bin/pip* /usr/local/lib/python3*/site-packages/* /usr/lib/python3/dist-packages/* \
      /usr/local/lib/python3*/ensurepip /usr/lib/python3*/ensurepip /usr/share/python-wheels /root/.cache \
      /var/cache/* /var/lib/apt/lists/* /var/log/* /tmp/* \
 && find / -xdev -type f -perm /6000 -exec chmod a-s '{}' + \
 && find / -xdev -type d -name __pycache__ -prune -exec rm -rf '{}' + \
 && echo 'notellm:x:10001:10001::/var/lib/notellm:/usr/sbin/nologin' >>/etc/passwd \
 && echo 'notellm:x:10001:' >>/etc/group

FROM scratch AS process
ARG VERSION=0.1.0
ARG REVISION=
ARG SOURCE=
LABEL org.opencontainers.image.title="NoteLLM" \
      org.opencontainers.image.description="Related notes, hashtags and categories for a community of notes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
# As one layer, or what was removed would still be in the layers below.
# hadolint ignore=DL3067
COPY --from=base / /
# Volumes begin with the owner of the folder that they cover.
RUN install -d -o 10001 -g 10001 /var/lib/notellm /var/lib/notellm/keys /var/lib/notellm/index
ENV PATH=/opt/notellm/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 HOME=/tmp \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NOTELLM_OPS__HOST=0.0.0.0 NOTELLM_INDEX__SNAPSHOT_DIR=/var/lib/notellm/index
USER 10001:10001
WORKDIR /var/lib/notellm
ENTRYPOINT ["notellm"]

FROM process AS served
EXPOSE 9000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9000/livez', timeout=2)"]

FROM served AS gateway
COPY deploy/requirements/gateway.cdx.json /usr/share/notellm/sbom.cdx.json
COPY --from=build-gateway /opt/notellm /opt/notellm
# It refuses to listen here until NOTELLM_KEYS_FILE names its keys, or NOTELLM_HTTP__ALLOW_OPEN=1 says that the network
# around the container is closed.
ENV NOTELLM_HTTP__HOST=0.0.0.0
EXPOSE 8000
CMD ["gateway"]

FROM served AS indexer
COPY deploy/requirements/indexer.cdx.json /usr/share/notellm/sbom.cdx.json
COPY --from=build-indexer /opt/notellm /opt/notellm
EXPOSE 9200
CMD ["indexer"]

FROM served AS worker
COPY deploy/requirements/worker.cdx.json /usr/share/notellm/sbom.cdx.json
COPY --from=build-worker /opt/notellm /opt/notellm
EXPOSE 9100
CMD ["worker"]

# The one image with a compiler: vLLM's kernels are finished on the GPU that they meet.
FROM served AS worker-cuda
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENV NOTELLM_WORKER__BACKEND=vllm NOTELLM_WORKER__SERVING_DIR=/var/lib/notellm/serving XDG_CACHE_HOME=/var/lib/notellm/cache
COPY deploy/requirements/worker-cuda.cdx.json /usr/share/notellm/sbom.cdx.json
COPY --from=build-worker-cuda /opt/notellm /opt/notellm
EXPOSE 9100
CMD ["worker"]

FROM process AS trainer
ENV MPLCONFIGDIR=/tmp
COPY deploy/requirements/trainer.cdx.json /usr/share/notellm/sbom.cdx.json
COPY --from=build-trainer /opt/notellm /opt/notellm
HEALTHCHECK NONE
CMD ["train", "--help"]

FROM process AS trainer-cuda
ENV MPLCONFIGDIR=/tmp
COPY deploy/requirements/trainer-cuda.cdx.json /usr/share/notellm/sbom.cdx.json
COPY --from=build-trainer-cuda /opt/notellm /opt/notellm
HEALTHCHECK NONE
CMD ["train", "--help"]
