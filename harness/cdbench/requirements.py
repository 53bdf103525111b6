"""What a profile needs of the machine, looked up without loading more than the question takes."""

import os
import shutil
import subprocess
from pathlib import Path

from cdbench.config import FolderModel, HubModel, ModelConfig, Profile
from cdbench.errors import EnvironmentLacks, UserError, first_line
from cdbench.files import sha256
from cdbench.seeds import digest

HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model"]
"""What is read of a model of the hub."""


def hub_snapshot(config: HubModel) -> Path | None:
    """The folder of a hub model in the local Hugging Face cache, or None. Asks no server."""
    folder = _cached(config.repo, config.revision)
    return folder if folder and any(folder.glob("*.safetensors")) else None


def _cached(repo: str, revision: str | None = None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UserError(
            f"{repo} is neither a folder nor a name that a model can have on the hub: {first_line(error)}"
        ) from None


def hub_main(repo: str) -> str:
    """The commit that the local Hugging Face cache has as a model's main branch. Asks no server.

    Raises:
        EnvironmentLacks: the cache has none.
        UserError: no model can be called that.
    """
    if folder := _cached(repo):
        return folder.name
    raise EnvironmentLacks(
        f"no folder {repo}, and the Hugging Face cache has no main branch of a model {repo}: hf download {repo}, or name a "
        f"commit that it has ({repo}@ and 40 hex digits)"
    )


def folder_content(config: FolderModel) -> str:
    """What identifies a local checkpoint: the hash of its configuration, weights and tokenizer.

    Raises:
        UserError: the folder is no checkpoint.
    """
    folder = Path(config.path).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder} holds no config.json; give a folder in Hugging Face format")
    files = sorted(path for path in folder.iterdir() if path.suffix in {".json", ".safetensors", ".bin", ".model"})
    return digest({file.name: sha256(file) for file in files})


def weights_sentence(config: HubModel) -> str:
    """What to do about missing weights."""
    if (folder := _cached(config.repo, config.revision)) and any(folder.glob("pytorch_model*.bin")):
        return (
            f"{config.repo} at revision {config.revision[:12]} has no .safetensors in the Hugging Face cache: name that folder "
            f"itself, of which the .bin files are read ({folder})"
        )
    token = "" if os.environ.get("HF_TOKEN") else " (HF_TOKEN is not set)"
    return (
        f"weights of {config.repo} at revision {config.revision[:12]} are not in the Hugging Face cache{token}: accept "
        f"the licence at huggingface.co/{config.repo}, set HF_TOKEN, then "
        f"hf download {config.repo} --revision {config.revision}"
    )


def nvidia_driver() -> str | None:
    """The version of NVIDIA's driver where it sees a GPU; None where there is none."""
    command = shutil.which("nvidia-smi")
    if not command:
        return None
    ask = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:  # as it is with a driver that hangs
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def gpu_missing(least_gib: int = 0) -> str | None:
    """What a machine without a GPU, or with one of less memory, lacks; None where nothing."""
    import torch

    wanted = "a CUDA GPU" + (f" with at least {least_gib} GiB" if least_gib else "")
    if not torch.cuda.is_available():
        build = " (this torch is a CPU build: run `make setup` on a machine with an NVIDIA GPU)"
        return f"{wanted}: none is visible" + (build if torch.version.cuda is None else " (check nvidia-smi)")
    have = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"{wanted}: this one has {have:.0f} GiB" if have < least_gib else None


def missing(profile: Profile, *, gpu: bool = True) -> list[str]:
    """What this machine lacks for a profile, one sentence each; empty when it can run. `gpu` False: that is seen elsewhere."""
    lack = gpu_missing(profile.gpu_memory_gib) if gpu and profile.device == "cuda" else None
    lacks = [lack] if lack else []
    models: list[ModelConfig] = [profile.teacher, profile.student]
    lacks += [weights_sentence(m) for m in models if isinstance(m, HubModel) and hub_snapshot(m) is None]
    return lacks
