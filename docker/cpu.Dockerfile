# The locked environment with torch's CPU build. Package and plug-ins are mounted by the runner, so nothing of ours is in it.
# No `# syntax=` line: it would pull a frontend from a registry.
ARG BASE_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
# An image whose files are wheels, where no index has them; nothing by default.
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels

FROM ${BASE_IMAGE}
ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
# In place of scheme and host of the package mirrors that the base names (http://mirror.example), should packages be needed.
ARG APT_MIRROR=
# A base with Python 3.11 and venv needs no package mirror. The lock pins one minor version: another stops the build here.
RUN python3.11 -c 'import venv, ensurepip' || \
    { find /etc/apt -name '*.list' -o -name '*.sources' | xargs -r sed -i -E "${APT_MIRROR:+s#https?://[^/ ]+#$APT_MIRROR#}" \
      && apt-get update && apt-get install -y --no-install-recommends ca-certificates python3.11 python3.11-venv libgomp1 \
      && rm -rf /var/lib/apt/lists/* /var/cache/ldconfig/aux-cache /var/log/*; }
COPY requirements.cpu-torch.txt image.cpu.txt /opt/cdbench-lock/
# pip's configuration (indexes, proxies) and CA come as secrets: mounted for this step, in no layer and no history.
# The CPU build of torch is taken from the configured sources if they have it, else from PyTorch's own index.
RUN --mount=type=secret,id=pip_conf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    if [ -s /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi; \
    if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    export PIP_FIND_LINKS=/wheels PIP_REQUIRE_HASHES=1 PIP_ONLY_BINARY=:all: PIP_NO_DEPS=1; \
    python3.11 -m venv /opt/venv && cd /opt/cdbench-lock \
    && { /opt/venv/bin/pip install -r requirements.cpu-torch.txt \
         || /opt/venv/bin/pip install --index-url https://download.pytorch.org/whl/cpu -r requirements.cpu-torch.txt; } \
    && /opt/venv/bin/pip install -r image.cpu.txt \
    && /opt/venv/bin/pip check
ENV PATH=/opt/venv/bin:$PATH
USER 10001:10001
WORKDIR /tmp
CMD ["python3"]
