#!/usr/bin/env bash
# Writes the hashed locks from pyproject.toml (needs uv on PATH). No index host is written: hashes alone name the files.
set -euo pipefail
cd "$(dirname "$0")"
uv pip compile ../pyproject.toml --extra dev --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --generate-hashes --no-header --no-annotate --quiet --output-file requirements.cuda.txt
# The CPU lock is the same lock without torch and what only its CUDA build needs.
awk '/^[a-zA-Z0-9]/ { keep = ($0 !~ /^(torch|triton|nvidia-|cuda-)/) } keep' requirements.cuda.txt > requirements.cpu.txt
