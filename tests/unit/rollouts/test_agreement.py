"""Models that a run would compute differently from one pass to another: made to agree, or refused by name."""

from dataclasses import replace

import pytest
import torch
import transformers
from tiny_models import CPU, FAMILIES, iterate, make_config, make_prompts, make_stream, uneven_batch
from torch import nn

from apa_cli.data.prompts import collate
from apa_cli.errors import UserError
from apa_cli.models.device import Runtime
from apa_cli.models.roles import load_models
from apa_cli.rollouts import sources
from apa_cli.rollouts.agreement import check_agreement
from apa_cli.rollouts.backends import static
from apa_cli.rollouts.generation import sample
from apa_cli.training.run import train
from apa_cli.training.state import initial_state

BF16 = Runtime(device=torch.device("cpu"), bf16=True)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2}
ATTENTION = {**SMALL, "num_attention_heads": 2, "intermediate_size": 32}
SETTINGS = {
    "Mamba": {**SMALL, "state_size": 4},
    "Mamba2": {**SMALL, "state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "FalconH1": {**ATTENTION, "num_key_value_heads": 1, "head_dim": 8, "mamba_n_heads": 4, "mamba_d_head": 8}
    | {"mamba_d_ssm": 32, "mamba_d_state": 4, "mamba_chunk_size": 8},
    "Lfm2": {**ATTENTION, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]},
    "Falcon": {**SMALL, "num_attention_heads": 2, "alibi": True},
    "Rwkv": {**SMALL, "attention_hidden_size": 32},
    "Bert": ATTENTION,
    "OpenAIGPT": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}
HEADS = {"Bert": "BertLMHeadModel", "OpenAIGPT": "OpenAIGPTLMHeadModel"}


@pytest.fixture(scope="module")
def family(tmp_path_factory, plain_tokenizer):
    """family("Mamba"): the folder of a tiny model of that family, of weights wide enough to tell passes apart."""
    made = {}

    def make(name, head=None):
        if (name, head) not in made:
            torch.manual_seed(0)
            config = getattr(transformers, f"{name}Config")(vocab_size=len(plain_tokenizer), **SETTINGS[name])
            model = getattr(transformers, head or HEADS.get(name, f"{name}ForCausalLM"))(config)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=0.2)
            made[name, head] = folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            plain_tokenizer.save_pretrained(folder)
        return made[name, head]

    return make


def loaded(folder, runtime=CPU, **changes):
    config = make_config(changes.pop("policy__path", folder), **changes)
    return load_models(config, runtime), config


def check(models, config, **options):
    return check_agreement(models.policy, models.reference, models.value, config, **options)


def refused(models, config, **options):
    with pytest.raises(UserError) as caught:
        check(models, config, **options)
    return caught.value


@pytest.mark.parametrize("backend", ["hf", "static"])
@pytest.mark.parametrize("name", ["Mamba", "Mamba2", "FalconH1", "Lfm2"])
def test_recurrent_layers_are_given_the_masks_and_rows_that_are_theirs(family, name, backend):
    """KL of a policy that does not move is 0, whichever rows leave early and share a prompt."""
    models, config = loaded(
        family(name),
        generation__backend=backend,
        generation__max_new_tokens=8,
        rollout__responses_per_prompt=2,
        optimizer__learning_rate=1e-12,
        value__kind="shared",
    )
    packed = check(models, config)
    assert not packed
    state = initial_state(config, models, make_stream(models, config))
    for _ in range(2):
        assert abs(iterate(config, models, state, packed=packed)["kl/to_init"]) < 1e-4


@pytest.mark.parametrize(("name", "backend"), [("Falcon", "static"), ("OpenAIGPT", "hf")])
def test_a_backend_that_does_not_sample_from_the_model(family, name, backend):
    error = refused(*loaded(family(name), generation__backend=backend, value__kind="shared"))
    assert error.where == "generation.backend" and f"{backend} does not sample from {name}" in error.problem
    assert f"try generation.backend={'hf' if backend == 'static' else 'static'}" in error.remedy


