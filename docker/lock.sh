#!/usr/bin/env bash
# Writes the hashed locks from pyproject.toml (needs uv on PATH). No index host is written: hashes alone name the files.
set -euo pipefail
cd "$(dirname "$0")"
uv pip compile ../pyproject.toml --extra dev --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --generate-hashes --no-header --no-annotate --quiet --output-file requirements.cuda.txt
# The benchmark's further peers: what they add to the lock. torchvision stays out: its CUDA build cannot be imported beside a
# CPU build of torch, and none of them uses it here.
uv pip compile ../pyproject.toml --extra dev --extra peers --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --constraint requirements.cuda.txt --generate-hashes --no-header --no-annotate --quiet --output-file peers.tmp
awk 'NR == FNR { if ($1 ~ /==/) have[$1] = 1; next }
     /^[a-zA-Z0-9]/ { keep = !($1 in have) && $1 !~ /^torchvision==/ } keep' requirements.cuda.txt peers.tmp > ../benchmarks/requirements.txt
rm peers.tmp
# The same for the circuits' oracles.
uv pip compile ../pyproject.toml --extra dev --extra oracles --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --constraint requirements.cuda.txt --generate-hashes --no-header --no-annotate --quiet --output-file oracles.tmp
awk 'NR == FNR { if ($1 ~ /==/) have[$1] = 1; next }
     /^[a-zA-Z0-9]/ { keep = !($1 in have) && $1 !~ /^torchvision==/ } keep' requirements.cuda.txt oracles.tmp > ../tests/oracles.txt
rm oracles.tmp
# Images hold what the steps of a run import.
uv pip compile image.in --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --constraint requirements.cuda.txt --generate-hashes --no-header --no-annotate --quiet --output-file image.cuda.txt
# The CPU locks are the same locks without torch and what only its CUDA build needs.
for name in requirements image; do
  awk '/^[a-zA-Z0-9]/ { keep = ($0 !~ /^(torch|triton|nvidia-|cuda-)/) } keep' $name.cuda.txt > $name.cpu.txt
done
