#!/usr/bin/env bash
# Installs the locked environment: docker/install-env.sh VENV
# One lock, two builds of torch. A machine with an NVIDIA GPU gets the CUDA lock, any other the CPU build.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:?usage: install-env.sh VENV}

python=""
for candidate in "${PYTHON:-}" python3.11 python3 python; do
  [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
  if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "setup: Python 3.11 is needed and was not found (the lock pins one minor version)." >&2
  echo "setup: install it, or name it: make setup PYTHON=/path/to/python3.11" >&2
  exit 4
fi

build=CPU
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then build=CUDA; fi
want="cdbench-env $build $(cat "$here"/requirements.*.txt | sha256sum | cut -c1-16)"
if [ "$(cat "$venv/.cdbench-lock" 2>/dev/null)" = "$want" ]; then
  echo "setup: $venv matches the lock, nothing to install"
else
  rm -f "$venv/.cdbench-lock"
  "$python" -m venv "$venv"
  pip=("$venv/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes --no-deps)
  if [ "$build" = CUDA ]; then
    echo "setup: NVIDIA GPU found, installing the CUDA lock"
    "${pip[@]}" -r "$here/requirements.cuda.txt"
  else
    echo "setup: no NVIDIA GPU, installing the CPU build of torch"
    reasons=$(mktemp)
    if "${pip[@]}" -r "$here/requirements.cpu-torch.txt" 2>>"$reasons"; then
      echo "setup: torch CPU build from the configured package sources"
    elif "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu -r "$here/requirements.cpu-torch.txt" 2>>"$reasons"; then
      echo "setup: torch CPU build from PyTorch's own CPU index, because the configured sources have none"
    else
      echo "setup: no CPU build of torch within reach, because:"
      sed 's/^/setup:   /' "$reasons" | tail -n 6
      echo "setup: falling back to the CUDA lock (several GB; it runs on the CPU all the same)"
      "${pip[@]}" -r "$here/requirements.cuda.txt"
    fi
    "${pip[@]}" -r "$here/requirements.cpu.txt"
  fi
  "$venv/bin/python" -m pip check
  echo "$want" > "$venv/.cdbench-lock"
fi
if [ -f "$here/../pyproject.toml" ]; then
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable "$here/.."
else  # in a bundle or a wheel the package lies beside, and PYTHONPATH says where
  echo "setup: libraries only; cdbench itself is taken from PYTHONPATH"
fi
echo "setup: done. Activate with: source $venv/bin/activate"
