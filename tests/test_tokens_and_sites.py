import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, PreTrainedTokenizerFast

from cdbench.api import Example
from cdbench.errors import UserError
from cdbench.seeds import generator_for
from cdbench.sites import answer_logits, at_last_prompt, captured, require_llama
from cdbench.tokens import IGNORE, encode, prompt_ids
from cdbench.zoo import exact_match, fresh, make_tokenizer

EXAMPLES = (Example("1+2=", "3", (1, 2)), Example("45+67=", "112", (45, 67)), Example("7-19=", "-12", (7, 19)))


def model(**changes: int):  # type: ignore[no-untyped-def]
    settings = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=17, num_key_value_heads=2, max_position_embeddings=64, **settings | changes)
    return fresh(config, generator_for("test")).eval()


def test_encoding_by_hand() -> None:
    # <pad> <eos> <unk> 0 1 ... : digit d is token d + 3, "+" is 13, "=" is 15.
    encoded = encode(make_tokenizer(), EXAMPLES[:2])
    assert encoded.ids[0].tolist() == [4, 13, 5, 15, 6, 1, 1, 1, 1]
    assert encoded.last_prompt.tolist() == [3, 5]
    assert encoded.answer_tokens.tolist() == [[6, 1, IGNORE, IGNORE], [4, 4, 5, 1]]
    assert encoded.answer_positions.tolist() == [[3, 4, 4, 4], [5, 6, 7, 8]]


def test_a_problem_does_not_depend_on_its_neighbours_or_on_padding() -> None:
    llama, split = model(), encode(make_tokenizer(), EXAMPLES)
    together = answer_logits(llama, split)
    for i in range(len(split)):
        alone = answer_logits(llama, split.take(torch.tensor([i])))[0]
        valid = split.answer_tokens[i] != IGNORE
        torch.testing.assert_close(together[i][valid], alone[valid], atol=1e-6, rtol=1e-5)


def test_answer_logits_are_the_models_own_at_those_positions() -> None:
    llama, split = model(), encode(make_tokenizer(), EXAMPLES)
    whole = llama(input_ids=split.ids).logits
    for i, positions in enumerate(split.answer_positions):
        torch.testing.assert_close(answer_logits(llama, split)[i], whole[i, positions])


def test_sites_are_what_they_say() -> None:
    llama, split = model(), encode(make_tokenizer(), EXAMPLES)
    with captured(llama, ["mlp.1.out", "mlp.1.neurons", "attn.0.head.3"]) as found:
        states = llama.model(input_ids=split.ids, output_hidden_states=True, use_cache=False).hidden_states
    mlp = llama.model.layers[1].mlp
    torch.testing.assert_close(found["mlp.1.out"], mlp.down_proj(found["mlp.1.neurons"]))
    assert found["mlp.1.neurons"].shape[-1] == 24
    # The output of layer 0's attention is the sum of its heads through their slices of o_proj.
    with captured(llama, [f"attn.0.head.{h}" for h in range(4)]) as heads:
        llama.model(input_ids=split.ids, use_cache=False)
    attention = llama.model.layers[0].self_attn
    summed = sum(heads[f"attn.0.head.{h}"] @ attention.o_proj.weight[:, 4 * h : 4 * h + 4].T for h in range(4))
    block = llama.model.layers[0]
    residual = states[0] + summed
    torch.testing.assert_close(residual + block.mlp(block.post_attention_layernorm(residual)), states[1])
    row = at_last_prompt(found["mlp.1.out"], split)
    torch.testing.assert_close(row[1], found["mlp.1.out"][1, 5])


@pytest.mark.parametrize("site", ["mlp.2.out", "attn.0.head.4", "mlp.0.gate", "residual"])
def test_a_site_that_is_not_there_is_an_error(site: str) -> None:
    with pytest.raises(UserError, match="site"), captured(model(), [site]):
        pass


def test_hooks_are_gone_after_the_block() -> None:
    llama = model()
    with captured(llama, ["mlp.0.out"]):
        pass
    assert not llama.model.layers[0].mlp._forward_hooks


