"""The zoo: small Llamas trained on the spot, in Hugging Face format, so that no weight has to be downloaded.

Real `LlamaForCausalLM`, real `PreTrainedTokenizerFast` with one token a digit. A zoo model sees the training split, and
problems of other tasks if the profile names some; the student is stopped by validation accuracy, near the paper's gap.
"""

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cdbench.api import Example
from cdbench.config import ZooModel
from cdbench.errors import RunFailed
from cdbench.seeds import generator_for
from cdbench.sites import answer_logits
from cdbench.tokens import IGNORE, Encoded, encode

_SPECIAL = ["<pad>", "<eos>", "<unk>"]
_MAX_POSITIONS = 128
_WARMUP = 100
_FINAL_LR = 0.1
_TOGETHER = 32  # problems in a part of a batch: what they need stays in a core's cache
_AT_ONCE = 2  # parts
_TELL_EVERY = 100
Progress = Callable[[int, int, str], None]
"""step, steps, what to say."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character: digits, `+`, `-`, `=`, space. No BOS, so no evaluator can forget it."""
    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *"0123456789+-= "])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def initialise(model: LlamaForCausalLM, generator: torch.Generator) -> None:
    """Llama's initialisation (normal, 0.02; norms 1) from a generator of our own, not from the global one."""
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * model.config.initializer_range)
            else:
                parameter.fill_(1.0)


def fresh(config: LlamaConfig, generator: torch.Generator) -> LlamaForCausalLM:
    """An untrained model of this configuration."""
    with torch.random.fork_rng(devices=[]):  # the constructor draws from the global generator; put it back
        model = LlamaForCausalLM(config)
    initialise(model, generator)
    return model


def zoo_config(config: ZooModel, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The Llama configuration of a zoo model."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=_MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def exact_match(model: LlamaForCausalLM, split: Encoded, batch_size: int = 250) -> Tensor:
    """Whether each problem's answer and end of text are the greedy continuation, [n] bool.

    One forward with the gold answer as input suffices: greedy decoding follows the gold path exactly as long as
    every gold token so far was the arg-max.
    """
    hits = []
    for rows in torch.arange(len(split)).split(batch_size):
        batch = split.take(rows).to(model.device)
        predicted = answer_logits(model, batch).argmax(-1)
        hits.append(((predicted == batch.answer_tokens) | (batch.answer_tokens == IGNORE)).all(1).cpu())
    return torch.cat(hits)


class _Phase(NamedTuple):
    """What is drawn until enough of each aim is solved; a `goal` of infinity lasts to the end."""

    share: float | None
    """How often the first part is; as `_draw`'s `first`."""
    aims: list[Encoded]
    goal: float
    says: str

    def solved(self, model: LlamaForCausalLM) -> float:
        """The share of an aim's problems that the model solves, where it solves the fewest."""
        return min(exact_match(model, aim).double().mean().item() for aim in self.aims)


def train_zoo_model(
    config: ZooModel, parts: Sequence[Sequence[Example]], validation: Sequence[Example], role: str, progress: Progress
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, float]:
    """Trains one zoo model with cross-entropy on the answer tokens; AdamW, warm-up, linear decay.

    All parts are drawn as often, or the first one as often as `training_share` says and the others as often as each other;
    with `pretrained_at`, the first one not before that share of each of the others is solved: of some of their problems that
    it does not learn from, together at most as many as there are for validation.

    Returns the model, its tokenizer and its validation accuracy at the end.

    Raises:
        RunFailed: all steps are taken and the training split's turn has not come.
    """
    tokenizer = make_tokenizer()
    model = fresh(zoo_config(config, tokenizer), generator_for("zoo", role, "init", config.seed)).train()
    last = _Phase(
        config.training_share, [encode(tokenizer, validation)], config.stop_at or math.inf, "validation accuracy"
    )
    phase = last
    if config.pretrained_at is not None:
        n = len(validation) // (len(parts) - 1)
        aims = [encode(tokenizer, part[:n]) for part in parts[1:]]
        phase = _Phase(0.0, aims, config.pretrained_at, "other tasks first; of the one it knows least it solves")
        parts = [parts[0], *(part[n:] for part in parts[1:])]
    train_set = encode(tokenizer, [example for part in parts for example in part])
    order = generator_for("zoo", role, "order", config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01, fused=True)
    accuracy = 0.0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for step in range(1, config.steps + 1):
            decay = 1 - (1 - _FINAL_LR) * step / config.steps
            for group in optimizer.param_groups:
                group["lr"] = config.lr * min(1.0, step / _WARMUP) * decay
            rows = _draw([len(part) for part in parts], phase.share, config.batch_size, order)
            _take_gradients(model, train_set.select(rows), pool)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            checked = math.isfinite(phase.goal) and step % config.check_every == 0
            if not checked and step % _TELL_EVERY and step < config.steps:
                continue
            accuracy = phase.solved(model)
            progress(step, config.steps, f"{phase.says} {accuracy:.1%}")
            if checked and accuracy >= phase.goal and step < config.steps:
                if phase is last:
                    break
                phase = last
    if phase is not last:
        raise RunFailed(
            f"the {role}'s {config.steps} steps are over before it has learned anything of the task itself: of the one of "
            f"data.zoo_tasks that it knows least it solves {accuracy:.1%}, and pretrained_at is {config.pretrained_at:g}. "
            "Give it more steps, another seed, or ask for less"
        )
    return model.eval(), tokenizer, accuracy


def _take_gradients(model: LlamaForCausalLM, batch: Encoded, pool: Executor) -> None:
    """Sets the gradients of the batch's mean cross-entropy, computed in parts of like length, on two cores at a time.

    Padded to the longest, a batch of two- to five-digit sums would be more than a quarter filler. The parts and the order in
    which they are added up are the batch's alone: how many cores there are changes no bit.
    """
    parameters = list(model.parameters())
    tokens = (batch.answer_tokens != IGNORE).sum()

    def gradients(rows: Tensor) -> tuple[Tensor, ...]:
        part = batch.take(rows)
        logits = answer_logits(model, part).flatten(0, 1)
        loss = F.cross_entropy(logits, part.answer_tokens.flatten(), ignore_index=IGNORE, reduction="sum")
        return torch.autograd.grad(loss / tokens, parameters)

    longest_first = batch.answer_positions.amax(1).argsort(stable=True, descending=True)
    parts = pool.map(gradients, longest_first.split(_TOGETHER))
    for parameter, *found in zip(parameters, *parts, strict=True):
        # `autograd.grad` may return any strides, and the fused optimizer reads as the parameter lies in memory.
        parameter.grad = functools.reduce(torch.add, found).contiguous()


def _draw(sizes: Sequence[int], first: float | None, n: int, order: torch.Generator) -> Tensor:
    """n rows, each of a part drawn at random and there of a row drawn at random.

    `first`: how often it is the first part, the others as often as each other; None: all as often.
    """
    if len(sizes) == 1:
        return torch.randint(sizes[0], (n,), generator=order)
    size, others = torch.tensor(sizes), len(sizes) - 1
    if first is None:
        part = torch.randint(len(sizes), (n,), generator=order)
    else:
        shares = torch.tensor([first, *[(1 - first) / others] * others], dtype=torch.float64)
        part = torch.multinomial(shares, n, replacement=True, generator=order)
    within = torch.rand(n, generator=order, dtype=torch.float64) * size[part]
    return (size.cumsum(0) - size)[part] + within.long()


def save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Hugging Face format: config.json, model.safetensors, tokenizer files."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
