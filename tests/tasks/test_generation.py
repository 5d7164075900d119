"""Generation: samples follow the model's probabilities and only their own key; texts end where they should."""

import pytest
import torch
from commonsense_helpers import model_settings, rows_of_format, write_llama
from transformers import GenerationConfig

from flexlora.models import causal_lm
from flexlora.tasks.commonsense_prompts import evaluation_prompt
from flexlora.tasks.commonsense_rows import FORMATS
from flexlora.tasks.generation import Sampling, continuations, draw

PROMPTS = [evaluation_prompt(row) for words in FORMATS for row in rows_of_format(words, 2)]
KEYS = [(row, 0) for row in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return causal_lm.load(model_settings(write_llama(tmp_path_factory.mktemp("llama"))))


def written(backbone, prompts=PROMPTS, keys=KEYS, count=12, **options):
    batch = backbone.processor(list(prompts), return_tensors="pt", padding=True)
    with torch.no_grad():
        return continuations(
            backbone.model,
            batch["input_ids"],
            batch["attention_mask"],
            backbone.processor,
            max_new_tokens=count,
            keys=keys,
            **options,
        )


# --- drawing a token --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.8), (2.0, 0.55)])
def test_tokens_are_drawn_with_the_probabilities_that_transformers_would_use(temperature, top_p):
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    logits = torch.tensor([[0.3, 2.0, -1.0, 1.1, 0.0, 1.9]])
    wanted = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits)).softmax(-1)[0]
    uniforms = (torch.arange(100_000) + 0.5) / 100_000
    drawn = draw(logits.expand(100_000, -1), uniforms, Sampling(0, temperature, top_p)).flatten()
    assert torch.allclose(drawn.bincount(minlength=6) / 100_000, wanted, atol=2e-5)
    assert (wanted == 0).any() == (top_p < 1)


def test_the_largest_uniform_number_draws_a_token_that_is_possible():
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]])
    nearly_one = torch.tensor([1.0 - 2**-24])
    assert draw(logits, nearly_one, Sampling(0)).item() == 0
    assert draw(logits, nearly_one, Sampling(0, top_p=0.1)).item() == 2
    assert draw(logits, torch.tensor([0.0]), Sampling(0)).item() == 2


def test_a_row_has_its_own_uniform_numbers():
    sampling = Sampling(3)
    both = sampling.uniforms([(0, 0), (0, 1), (1, 0)], 50)
    assert both.shape == (3, 50)
    assert len({tuple(row) for row in both.tolist()}) == 3
    assert torch.equal(sampling.uniforms([(0, 1)], 50)[0], both[1])
    assert not torch.equal(Sampling(4).uniforms([(0, 1)], 50)[0], both[1])


# --- texts ------------------------------------------------------------------------------------------------------------


def test_greedy_texts_are_those_of_transformers(backbone):
    batch = backbone.processor(PROMPTS, return_tensors="pt", padding=True)
    made = backbone.model.generate(
        **batch, generation_config=GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=2)
    )
    new = made[:, batch["input_ids"].shape[1] :]
    assert written(backbone) == backbone.processor.batch_decode(new, skip_special_tokens=True)


def test_a_sample_depends_on_its_key_and_not_on_its_batch(backbone):
    sampling = Sampling(0, temperature=1.5, top_p=0.95)
    together = written(backbone, sampling=sampling)
    alone = [
        written(backbone, [prompt], [key], sampling=sampling)[0] for prompt, key in zip(PROMPTS, KEYS, strict=True)
    ]
    assert together == alone
    assert together != written(backbone, sampling=Sampling(1, temperature=1.5, top_p=0.95))
    same_prompt = written(backbone, PROMPTS[:1] * 6, [(0, sample) for sample in range(6)], sampling=sampling)
    assert same_prompt[0] == together[0]
    assert len(set(same_prompt)) > 3


def test_sampling_leaves_the_generator_of_the_process_alone(backbone):
    before = torch.get_rng_state()
    written(backbone, sampling=Sampling(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_text_has_nothing_after_its_end(backbone):
    """A row that ends early gets padding. Here the padding is a real word, as in LLaMA3."""
    greedy = written(backbone)
    tokenizer = backbone.processor
    pad, tokenizer.pad_token = tokenizer.pad_token, "Below"
    try:
        third = {row: text.split()[2] for row, text in enumerate(greedy)}
        first = third[0]
        cut = written(backbone, is_complete=lambda text: first in text.split())
        assert written(backbone) == greedy
    finally:
        tokenizer.pad_token = pad
    expected = [" ".join(text.split()[: [*text.split(), first].index(first) + 1]) for text in greedy]
    assert cut == expected
    assert cut != greedy


def test_a_text_ends_before_its_end_token(backbone):
    """The word that the model writes most becomes the end token."""
    greedy = written(backbone)
    tokenizer = backbone.processor
    word = greedy[0].split()[3]
    end, tokenizer.eos_token = tokenizer.eos_token, word
    try:
        texts = written(backbone)
    finally:
        tokenizer.eos_token = end
    assert texts == [" ".join(text.split()[: [*text.split(), word].index(word)]) for text in greedy]


def test_the_end_of_a_long_text_is_found(backbone):
    """Only the newest tokens are decoded after each step."""
    seen = []
    written(backbone, count=60, is_complete=lambda text: seen.append(len(text.split())) or False)
    assert max(seen) == 32
    long = written(backbone, PROMPTS[:1], KEYS[:1], count=60)[0].split()
    end = written(backbone, PROMPTS[:1], KEYS[:1], count=60, is_complete=lambda text: text.endswith(long[45]))
    assert end[0].split() == long[: long.index(long[45]) + 1]
