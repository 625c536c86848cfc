# One small image a process: docker build --target gateway|indexer|worker .
# Where pip needs a configuration of its own (a mirror, an index with CPU builds of torch), give it as a secret:
#   docker build --secret id=pip,src=pip.conf --target worker .
FROM docker.io/library/python:3.11-slim-bookworm AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM base AS source
WORKDIR /source
RUN python -m venv /opt/notellm
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
COPY model model
COPY indexer indexer

FROM source AS build-gateway
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    /opt/notellm/bin/pip install -c constraints.txt '.[gateway]' \
 && /opt/notellm/bin/pip uninstall -y pip setuptools

FROM source AS build-indexer
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    /opt/notellm/bin/pip install -c constraints.txt '.[indexer]' \
 && /opt/notellm/bin/pip uninstall -y pip setuptools

# TORCH=cpu or cuda is what the build asserts: an image that took the CUDA build unasked is four times as large.
FROM source AS build-worker
ARG TORCH=cpu
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    /opt/notellm/bin/pip install -c constraints.txt torch==2.13.0 \
 && /opt/notellm/bin/pip install -c constraints.txt '.[hf]' \
 && /opt/notellm/bin/python -c "import sys, torch; found = 'cuda' if torch.version.cuda else 'cpu'; sys.exit(found != '${TORCH}' and f'torch is the {found} build, not ${TORCH}')" \
 && /opt/notellm/bin/pip uninstall -y pip setuptools

FROM base AS process
LABEL org.opencontainers.image.title="NoteLLM" org.opencontainers.image.licenses="Apache-2.0"
# A gateway refuses to listen here until NOTELLM_KEYS_FILE names its keys, or NOTELLM_HTTP__ALLOW_OPEN=1 says that the
# network around the container is closed.
ENV PATH=/opt/notellm/bin:$PATH NOTELLM_HTTP__HOST=0.0.0.0 NOTELLM_OPS__HOST=0.0.0.0
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin notellm
USER 10001
WORKDIR /tmp
EXPOSE 9000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9000/livez', timeout=2)"]

FROM process AS gateway
COPY --from=build-gateway /opt/notellm /opt/notellm
EXPOSE 8000
CMD ["notellm", "gateway"]

FROM process AS indexer
COPY --from=build-indexer /opt/notellm /opt/notellm
EXPOSE 9200
CMD ["notellm", "indexer"]

FROM process AS worker
COPY --from=build-worker /opt/notellm /opt/notellm
EXPOSE 9100
CMD ["notellm", "worker"]
