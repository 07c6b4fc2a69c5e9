"""What lies in a checkpoint and in final/: whole, verifiable, loadable with the ordinary libraries, never pickled."""

import hashlib
import json
import os

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import CPU, iterate, make_config, make_store, make_stream, uneven_batch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from apa_cli.checkpoints.export import export_final
from apa_cli.checkpoints.find import pointed_to
from apa_cli.checkpoints.manifest import MANIFEST, check_manifest, write_manifest
from apa_cli.config.schema import CheckpointConfig
from apa_cli.errors import UserError
from apa_cli.models.roles import load_models
from apa_cli.rollouts.generation import sample
from apa_cli.training.state import initial_state
from apa_cli.training.state_files import Snapshot

# Settings that contradict one another, as many published models have them: saving must not refuse them.
OWN = {"do_sample": False, "top_k": 1, "repetition_penalty": 1.3, "temperature": 0.1, "eos_token_id": [0, 70]}


def trained(folder, tmp_path, iterations=1, **changes):
    config = make_config(folder, **changes)
    models = load_models(config, CPU)
    state = initial_state(config, models, make_stream(models, config))
    torch.manual_seed(1)
    for _ in range(iterations):
        iterate(config, models, state)
    return config, models, state


def test_a_checkpoint_is_whole_and_its_manifest_true(policy_dir, tmp_path):
    config, models, state = trained(policy_dir(), tmp_path, policy__adapter__r=2)
    folder = make_store(tmp_path, config.checkpoint).save(Snapshot(models=models, state=state))
    assert folder == tmp_path / "checkpoints" / "iter_000001"
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    manifest = json.loads((folder / MANIFEST).read_text())
    assert set(manifest["files"]) == files - {MANIFEST}
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert {
        "policy/adapter_model.safetensors",
        "value/model.safetensors",
        "value/value_head.safetensors",
        "trainer_state/state.json",
        "trainer_state/optimizer.safetensors",
    } <= files
    assert (folder.parent / "latest").read_text() == "iter_000001\n"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["iter_000001", "latest"]


def test_the_newest_are_kept(policy_dir, tmp_path):
    _config, models, state = trained(policy_dir(), tmp_path, iterations=0, policy__adapter__r=2, value__kind="shared")
    for keep, expected in ((2, ["iter_000009", "iter_000010"]), (0, [f"iter_{i:06d}" for i in (8, 9, 10)])):
        store = make_store(tmp_path / str(keep), CheckpointConfig(every=1, keep=keep))
        for state.iteration in (8, 9, 10):
            store.save(Snapshot(models=models, state=state))
        assert sorted(p.name for p in store.folder.iterdir() if p.is_dir()) == expected
        assert pointed_to(store.folder / "latest") == store.folder / "iter_000010"


def test_saving_again_replaces(policy_dir, tmp_path):
    config, models, state = trained(policy_dir(), tmp_path, iterations=0, policy__adapter__r=2, value__kind="shared")
    store = make_store(tmp_path, config.checkpoint)
    first = store.save(Snapshot(models=models, state=state))
    before = sorted(p.name for p in (first / "policy").iterdir())
    (first / "policy" / "notes.txt").write_text("the user's")
    assert store.save(Snapshot(models=models, state=state)) == first
    assert sorted(p.name for p in (first / "policy").iterdir()) == sorted([*before, "notes.txt"])
    assert check_manifest(first, "checkpoint") == ["policy/notes.txt"]


def test_no_save_fails_for_its_pointer(policy_dir, tmp_path, monkeypatch):
    config, models, state = trained(policy_dir(), tmp_path, iterations=0, policy__adapter__r=2, value__kind="shared")
    monkeypatch.setattr("apa_cli.checkpoints.store.write_text", lambda *_: os.stat("/nowhere"))
    assert (
        make_store(tmp_path, config.checkpoint).save(Snapshot(models=models, state=state))
        == tmp_path / "checkpoints" / "iter_000000"
    )


def test_when_a_checkpoint_is_due(tmp_path):
    store = make_store(tmp_path, CheckpointConfig(every=3, keep=2))
    assert [i for i in range(1, 9) if store.due(i, 8)] == [3, 6, 8]
    store = make_store(tmp_path, CheckpointConfig(every=0, keep=2))
    assert [i for i in range(1, 9) if store.due(i, 8)] == [8]


def test_a_full_policy_loads_with_transformers(policy_dir, tmp_path):
    folder = policy_dir(generation=OWN)
    config, models, state = trained(folder, tmp_path)
    rollout = sample(models.policy, uneven_batch(models.policy), config.generation)
    expected, _ = models.policy.logprobs(rollout.batch, temperature=1.0)
    checkpoint = make_store(tmp_path, config.checkpoint).save(Snapshot(models=models, state=state))
    final = export_final(models.policy, tmp_path / "final", config, {}, {})
    start = AutoModelForCausalLM.from_pretrained(folder)
    for saved in (final, checkpoint / "policy"):
        model = AutoModelForCausalLM.from_pretrained(saved).eval()
        assert not torch.equal(model.get_output_embeddings().weight, start.get_output_embeddings().weight)
        model.generation_config = GenerationConfig()
        models.policy.model = model
        assert_close(models.policy.logprobs(rollout.batch, temperature=1.0)[0], expected, atol=1e-6, rtol=0)
        tokenizer = AutoTokenizer.from_pretrained(saved)
        assert tokenizer("the quick fox")["input_ids"] == models.policy.tokenizer("the quick fox")["input_ids"]
        own = json.loads((saved / "generation_config.json").read_text())
        assert {name: own.get(name) for name in OWN if OWN[name] is not False} == {
            name: value for name, value in OWN.items() if value is not False
        }
        assert GenerationConfig.from_pretrained(saved).top_k == 1