def test_a_model_that_reads_its_padding(family, policy_dir):
    for key, folder, changes in (
        ("policy.path", family("Rwkv"), {"value__kind": "shared"}),
        ("reference.path", policy_dir(), {"reference__path": str(family("Rwkv"))}),
        ("value.path", policy_dir(), {"value__path": str(family("Rwkv"))}),
    ):
        error = refused(*loaded(folder, **changes))
        assert error.where == key and error.problem.startswith("outputs of Rwkv")
        assert "depend on padding or on the other rows of a batch: " in error.problem
    assert refused(*loaded(family("Rwkv"), value__kind="shared"), key="checkpoint").where == "checkpoint"


@pytest.mark.parametrize("key", ["policy.path", "reference.path", "value.path"])
def test_a_masked_language_model(family, policy_dir, key):
    name = key.replace(".", "__")
    with pytest.raises(UserError, match=f"{key}: .* a masked language model"):
        loaded(**{"folder": policy_dir(), name: str(family("Bert", "BertForMaskedLM"))})
    head, critic = ("BertModel", "separate") if key == "value.path" else ("BertLMHeadModel", "shared")
    folder = str(family("Bert", head))  # whose configuration does not say what it is
    error = refused(*loaded(**{"folder": policy_dir(), "value__kind": critic, name: folder}))
    assert error.where == key and "Bert" in error.problem and "reads the tokens that follow" in error.problem


def test_rows_that_depend_on_each_other(policy_dir):
    """As those of experts with a capacity do."""
    models, config = loaded(policy_dir())
    models.policy.model.base_model.layers[0].register_forward_hook(
        lambda _, __, out: out - 0.1 * out.mean(dim=0, keepdim=True) * (len(out) > 1)
    )
    error = refused(models, config)
    assert "GPTNeoXForCausalLM depend on padding or on the other rows of a batch: log-probs" in error.problem


@pytest.mark.parametrize(
    ("kind", "runtime", "changes"),
    [
        *((kind, CPU, {}) for kind in FAMILIES),
        ("llama", BF16, {"policy__adapter__r": 2}),
        ("gpt_neox", BF16, {"value__kind": "shared"}),
    ],
)
def test_families_that_agree_leave_no_trace(policy_dir, kind, runtime, changes):
    """Random states, training mode and gradients are as they were."""
    precision = "bf16" if runtime.bf16 else "fp32"
    models, config = loaded(policy_dir(kind=kind), runtime, precision=precision, **changes)
    before = torch.get_rng_state()
    check(models, config)
    assert torch.equal(before, torch.get_rng_state())
    assert not models.policy.model.training and not (models.value and models.value.training)
    assert all(parameter.grad is None for parameter in models.named_parameters().values())


def test_static_keeps_one_cache(policy_dir):
    """For the longest prompts so far, and with room to spare it gives the log-probs of one that fits."""
    models, config = loaded(policy_dir(), generation__backend="static", generation__max_new_tokens=40)
    policy, short, found = models.policy, uneven_batch(models.policy, 4), []
    long = collate(make_prompts(policy.tokenizer, ["the fox " * 60] * 4), policy.pad_token_id)
    for batch in (short, long, short):
        torch.manual_seed(0)
        found.append(sample(policy, batch, config.generation))
        assert static._KEPT[policy]._room == (128 if len(found) == 1 else 256)
    assert torch.equal(found[0].response_ids, found[2].response_ids)
    assert torch.equal(found[0].rollout_logprobs, found[2].rollout_logprobs)


def test_a_run_stops_before_its_first_update(policy_dir, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("the fox\nlazy dog\nover the dog\nyou\n" * 2)
    config = make_config(
        policy_dir(),
        output_dir=str(tmp_path / "run"),
        data__path=str(tmp_path / "prompts.txt"),
        evaluation__prompts=0,
        tracking__wandb__mode="disabled",
    )

    def off(*args, **options):
        rollout = sample(*args, **options)
        return replace(rollout, rollout_logprobs=rollout.rollout_logprobs - 0.01 * rollout.response_mask)

    monkeypatch.setattr(sources, "sample", off)
    with pytest.raises(UserError, match=r"^generation\.backend: before training, .* hf .* 0\.01 nats a token off"):
        train(config, [])
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()
