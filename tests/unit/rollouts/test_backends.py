"""Every backend samples from the policy's own distribution and keeps the log-probs of a plain forward.

The chance that a statistical test here fails though all is right is FALSE_ALARM for each seed; seeds are fixed.
"""

import sys
import weakref
from collections import defaultdict

import fake_vllm
import pytest
import torch
from scipy import stats
from tiny_models import CPU, FAMILIES, make_config, uneven_batch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from apa_cli.config.schema import GenerationConfig
from apa_cli.data.prompts import Prompt, collate
from apa_cli.models.policy import Policy
from apa_cli.models.roles import load_models
from apa_cli.rollouts.backends import cached, choice, hf, loop
from apa_cli.rollouts.generation import decode, sample

FALSE_ALARM = 1e-3
BACKENDS = ("hf", "static", "vllm")  # vllm: a stand-in with its call signatures


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm)
    monkeypatch.setattr(fake_vllm.LLM, "made", [])
    return fake_vllm


def load(folder, **changes):
    if changes.get("generation__backend") == "vllm":
        changes["device"] = "auto"  # vllm with device=cpu is refused
    config = make_config(folder, **changes)
    return load_models(config, CPU).policy, config.generation


@pytest.fixture
def many_batches(monkeypatch):
    """Decode in batches of like length whatever it costs."""
    monkeypatch.setattr(hf, "CALL", 0.0)