def test_another_architecture_is_refused_by_name() -> None:
    gpt = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=17))
    with pytest.raises(UserError, match="GPT2LMHeadModel"):
        require_llama(gpt)


def test_a_tokenizer_that_joins_prompt_and_answer_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(["1+2=3"] * 50, trainers.BpeTrainer(vocab_size=60, special_tokens=["</s>"]))
    joined = Tokenizer(models.BPE(vocab={"</s>": 0, "=": 1, "3": 2, "=3": 3, "1": 4}, merges=[("=", "3")]))
    fast = PreTrainedTokenizerFast(tokenizer_object=joined, eos_token="</s>")
    with pytest.raises(UserError, match="joins prompt and answer"):
        encode(fast, [Example("1=", "3", (1,))])


def test_a_tokenizer_that_begins_every_text_with_a_space_is_one_like_any_other() -> None:
    """Llama-2's: an answer by itself has a token more than behind its prompt."""
    vocabulary = [("</s>", 0.0), ("<s>", 0.0), ("▁", -1.0), *((sign, -2.0) for sign in "0123456789+=")]
    llama = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    llama.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    llama.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=llama, bos_token="<s>", eos_token="</s>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("46")["input_ids"]) == ["<s>", "▁", "4", "6"]
    split = encode(tokenizer, [Example("12+34=", "46", (12, 34))])
    assert tokenizer.convert_ids_to_tokens(split.ids[0].tolist()) == ["<s>", "▁", *"12+34=46"]
    assert tokenizer.convert_ids_to_tokens(split.answer_tokens[0].tolist()) == ["4", "6", "</s>"]
    assert split.last_prompt.tolist() == [7]


def test_an_empty_split_and_a_tokenizer_without_end_of_text_are_refused() -> None:
    with pytest.raises(UserError, match="empty split"):
        encode(make_tokenizer(), [])
    endless = make_tokenizer()
    endless.eos_token = None
    with pytest.raises(UserError, match="end-of-text"):
        encode(endless, EXAMPLES)


def test_a_bos_of_the_tokenizers_own_stands_in_the_prompt() -> None:
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 2)])
    assert prompt_ids(tokenizer, "1+2=") == [2, 4, 13, 5, 15]
    assert encode(tokenizer, EXAMPLES[:1]).last_prompt.tolist() == [4]


def test_teacher_forcing_and_greedy_decoding_agree_on_exact_match() -> None:
    from cdbench.generation import generate

    llama, tokenizer = model(), make_tokenizer()
    # Three examples whose answers are what the model says, and one that is not.
    said = generate(llama, tokenizer, EXAMPLES, 8)
    examples = [Example(e.prompt, text or "0", e.operands) for e, text in zip(EXAMPLES, said, strict=True)]
    greedy = generate(llama, tokenizer, examples, 8)
    forced = exact_match(llama, encode(tokenizer, examples)).tolist()
    ended = [bool(text) and generate_ended(llama, tokenizer, e) for e, text in zip(examples, greedy, strict=True)]
    assert forced == [text == e.answer and end for text, e, end in zip(greedy, examples, ended, strict=True)]


def generate_ended(llama, tokenizer, example: Example) -> bool:  # type: ignore[no-untyped-def]
    """Whether the model puts end of text right after the answer."""
    ids = torch.tensor([prompt_ids(tokenizer, example.prompt + example.answer)])
    return bool(llama(input_ids=ids).logits[0, -1].argmax() == tokenizer.eos_token_id)


def test_a_text_that_the_tokenizer_cannot_read_is_refused_and_shown_as_it_would_be_read() -> None:
    from cdbench.errors import UserError
    from cdbench.zoo import make_tokenizer

    with pytest.raises(UserError, match="no token for some of '1 and 2 make 3'.*<unk>"):
        encode(make_tokenizer(), [Example("1 and 2 make ", "3", (1, 2))])
