"""Loading models: from the zoo, from a folder, from the hub at a pinned revision. One code path after the folder is known."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from cdbench import zoo
from cdbench.api import Example
from cdbench.config import FolderModel, HubModel, Profile, ZooModel
from cdbench.errors import EnvironmentLacks, UserError, first_line
from cdbench.files import read_json, write_json
from cdbench.requirements import folder_content, hub_snapshot, weights_sentence
from cdbench.seeds import digest, generator_for
from cdbench.sites import require_llama
from cdbench.store import Key, Store, content_hash, recipe

Role = Literal["teacher", "student"]


def prepare(profile: Profile) -> None:
    """Makes this process give the same numbers each time: threads, algorithms. Before the first model is loaded."""
    torch.set_num_threads(profile.threads)
    if profile.device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    disable_progress_bar()


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face format and the hash that identifies its contents."""

    folder: Path
    content: str

    def model(self, device: str = "cpu") -> LlamaForCausalLM:
        """The weights in float32, in eval mode."""
        return load_llama(self.folder).to(torch.device(device)).eval()

    def _config(self, key: str) -> int:
        return int(str(read_json(self.folder / "config.json", "model configuration")[key]))

    @property
    def layers(self) -> int:
        """Number of transformer blocks, without loading weights."""
        return self._config("num_hidden_layers")

    @property
    def neurons(self) -> int:
        """MLP neurons of all layers together: D of paper A, 4.2.5."""
        return self.layers * self._config("intermediate_size")

    @property
    def heads(self) -> int:
        """Query heads of a layer."""
        return self._config("num_attention_heads")

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self._config("hidden_size")

    @property
    def shape(self) -> tuple[int, ...]:
        """What two models of one family must have in common for one to take the other's weights."""
        keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
        return tuple(self._config(key) for key in (*keys, "vocab_size"))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the folder."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:  # a broken tokenizer.json raises a bare Exception
            raise UserError(f"no tokenizer can be loaded from {self.folder}: {first_line(error)}") from None
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise UserError(f"{self.folder}: the tokenizer is a {type(tokenizer).__name__}, a fast tokenizer is needed")
        return tokenizer


def load_llama(folder: Path) -> LlamaForCausalLM:
    """A LlamaForCausalLM from a local folder, float32.

    Raises:
        UserError: no model there, another architecture, damaged weights, or tensors that are missing or left over.
    """
    config = read_json(folder / "config.json", "model configuration")
    architectures = config.get("architectures")
    if architectures != ["LlamaForCausalLM"]:
        raise UserError(f"{folder}: architectures is {architectures}; the hooks know LlamaForCausalLM only")
    try:
        model, told = LlamaForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise UserError(f"no Llama can be loaded from {folder}: {first_line(error)}") from None
    # transformers would fill what is missing at random, and drop what it has no place for.
    for keys, what in (("missing_keys", "lack"), ("unexpected_keys", "hold, with no place in the model,")):
        if named := sorted(told[keys]):
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            raise UserError(
                f"{folder}: the weights {what} {named[0]}{more}; this is no whole checkpoint of its configuration"
            )
    if not model.model.layers:
        raise UserError(f"{folder}: the model has no layers; there is nothing to align")
    return require_llama(model)


def zoo_key(config: ZooModel, role: Role, data_content: str) -> Key:
    """What a zoo model depends on: its configuration, the split it is trained on, the recipe."""
    return {
        "config": config.model_dump(mode="json"),
        "role": role,
        "data": data_content,
        "recipe": recipe("zoo", "tokens", "sites", "seeds"),
    }


def make_zoo_model(
    config: ZooModel,
    role: Role,
    store: Store,
    content: str,
    read: Callable[[], tuple[Sequence[Sequence[Example]], Sequence[Example]]],
    progress: zoo.Progress,
) -> Checkpoint:
    """The zoo model of this configuration, trained on the data of this content unless it is there.

    `read` gives them, parts and validation: a hundred thousand lines, which nobody needs who finds the model.
    """

    def build(folder: Path) -> None:
        parts, validation = read()
        model, tokenizer, accuracy = zoo.train_zoo_model(config, parts, validation, role, progress)
        zoo.save(folder, model, tokenizer)
        write_json(folder / "zoo.json", {"role": role, "validation_accuracy": accuracy})

    folder = store.artefact("models", zoo_key(config, role, content), build)
    return Checkpoint(folder, content_hash(folder))


def hub_or_folder(config: HubModel | FolderModel) -> Checkpoint:
    """A checkpoint that somebody else trained.

    Raises:
        EnvironmentLacks: the hub model is not in the local cache.
        UserError: the folder is no checkpoint.
    """
    if isinstance(config, HubModel):
        folder = hub_snapshot(config)
        if folder is None:
            raise EnvironmentLacks(weights_sentence(config))
        return Checkpoint(folder, digest({"repo": config.repo, "revision": config.revision}))
    return Checkpoint(Path(config.path).expanduser().resolve(), folder_content(config))


def untrained_like(checkpoint: Checkpoint, device: str = "cpu") -> LlamaForCausalLM:
    """The checkpoint's architecture at initialisation: the control `cka_untrained_teacher`."""
    trained = load_llama(checkpoint.folder)
    return zoo.fresh(trained.config, generator_for("untrained", checkpoint.content)).to(torch.device(device)).eval()
