"""The zoo: small Llamas trained on the spot, in Hugging Face format, so that no weight has to be downloaded.

Real `LlamaForCausalLM`, real `PreTrainedTokenizerFast` with one token a digit. A zoo model sees the training split, and
problems of other tasks if the profile names some; the student is stopped by validation accuracy, near the paper's gap.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cdbench.api import Example
from cdbench.config import ZooModel
from cdbench.seeds import generator_for
from cdbench.sites import answer_logits
from cdbench.tokens import IGNORE, Encoded, encode

_SPECIAL = ["<pad>", "<eos>", "<unk>"]
_MAX_POSITIONS = 128
_WARMUP = 100
_FINAL_LR = 0.1
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


def train_zoo_model(
    config: ZooModel, parts: Sequence[Sequence[Example]], validation: Sequence[Example], role: str, progress: Progress
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, float]:
    """Trains one zoo model with cross-entropy on the answer tokens; AdamW, warm-up, linear decay.

    All parts are drawn as often, or the first one as often as `training_share` says and the others as often as each other.

    Returns the model, its tokenizer and its validation accuracy at the end.
    """
    tokenizer = make_tokenizer()
    model = fresh(zoo_config(config, tokenizer), generator_for("zoo", role, "init", config.seed)).train()
    train_set = encode(tokenizer, [example for part in parts for example in part])
    validation_set = encode(tokenizer, validation)
    order = generator_for("zoo", role, "order", config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    accuracy = 0.0
    for step in range(1, config.steps + 1):
        decay = 1 - (1 - _FINAL_LR) * step / config.steps
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, step / _WARMUP) * decay
        batch = train_set.take(_draw([len(part) for part in parts], config.training_share, config.batch_size, order))
        loss = F.cross_entropy(
            answer_logits(model, batch).flatten(0, 1), batch.answer_tokens.flatten(), ignore_index=IGNORE
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        checked = step == config.steps or (config.stop_at is not None and step % config.check_every == 0)
        if checked or step % 100 == 0:
            accuracy = exact_match(model, validation_set).double().mean().item()
            progress(step, config.steps, f"validation accuracy {accuracy:.1%}")
        if checked and config.stop_at is not None and accuracy >= config.stop_at:
            break
    return model.eval(), tokenizer, accuracy


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
