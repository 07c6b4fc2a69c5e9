"""The packed layout: a group's prompt computed once gives what a row for each response gives."""

from dataclasses import replace

import pytest
import torch
from tiny_models import CPU, make_config, make_prompts, save_policy
from torch.testing import assert_close

from apa_cli.data.prompts import collate
from apa_cli.models.layout import layout_of, longest_row, rows_of_groups
from apa_cli.models.roles import load_models
from apa_cli.rollouts.agreement import check_agreement
from apa_cli.rollouts.attendant import Attendant
from apa_cli.rollouts.sources import Sampled, add_passes
from apa_cli.rollouts.trajectory import Trajectory

K = 4
LENGTHS = (5, 1, 6, 3, 2, 2, 2, 6, 1, 1, 4, 1)  # of the responses, four to a prompt


def groups(models, prompts=("the quick brown fox", "Human: hello there.", "a")):
    """Responses of random ids in groups of four, in the plain layout."""
    rows = [row for row in make_prompts(models.policy.tokenizer, prompts) for _ in range(K)]
    batch = collate(rows, models.policy.pad_token_id)
    ids = torch.randint(3, 200, (len(rows), 6), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    return Trajectory(
        prompt_ids=batch.prompt_ids,
        prompt_mask=batch.prompt_mask,
        response_ids=torch.where(mask, ids, models.policy.pad_token_id),
        response_mask=mask,
        ended=mask[:, 0],
    )


def packed(plain, numbers=(0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3)):
    return replace(plain, packed_rows=torch.tensor(numbers))


def gradients(models, trajectory, parts):
    """Log-probs, entropy and values, and gradients of a weighted sum of the first and the last."""
    weights = torch.randn(trajectory.response_mask.shape, generator=torch.Generator().manual_seed(1))
    found = {}
    with models.training():
        for rows in parts:
            part = trajectory.select(rows)
            T = part.response_mask.shape[1]
            logprobs, hidden = models.policy.logprobs(part.batch, temperature=0.7)
            outputs = [logprobs]
            if models.value is not None:
                outputs.append(models.value(part.batch, hidden=hidden))
            sum((torch.where(part.response_mask, out, 0.0) * weights[rows, :T]).sum() for out in outputs).backward()
            for name, tensor in zip(("logprobs", "values"), outputs, strict=False):
                whole = found.setdefault(name, torch.zeros_like(weights))
                whole[rows, :T] = torch.where(part.response_mask, tensor.detach(), 0.0)
    for name, parameter in models.named_parameters().items():
        if parameter.grad is not None:
            found[name], parameter.grad = parameter.grad, None
    return found


@pytest.mark.parametrize(
    ("critic", "rank", "attention", "checkpointing"),
    [
        ("separate", 0, None, False),
        ("shared", 0, "eager", True),
        ("adapter", 2, None, True),
        ("none", 2, "eager", False),
    ],
)
@pytest.mark.parametrize("kind", ["gpt_neox", "llama", "gpt2", "qwen2", "gemma2", "opt"])
def test_passes_and_gradients_equal_those_of_the_plain_layout(
    tmp_path, plain_tokenizer, kind, critic, rank, attention, checkpointing
):
    config = make_config(
        save_policy(tmp_path / "p", plain_tokenizer, kind=kind),
        policy__attn_implementation=attention,
        policy__gradient_checkpointing=checkpointing,
        policy__adapter__r=rank,
        value__kind=critic,
        advantage__name="group" if critic == "none" else "gae",
        rollout__responses_per_prompt=K,
    )
    models = load_models(config, CPU)
    torch.manual_seed(2)
    for parameter in models.named_parameters().values():  # new adapters and heads do nothing yet
        if parameter.requires_grad and parameter.dim() > 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    assert check_agreement(models.policy, models.reference, models.value, config)
    plain = groups(models)
    expected = gradients(models, plain, plain.microbatches(1000))
    assert len(expected) > 2
    for budget in (1000, 30, 8):
        shared = packed(plain)
        assert_close(gradients(models, shared, shared.microbatches(budget)), expected, atol=2e-5, rtol=1e-4)
    arguments = {"temperature": 0.7, "token_budget": 30, "policy_pass": True}
    roles = models.policy, models.reference, models.value
    with_plain, with_packed = (add_passes(each, *roles, **arguments) for each in (plain, packed(plain)))
    for name in ("rollout_logprobs", "reference_logprobs", *(["values"] if models.value is not None else [])):
        assert_close(getattr(with_packed, name), getattr(with_plain, name), atol=1e-5, rtol=1e-5)


def test_each_token_stands_once_and_reads_its_prompt_and_itself(tmp_path, plain_tokenizer):
    config = make_config(save_policy(tmp_path / "p", plain_tokenizer))
    policy = load_models(config, CPU).policy
    plain = groups(policy_only(policy))
    part = packed(plain).select(torch.tensor([4, 6, 5]))  # two rows: responses 4 and 5, and 6 alone
    layout = layout_of(part.batch, policy.model)
    prompt = part.prompt_ids[0][part.prompt_mask[0]].tolist()
    p, (a, c, b) = len(prompt), part.response_token_ids()
    assert layout.inputs["input_ids"].tolist() == [prompt + a + b, [*prompt, *c, 0, 0]]
    assert layout.inputs["position_ids"].tolist() == [[*range(p), p, p + 1, p, p + 1], [*range(p), p, p + 1, 0, 0]]
    read = layout.inputs["attention_mask"][0, 0].int().tolist()
    assert read[p - 1] == [1] * p + [0] * 4
    assert read[p + 1] == [1] * p + [1, 1, 0, 0]
    assert read[p + 3] == [1] * p + [0, 0, 1, 1]
    L = p + 4
    assert layout.places[[0, 2, 1]][:, :2].tolist() == [[p - 1, p], [p - 1, p + 2], [L + p - 1, L + p]]


def policy_only(policy):
    return type("Models", (), {"policy": policy})


@pytest.mark.parametrize(("kind", "packs"), [("llama", True), ("bloom", False)])
def test_a_trial_decides(tmp_path, plain_tokenizer, kind, packs):
    """Bloom takes its positions from the mask."""
    config = make_config(save_policy(tmp_path / "p", plain_tokenizer, kind=kind))
    models = load_models(config, CPU)
    assert check_agreement(models.policy, models.reference, models.value, config) == packs


def test_a_mask_that_is_not_obeyed_is_noticed(tmp_path, plain_tokenizer, monkeypatch):
    config = make_config(save_policy(tmp_path / "p", plain_tokenizer, kind="llama"))
    models = load_models(config, CPU)
    trunk = models.policy.parts.trunk
    forward = trunk.forward

    def careless(**inputs):
        mask = inputs.pop("attention_mask", None)
        return forward(attention_mask=mask if mask is None or mask.dim() == 2 else None, **inputs)

    monkeypatch.setattr(trunk, "forward", careless)
    assert not check_agreement(models.policy, models.reference, models.value, config)


def test_rows_of_groups():
    """One row a group while attention is cheap; else as few as give the least cost a response, of similar length."""

    def rows(prompt, *responses, k=4, width=64, longest=None):
        lengths = torch.tensor(responses)
        return rows_of_groups(torch.full_like(lengths, prompt), lengths, k, width=width, longest=longest).tolist()

    assert rows(30, 10, 20, 10, 5, 7, 7, 7, 7) == [0, 0, 0, 0, 1, 1, 1, 1]
    assert rows(10, 200, 200, 200, 200) == [0, 1, 2, 3]  # √(10 · 394) = 63 tokens: each alone
    assert rows(10, 30, 30, 30, 30) == [0, 0, 1, 1]
    assert rows(30, 10, 10, 10, 10, longest=50) == [0, 0, 1, 1]


def test_a_window_limits_the_rows(tmp_path, plain_tokenizer):
    config = make_config(save_policy(tmp_path / "p", plain_tokenizer, kind="gemma2"))
    models = load_models(config, CPU)
    window = models.policy.model.config.sliding_window
    assert longest_row(models.policy.model) == window == 4096
    assert models.longest_row() == min(window, models.policy.room)


def test_micro_batches_keep_shared_rows_within_the_budget(tmp_path, plain_tokenizer):
    config = make_config(save_policy(tmp_path / "p", plain_tokenizer))
    models = load_models(config, CPU)
    trajectory = packed(groups(models), (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2))
    for budget in (12, 20, 40, 200):
        parts = trajectory.microbatches(budget)
        assert sorted(torch.cat(parts).tolist()) == list(range(12))
        for rows in parts:
            ids = layout_of(trajectory.select(rows).batch, models.policy.model).inputs["input_ids"]
            assert ids.numel() <= budget or len(rows) == 1
    assert len(trajectory.microbatches(200)) == 1


def test_a_run_samples_into_packed_rows(tmp_path, plain_tokenizer):
    config = make_config(
        save_policy(tmp_path / "p", plain_tokenizer), value__kind="none", advantage__name="group",
        rollout__responses_per_prompt=K,
    )  # fmt: skip
    models = load_models(config, CPU)
    rows = [row for row in make_prompts(models.policy.tokenizer, ["the quick brown fox jumps", "a"]) for _ in range(K)]
    batch = collate(rows, models.policy.pad_token_id)
    found = []
    for packs in (False, True):
        torch.manual_seed(4)
        found.append(Sampled(models, config, Attendant(64), packed=packs).collect(batch))
    plain, shared = found
    assert plain.packed_rows is None
    assert shared.packed_rows.tolist()[:K] == [0] * K
    assert min(shared.packed_rows.tolist()[K:]) > 0
    assert torch.equal(plain.response_ids, shared.response_ids)
    assert_close(shared.reference_logprobs, plain.reference_logprobs, atol=1e-5, rtol=1e-5)
