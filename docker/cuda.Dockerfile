# The locked environment with torch's CUDA build. Package and plug-ins are mounted by the runner, so nothing of ours is in it.
# No `# syntax=` line: it would pull a frontend from a registry.
# torch's wheels bring the CUDA libraries and cuDNN, so the "base" flavour is enough; 13.0 is what torch 2.13 is built for.
ARG BASE_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04@sha256:7c7413a56200486f71f181cad9310f6fd31b6bb21816ade15fc9c1e1e927a5c1
# Ubuntu 24.04 has Python 3.12; the lock pins 3.11, which comes from the image that cpu.Dockerfile starts from.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b
# An image whose files are wheels, where no index has them; nothing by default.
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels
FROM ${PYTHON_IMAGE} AS python

FROM ${BASE_IMAGE}
ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
COPY --from=python /usr/local/ /usr/local/
# In place of scheme and host of the package mirrors that the base names (http://mirror.example), should packages be needed.
ARG APT_MIRROR=
# What that Python links to. A base that has it needs no package mirror.
RUN ldconfig && python3.11 -c 'import venv, ensurepip, ssl, sqlite3, ctypes, bz2, lzma, zlib' || \
    { find /etc/apt -name '*.list' -o -name '*.sources' | xargs -r sed -i -E "${APT_MIRROR:+s#https?://[^/ ]+#$APT_MIRROR#}" \
      && apt-get update && apt-get install -y --no-install-recommends ca-certificates libssl3 libsqlite3-0 libffi8 libbz2-1.0 \
        liblzma5 zlib1g libreadline8 libncursesw6 libuuid1 libexpat1 libgomp1 \
      && rm -rf /var/lib/apt/lists/* /var/cache/ldconfig/aux-cache /var/log/* \
      && python3.11 -c 'import venv, ensurepip, ssl, sqlite3, ctypes, bz2, lzma, zlib'; }
COPY image.cuda.txt /opt/cdbench-lock/
# pip's configuration (indexes, proxies) and CA come as secrets: mounted for this step, in no layer and no history.
RUN --mount=type=secret,id=pip_conf,target=/run/secrets/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca.crt \
    --mount=type=bind,from=wheels,target=/wheels \
    if [ -s /run/secrets/pip.conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip.conf; fi; \
    if [ -s /run/secrets/ca.crt ]; then export PIP_CERT=/run/secrets/ca.crt; fi; \
    export PIP_FIND_LINKS=/wheels PIP_REQUIRE_HASHES=1 PIP_ONLY_BINARY=:all: PIP_NO_DEPS=1; \
    python3.11 -m venv /opt/venv \
    && /opt/venv/bin/pip install -r /opt/cdbench-lock/image.cuda.txt \
    && /opt/venv/bin/pip check
ENV PATH=/opt/venv/bin:$PATH
# Read by the NVIDIA container toolkit; without effect where there is none.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /tmp
CMD ["python3"]