def test_rollouts_stay_neutral_after_a_save(policy_dir, tmp_path):
    config, models, state = trained(policy_dir(generation=OWN), tmp_path)
    batch = uneven_batch(models.policy)
    torch.manual_seed(2)
    before = sample(models.policy, batch, config.generation).response_ids
    make_store(tmp_path, config.checkpoint).save(Snapshot(models=models, state=state))
    torch.manual_seed(2)
    assert torch.equal(sample(models.policy, batch, config.generation).response_ids, before)


@pytest.mark.parametrize("start", ["lora", "trained"])
def test_an_adapter_loads_with_peft(policy_dir, adapter_dir, tmp_path, start):
    adapter = {"policy__adapter__r": 2} if start == "lora" else {"policy__adapter__path": str(adapter_dir)}
    config, models, _ = trained(policy_dir(), tmp_path, **adapter)
    rollout = sample(models.policy, uneven_batch(models.policy), config.generation)
    expected, _ = models.policy.logprobs(rollout.batch, temperature=1.0)
    reference = models.reference.logprobs(rollout.batch, temperature=1.0)
    assert (expected - reference).abs().max() > 1e-3
    final = export_final(models.policy, tmp_path / "final", config, {}, {})
    assert {p.name for p in final.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    assert not any(p.is_dir() for p in final.iterdir())  # the reference's adapter stays at home
    models.policy.model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy_dir()), final).eval()
    assert_close(models.policy.logprobs(rollout.batch, temperature=1.0)[0], expected, atol=1e-6, rtol=0)
    AutoTokenizer.from_pretrained(final)


def test_what_is_saved_has_the_dropouts_of_its_source(policy_dir, tmp_path):
    """They are off in the run, whose saved models are for others to train on; critic and nested settings too."""
    folder = policy_dir(kind="gpt2", pad=False, dropout=0.25)
    config, models, state = trained(folder, tmp_path)
    checkpoint = make_store(tmp_path, config.checkpoint).save(Snapshot(models=models, state=state))
    final = export_final(models.policy, tmp_path / "final", config, {}, {}, models.value)
    names = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout")
    source = json.loads((folder / "config.json").read_text())
    for saved in (final, final / "value", checkpoint / "policy", checkpoint / "value"):
        facts = json.loads((saved / "config.json").read_text())
        assert {name: facts[name] for name in names} == {name: source[name] for name in names}, saved
    assert models.policy.model.config.resid_pdrop == models.value.trunk.config.resid_pdrop == 0.0


@pytest.mark.parametrize(("asked", "dtype"), [("source", torch.bfloat16), ("fp16", torch.float16), ("trained", None)])
@pytest.mark.parametrize("adapter", [0, 2])
def test_final_is_rounded_when_asked(policy_dir, tmp_path, asked, dtype, adapter):
    folder = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(policy_dir(kind="gpt2", pad=False), dtype=torch.bfloat16).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(policy_dir(kind="gpt2", pad=False)).save_pretrained(folder)
    changes = {"checkpoint__final_dtype": asked, "policy__adapter__r": adapter}
    config, models, state = trained(folder, tmp_path, **changes)
    final = export_final(models.policy, tmp_path / "final", config, {}, {})
    saved = load_file(next(final.glob("*.safetensors")))
    assert {weight.dtype for weight in saved.values()} == {dtype or torch.float32}
    if not adapter:
        model = AutoModelForCausalLM.from_pretrained(final)
        assert model.dtype == (dtype or torch.float32)
        assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
        for name, weight in models.policy.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], weight.to(model.dtype)), name
    checkpoint = make_store(tmp_path, config.checkpoint).save(Snapshot(models=models, state=state))
    weights = load_file(next((checkpoint / "policy").glob("*.safetensors")))
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def store(tmp_path, **settings):
    return make_store(tmp_path, CheckpointConfig(keep=1, best_metric="eval/reward", **settings))


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 3)])
def test_the_best_checkpoint_outlives_the_newest(tmp_path, monkeypatch, mode, best):
    """Rewards 1, 5, 0, 4 at iterations 1 to 4: with keep=1 there remain the newest and the best."""
    kept = store(tmp_path, best_mode=mode)
    for iteration, reward in enumerate([1.0, 5.0, 0.0, 4.0], start=1):
        folder = kept.folder / f"iter_{iteration:06d}"
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
        write_manifest(folder)
        metrics = {"eval/reward": reward}
        if kept.improves(metrics):
            kept.mark_best(folder, metrics)
        kept._prune(folder)
    assert sorted(path.name for path in kept.folder.glob("iter_*")) == sorted({f"iter_{best:06d}", "iter_000004"})
    assert (kept.folder / "best").read_text() == f"iter_{best:06d}\n"
    assert not store(tmp_path, best_mode=mode).improves({"eval/reward": 5.0 if mode == "max" else 0.0})


def test_an_unknown_metric_is_named(tmp_path):
    with pytest.raises(UserError, match="eval/reward is not measured; choose one of eval/kl"):
        store(tmp_path).improves({"eval/kl": 1.0})