def check_logprobs(policy, rollout, temperature=1.0):
    """Log-probs and entropy kept while sampling against a forward of each row alone, without padding."""
    for row in range(len(rollout.response_ids)):
        part = rollout.select(torch.tensor([row]))
        logits, _ = policy.response_forward(part.batch)
        logp = (logits[0].double() / temperature).log_softmax(-1)  # (T, V)
        expected = logp.gather(1, part.response_ids[0][:, None])[:, 0]
        assert_close(part.rollout_logprobs[0].double(), expected.detach(), atol=1e-4, rtol=0)
        assert_close(part.entropy[0].double(), -(logp.exp() * logp).sum(-1).detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_logprobs_are_those_of_a_plain_forward(policy_dir, kind, backend, many_batches):
    policy, generation = load(
        policy_dir(kind=kind), generation__backend=backend, generation__temperature=0.7, generation__max_new_tokens=9
    )
    torch.manual_seed(1)
    rollout = sample(policy, uneven_batch(policy, 16), generation)
    assert rollout.response_mask.sum() > 100
    check_logprobs(policy, rollout, 0.7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_weights_of_the_moment_are_what_samples(policy_dir, backend):
    """What a backend keeps from one rollout to the next holds nothing of the weights."""
    policy, generation = load(policy_dir(kind="llama"), generation__backend=backend)
    batch = uneven_batch(policy, 8)
    before = sample(policy, batch, generation, greedy=True)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = sample(policy, batch, generation, greedy=True)
    assert not torch.equal(before.response_ids, after.response_ids)
    check_logprobs(policy, after)


def test_same_seed_same_tokens_whatever_the_backend_or_the_batches(policy_dir, monkeypatch):
    """One batch, batches of like length, rows leaving early or never, a static cache: the same rollout."""
    folder = policy_dir(pad=False, eos_logit=4.0)
    rollouts = {}
    for name, backend, call in (("one", "hf", 1.0), ("like length", "hf", 0.0), ("static", "static", 1.0)):
        policy, generation = load(folder, generation__backend=backend, generation__max_new_tokens=24)
        monkeypatch.setattr(hf, "CALL", call)
        torch.manual_seed(5)
        rollouts[name] = sample(policy, uneven_batch(policy, 64), generation)
    monkeypatch.setattr(loop, "_without_ended", lambda batches, ended: batches)
    torch.manual_seed(5)
    policy, generation = load(folder, generation__max_new_tokens=24)
    torch.manual_seed(5)
    rollouts["all rows to the end"] = sample(policy, uneven_batch(policy, 64), generation)
    one = rollouts["one"]
    lengths = one.response_mask.sum(dim=1)
    assert lengths.min() < 6 < lengths.max()
    for name, rollout in rollouts.items():
        T = one.response_ids.shape[1]
        assert torch.equal(rollout.response_mask[:, :T], one.response_mask), name
        assert torch.equal(rollout.response_ids[:, :T], one.response_ids), name
        assert_close(rollout.rollout_logprobs[:, :T], one.rollout_logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("race", "eos_logit"), [(1024, 4.0), (1, -100.0)])
def test_the_same_rollout_in_groups_of_rows(policy_dir, monkeypatch, race, eos_logit):
    """However many rows are decoded at once: tokens, log-probs, entropy, and what is drawn after the rollout."""
    monkeypatch.setattr(choice, "RACE_VOCABULARY", race)
    folder = policy_dir(pad=False, eos_logit=eos_logit)
    found = {}
    for rows in (None, 17, 1):
        policy, generation = load(folder, generation__rows=rows, generation__max_new_tokens=24)
        torch.manual_seed(5)
        found[rows] = sample(policy, uneven_batch(policy, 48), generation), torch.rand(3)
    whole, then = found[None]
    lengths = whole.response_mask.sum(dim=1)
    assert lengths.min() < 6 < lengths.max() or eos_logit < 0
    for rows, (rollout, after) in found.items():
        assert torch.equal(rollout.response_ids, whole.response_ids), rows
        assert torch.equal(rollout.response_mask, whole.response_mask), rows
        assert torch.equal(rollout.ended, whole.ended), rows
        assert torch.equal(after, then), rows
        assert_close(rollout.rollout_logprobs, whole.rollout_logprobs, atol=1e-5, rtol=0)
        assert_close(rollout.entropy, whole.entropy, atol=1e-5, rtol=0)


def test_no_more_rows_than_asked_for_hold_a_cache(policy_dir, monkeypatch):
    """Keys that are alive at the same time, in rows, counted as each forward begins."""
    layers = weakref.WeakSet()
    init = cached.RoomyLayer.__init__

    def noted(self, room):
        init(self, room)
        layers.add(self)

    monkeypatch.setattr(cached.RoomyLayer, "__init__", noted)
    policy, generation = load(policy_dir(kind="llama"), generation__rows=10, generation__max_new_tokens=6)
    depth, most = policy.model.config.num_hidden_layers, []

    def count(*_):
        most.append(sum(len(layer.keys) for layer in layers if layer.keys is not None) / depth)

    policy.model.register_forward_pre_hook(count)
    sample(policy, uneven_batch(policy, 48), generation)
    assert max(most) == 10


def test_a_choice_in_blocks_of_rows_is_the_choice_of_all(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    logits, noise = torch.randn(7, 300, generator=generator), torch.rand(7, dtype=torch.float64, generator=generator)
    chooser = choice.TokenChooser(GenerationConfig(temperature=0.7, top_k=20), [0], greedy=False)
    whole = chooser(logits.clone(), noise, 0)
    monkeypatch.setitem(choice.BLOCK, "cpu", 600)  # two rows
    parts = chooser(logits.clone(), noise, 0)
    assert torch.equal(parts.ids, whole.ids)
    assert_close(parts.logprobs, whole.logprobs)
    assert_close(parts.entropy, whole.entropy)


def test_rows_that_have_ended_cost_nothing(policy_dir):
    """Token positions that the model computes, counted by its embedding."""
    policy, generation = load(policy_dir(pad=False, eos_logit=4.0), generation__max_new_tokens=32)
    seen = []
    embedding = policy.model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    torch.manual_seed(5)
    rollout = sample(policy, uneven_batch(policy, 64), generation)
    counted = int(rollout.response_mask.sum())
    assert counted < 0.4 * rollout.response_mask.numel()  # otherwise the rest would show nothing
    assert sum(seen[1:]) < 2 * counted  # at most half of a batch's rows are idle


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_seed_decides_a_rollout_and_the_random_state_after_it(policy_dir, backend):
    """The next rollout differs, the same seed gives the same one, and no engine's seeding is left behind."""
    policy, generation = load(policy_dir(kind="llama"), generation__backend=backend)
    batch = uneven_batch(policy, 8)
    torch.manual_seed(6)
    first, then = sample(policy, batch, generation), torch.rand(1)
    second = sample(policy, batch, generation)
    torch.manual_seed(6)
    again, after = sample(policy, batch, generation), torch.rand(1)
    assert torch.equal(first.response_ids, again.response_ids)
    assert torch.equal(then, after)
    assert not torch.equal(first.response_ids, second.response_ids)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", [{"top_k": 4}, {"greedy": True}, {"min_new_tokens": 3}])
def test_logprobs_are_of_the_whole_softmax_whatever_is_left_out(policy_dir, backend, settings):
    settings = dict(settings)
    greedy = settings.pop("greedy", False)
    changes = {f"generation__{key}": value for key, value in settings.items()}
    policy, generation = load(
        policy_dir(kind="llama"), generation__backend=backend, generation__temperature=0.7, **changes
    )
    torch.manual_seed(1)
    check_logprobs(policy, sample(policy, uneven_batch(policy, 8), generation, greedy=greedy), 0.7)


@pytest.mark.parametrize("backend", ["hf", "static", "vllm"])
def test_stop_strings_count_up_to_the_token_that_completes_them(policy_dir, backend):
    policy, generation = load(
        policy_dir(kind="llama"),
        generation__backend=backend,
        generation__stop=["e", "o"],
        generation__max_new_tokens=60,
    )
    torch.manual_seed(2)
    rollout = sample(policy, uneven_batch(policy, 32), generation)
    eos = policy.tokenizer.eos_token_id
    stopped = 0
    for row in range(32):
        ids = rollout.response_ids[row][rollout.response_mask[row]].tolist()
        assert not any(stop in policy.tokenizer.decode(ids[:-1]) for stop in "eo")
        assert eos not in ids[:-1]
        complete = any(stop in policy.tokenizer.decode(ids) for stop in "eo")
        assert bool(rollout.ended[row]) == (complete or ids[-1] == eos)
        stopped += complete
    assert stopped > 10


def test_one_vllm_engine_serves_until_a_sequence_is_too_long(policy_dir, vllm):
    policy, generation = load(policy_dir(kind="llama"), generation__backend="vllm")
    for _ in range(3):
        sample(policy, uneven_batch(policy, 2), generation)
    assert len(vllm.LLM.made) == 1
    assert vllm.LLM.made[0].awake == set()  # asleep while the policy trains
    assert vllm.LLM.made[0].max_model_len == policy.room


@pytest.mark.parametrize("start", [None, "reference"], ids=["base", "adapter"])
def test_vllm_samples_with_the_adapter_in_use(policy_dir, adapter_dir, start):
    """The initial policy of a LoRA is the policy with its adapter off, or as it started."""
    lora = {"policy__adapter__r": 2} if start is None else {"policy__adapter__path": str(adapter_dir)}
    policy, generation = load(policy_dir(), generation__backend="vllm", **lora)
    batch = uneven_batch(policy, 8)
    drawn = []
    for moved in (False, True):
        if moved:
            with torch.no_grad():
                for name, parameter in policy.model.named_parameters():
                    if ".default." in name:
                        parameter.add_(0.3 * torch.randn_like(parameter))
        for adapter in ("default", start):
            torch.manual_seed(1)
            with policy.adapters.use(adapter):
                rollout = sample(policy, batch, generation)
                check_logprobs(policy, rollout)
            drawn.append(rollout.response_ids)
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[1], drawn[3])  # not moved yet; the start stays
    assert not torch.equal(drawn[2], drawn[3])


# --- the policy's own distribution -----------------------------------------------------------------------------------

PROMPTS = ((3, 4, 5, 6, 7), (8, 2))


@pytest.fixture(scope="module")
def dozen(plain_tokenizer):
    """A policy of 12 tokens, so that the same context comes again and again."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=12, **sizes, initializer_range=0.3, eos_token_id=0)).eval()
    policy = Policy(model, plain_tokenizer, CPU)
    policy.model.generation_config.pad_token_id = policy.pad_token_id
    return policy


def pvalue(policy, *, expected_temperature, rows=4096, **settings):
    """Of the hypothesis that three tokens after each of two prompts of different length follow π at that temperature.

    Every context of up to two response tokens that came at least 60 times: counts of the next token against the exact
    softmax from a plain forward of that context, a chi-square each, rare tokens pooled. Joined by Fisher's method.
    """
    made = [Prompt(token_ids=ids, text="", messages=None, columns={}) for ids in PROMPTS]
    batch = collate(made * (rows // 2), policy.pad_token_id)
    rollout = sample(policy, batch, GenerationConfig(max_new_tokens=3, **settings))
    following = defaultdict(list)
    for i in range(rows):
        ids = rollout.response_ids[i][rollout.response_mask[i]].tolist()
        for t, token in enumerate(ids):
            following[PROMPTS[i % 2] + tuple(ids[:t])].append(token)
    values = []
    for context, tokens in following.items():
        if len(tokens) < 60:
            continue
        with torch.no_grad():
            logits = policy.model(torch.tensor([context])).logits[0, -1].double()
        expected = (logits / expected_temperature).softmax(-1) * len(tokens)
        observed = torch.bincount(torch.tensor(tokens), minlength=12).double()
        order = expected.argsort()
        pooled = int((expected[order].cumsum(0) < 5).sum()) + 1  # the rarest tokens, 5 or more expected together
        cells = [torch.cat([x[order[:pooled]].sum()[None], x[order[pooled:]]]).numpy() for x in (observed, expected)]
        if len(cells[0]) > 1:
            values.append(max(stats.chisquare(*cells).pvalue, 1e-300))
    assert len(values) > 7  # two of them first tokens, the others later in the response
    return stats.combine_pvalues(values).pvalue


@pytest.mark.parametrize(
    ("backend", "temperature", "race"),
    [*((backend, 0.5, 1024) for backend in BACKENDS), ("hf", 1.0, 1024), ("hf", 0.5, 0)],
)
def test_samples_follow_the_policy(dozen, backend, temperature, race, many_batches, monkeypatch):
    """With V random numbers a row, and with one as vocabularies above RACE_VOCABULARY draw."""
    monkeypatch.setattr(choice, "RACE_VOCABULARY", race)
    torch.manual_seed(7)
    settings = {"temperature": temperature, "backend": backend}
    assert pvalue(dozen, expected_temperature=temperature, **settings) > FALSE_ALARM


WRONG = {"temperature a little off": {"temperature": 0.55}, "top-p": {"temperature": 0.5, "top_p": 0.95}}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_test_finds_what_is_wrong(dozen, wrong):
    """Against a policy at temperature 0.5, which each of these is not."""
    torch.manual_seed(7)
    assert pvalue(dozen, expected_temperature=0.5, backend="hf", **WRONG[wrong]) < FALSE_ALARM


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_prompt_that_is_repeated_is_read_once(policy_dir, kind, monkeypatch):
    policy, generation = load(policy_dir(kind=kind), generation__max_new_tokens=9)
    once = uneven_batch(policy, 5)
    ids, mask = (t.repeat_interleave(4, dim=0) for t in (once.prompt_ids, once.prompt_mask))
    read = []
    forward = cached.DynamicBatch._forward

    def counted(self, ids, positions, **options):
        read.append(tuple(ids.shape))
        return forward(self, ids, positions, **options)

    monkeypatch.setattr(cached.DynamicBatch, "_forward", counted)
    torch.manual_seed(1)
    rollout = hf.generate(policy, ids, mask, generation, greedy=False)
    assert read[0] == once.prompt_ids.shape
    assert rollout.response_mask.sum() > 100
    check_logprobs(policy, rollout)
    assert len({tuple(row.tolist()) for row in rollout.response_ids[:4]}) > 1


def test_an_end_that_is_an_ordinary_token_is_not_part_of_the_text(policy_dir, plain_tokenizer):
    policy, generation = load(policy_dir(), generation__stop_tokens=["e"], generation__max_new_tokens=40)
    rollout = sample(policy, uneven_batch(policy, 64), generation)
    end = plain_tokenizer.convert_tokens_to_ids("e")
    stopped = [i for i, ids in enumerate(rollout.response_token_ids()) if ids[-1] == end]
    texts = decode(policy, rollout, [])
    assert stopped
    for i in stopped:
        whole = plain_tokenizer.decode(rollout.response_ids[i][rollout.response_mask[i]], skip_special_tokens=True)
        assert texts[i] + "e" == whole
