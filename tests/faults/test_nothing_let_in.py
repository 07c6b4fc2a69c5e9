"""Nothing runs code from a model's folder, a checkpoint or a YAML file unless the configuration says so by name.

Each test plants code that would leave a file behind, and looks for that file at the end.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from command import apa_train
from refused import refusal
from tiny_models import CPU, make_config, make_prompts, make_tokenizer, save_reward

from apa_cli.checkpoints.export import save_policy as export_policy
from apa_cli.config.compose import compose_train
from apa_cli.config.schema import RewardConfig
from apa_cli.data.prompts import Prompt
from apa_cli.data.tokenization import encode
from apa_cli.errors import UserError
from apa_cli.models.policy_loading import load_policy
from apa_cli.models.roles import load_models
from apa_cli.models.value import load_value
from apa_cli.rewards.record import FinishedResponses
from apa_cli.rewards.scorers import load_reward, load_scorers
from apa_cli.training.memory_plan import make_plan

WEIGHT_KEYS = ("policy.path", "reference.path", "reward.path", "evaluation.reward.path", "value.path")
PICKLES = ("pytorch_model.bin", "model.pt", "weights.pkl", "consolidated.00.pth", "pytorch_model-00001-of-00002.bin")


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "code-has-run"
    yield path
    assert not path.exists(), "planted code has run"


class Trap:
    """Unpickling it creates the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def set_trap(file: Path, marker: Path) -> None:
    """Both formats that torch.load knows."""
    if file.suffix in (".pt", ".pth"):
        torch.save({"weight": Trap(marker)}, file)
    else:
        file.write_bytes(pickle.dumps(Trap(marker)))


def test_the_trap_works(tmp_path):
    """Otherwise the tests here would prove nothing."""
    for name in PICKLES:
        set_trap(tmp_path / name, tmp_path / f"{name}-ran")
        if name.endswith((".pt", ".pth")):
            torch.load(tmp_path / name, weights_only=False)
        else:
            pickle.loads((tmp_path / name).read_bytes())
        assert (tmp_path / f"{name}-ran").exists()


def with_model(key: str, folder: Path, base: Path):
    """A configuration in which `folder` plays the part that `key` names."""
    changes = {key.replace(".", "__"): str(folder)}
    if key.endswith("reward.path"):
        group = key.removesuffix(".path").replace(".", "__")
        changes |= {f"{group}__kind": "model", f"{group}__function": None}
    return make_config(
        folder if key == "policy.path" else base, **{**changes, "policy__path": changes.get("policy__path", str(base))}
    )


def load_all(config, **options):
    """Every model of a run, rewards included."""
    models = load_models(config, CPU, **options)
    load_scorers(config, models.policy, CPU)
    return models


def refused(config, key: str, *words: str) -> None:
    with contextlib.suppress(Exception):  # the plan comes first in a run, and may let in no more
        make_plan(config, CPU)
    message = refusal(load_all, config)
    assert message.startswith(f"{key}: "), message
    assert [word for word in words if word not in message] == [], message


@pytest.fixture
def copy(policy_dir, reward_dir, tmp_path):
    """copy(key): a sound folder for that part, to spoil."""

    def make(key: str) -> Path:
        source = reward_dir if key.endswith("reward.path") else policy_dir()
        return shutil.copytree(source, tmp_path / f"copy-{len(list(tmp_path.iterdir()))}")

    return make


@pytest.mark.parametrize(("key", "name"), zip(WEIGHT_KEYS, PICKLES, strict=True))
def test_pickled_weights_are_refused_wherever_weights_come_from(key, name, copy, policy_dir, marker):
    folder = copy(key)
    (folder / "model.safetensors").unlink()
    set_trap(folder / name, marker)
    refused(with_model(key, folder, policy_dir()), key, "pickled weights only", name, "convert it once with")


@pytest.mark.parametrize("key", WEIGHT_KEYS)
def test_beside_safetensors_pickles_are_not_read(key, copy, policy_dir, marker):
    folder = copy(key)
    for name in (*PICKLES, "training_args.bin", "optimizer.pt"):
        set_trap(folder / name, marker)
    load_all(with_model(key, folder, policy_dir()))


@pytest.mark.parametrize("key", WEIGHT_KEYS)
def test_a_pickle_under_the_name_of_safetensors(key, copy, policy_dir, marker):
    folder = copy(key)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(marker)))
    refused(with_model(key, folder, policy_dir()), key)


@pytest.mark.parametrize("named", ["pytorch_model.bin", "../elsewhere/model.safetensors"])
def test_an_index_that_leads_to_a_pickle_or_out_of_the_folder(named, copy, policy_dir, marker):
    folder = copy("policy.path")
    set_trap(folder / "pytorch_model.bin", marker)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"embed_out.weight": named}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(with_model("policy.path", folder, policy_dir()), "policy.path", named)


def test_pickled_adapters(policy_dir, adapter_dir, tmp_path, marker):
    folder = shutil.copytree(adapter_dir, tmp_path / "adapter")
    set_trap(folder / "adapter_model.bin", marker)
    load_policy(make_config(policy_dir(), policy__adapter__path=str(folder)).policy, CPU)
    (folder / "adapter_model.safetensors").unlink()
    config = make_config(policy_dir(), policy__adapter__path=str(folder))
    refused(config, "policy.adapter.path", "pickled", "safetensors")
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Trap(marker)))
    refused(config, "policy.adapter.path")


def test_an_adapter_that_names_code(policy_dir, adapter_dir, tmp_path, marker, monkeypatch):
    folder = shutil.copytree(adapter_dir, tmp_path / "adapter")
    (tmp_path / "planted_megatron.py").write_text(f"open({str(marker)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"megatron_config": {"a": 1}, "megatron_core": "planted_megatron"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    refused(make_config(policy_dir(), policy__adapter__path=str(folder)), "policy.adapter.path", "planted_megatron")


@pytest.mark.parametrize("adapted", [False, True])
def test_pickles_in_a_checkpoint(adapted, policy_dir, tmp_path, marker):
    config = make_config(policy_dir(), policy__adapter__r=2 if adapted else 0)
    models = load_all(config)
    checkpoint = tmp_path / "checkpoint"
    export_policy(models.policy, checkpoint / "policy")
    models.value.save(checkpoint / "value")
    for folder in ("policy", "value"):
        for name in (*PICKLES, "adapter_model.bin"):
            set_trap(checkpoint / folder / name, marker)
    load_all(config, checkpoint=checkpoint)
    weights = checkpoint / "policy" / ("adapter_model.safetensors" if adapted else "model.safetensors")
    weights.unlink()
    with pytest.raises(UserError, match="pickled"):
        load_policy(config.policy, CPU, weights=checkpoint / "policy")
    head = checkpoint / "value" / "value_head.safetensors"
    head.write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(UserError, match=r"^checkpoint: .*value_head"):
        load_value(config.value, config.policy, models.policy, CPU, weights=checkpoint / "value")
    (checkpoint / "value" / "model.safetensors").unlink()
    (checkpoint / "value" / "value_head.safetensors").unlink()
    with pytest.raises(UserError, match="pickled"):
        load_value(config.value, config.policy, models.policy, CPU, weights=checkpoint / "value")


MODEL_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")


def plant_code(folder: Path, marker: Path) -> None:
    """A model type of its own, as repositories with remote code have it."""
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "planted",
        "auto_map": {"AutoConfig": "modeling_planted.Config", **dict.fromkeys(MODEL_CLASSES, "modeling_planted.Model")},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["modeling_planted.Tokenizer", None]}, "tokenizer_class": "Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    code = (
        f"open({str(marker)!r}, 'w')\nfrom transformers import GPTNeoXConfig, GPTNeoXModel, PreTrainedTokenizerFast\n"
        "class Config(GPTNeoXConfig):\n    model_type = 'planted'\n"
        "class Model(GPTNeoXModel):\n    config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    (folder / "modeling_planted.py").write_text(code)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("key", WEIGHT_KEYS)
def test_code_of_a_repository(key, trusted, copy, policy_dir, marker, monkeypatch):
    """trust_remote_code is the policy's alone: its word does not go for other models."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    folder = copy(key)
    plant_code(folder, marker)
    config = with_model(key, folder, policy_dir())
    config.policy.trust_remote_code = trusted
    if key == "policy.path" and trusted:
        with pytest.raises(Exception, match=r"planted|Model"):  # it is no language model, but its code was run
            load_all(config)
        assert marker.exists()
        marker.unlink()
    else:
        refused(config, key)


def test_code_in_a_tokenizer_alone(copy, policy_dir, marker):
    folder = copy("policy.path")
    before = json.loads((folder / "config.json").read_text())
    plant_code(folder, marker)
    (folder / "config.json").write_text(json.dumps(before))
    load_all(with_model("policy.path", folder, policy_dir()))  # as the kind that transformers knows


def test_an_attention_kernel_from_the_hub(copy, policy_dir):
    folder = copy("policy.path")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "somebody/kernel"}))
    refused(with_model("policy.path", folder, policy_dir()), "policy.path", "somebody/kernel", "code")


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.append.__self__.__class__.__base__.__subclasses__() }}",
    "{% set x = namespace.__init__.__globals__ %}{{ x }}",
    "{% for i in range(10 ** 12) %}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ lipsum.__globals__['os'].system('touch MARKER') }}",
    "{{ 1 // 0 }}",
)


@pytest.mark.parametrize("escape", ESCAPES)
def test_chat_templates_stay_in_their_sandbox(escape, marker, tmp_path, policy_dir):
    tokenizer = make_tokenizer(chat=True)
    tokenizer.chat_template = escape.replace("MARKER", str(marker))
    messages = [{"role": "user", "content": "hello"}]
    row = Prompt(place="prompts.jsonl, line 1", text="hello", messages=tuple(messages), columns={})
    assert refusal(encode, [row], tokenizer).startswith("prompts.jsonl, line 1: the chat template refuses the messages")
    save_reward(tmp_path / "reward", tokenizer)
    policy = load_policy(make_config(policy_dir()).policy, CPU)
    scorer = load_reward(RewardConfig(path=str(tmp_path / "reward")), policy, CPU, microbatch_tokens=100)
    ids = [list(make_prompts(policy.tokenizer, ["hello"])[0].token_ids)]
    texts = FinishedResponses(prompts=["hello"], responses=["x"], messages=[messages], columns={}, token_ids=ids)
    with pytest.raises(UserError, match=r"^reward\.path: the chat template of "):
        scorer(texts)


YAML = {
    "python tags": "seed: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [MARKER]]",
    "a python name": "seed: !!python/name:os.system",
    "_target_": "policy:\n  _target_: pathlib.Path.touch\n  path: MARKER",
    "a target at the root": "_target_: os.mkdir\npath: MARKER",
    "a callback of Hydra": "hydra:\n  callbacks:\n    mine:\n      _target_: os.mkdir\n      path: MARKER",
    "a launcher of Hydra": "hydra:\n  launcher:\n    _target_: os.mkdir\n    path: MARKER",
    "a logging handler": (
        "hydra:\n  job_logging:\n    version: 1\n    handlers:\n      mine: {(): os.mkdir, path: MARKER}\n"
        "    root:\n      handlers: [mine]"
    ),
    "a search path": "hydra:\n  searchpath: ['pkg://planted']",
    "a resolver": "output_dir: ${eval:open('MARKER','w')}",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_runs_nothing(text, marker, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("MARKER", str(marker)) + "\n")
    refusal(compose_train, [f"config={file}", "output_dir=x"])


@pytest.mark.parametrize("mode", [("--cfg", "job"), ("--info",), ("-m", "seed=0,1"), ("-m", "hydra.sweep.dir=x")])
def test_no_mode_of_the_command_runs_a_callback(mode, marker, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(YAML["a callback of Hydra"].replace("MARKER", str(marker)) + "\n")
    run = apa_train(tmp_path / "run", f"config={file}", *mode, cwd=tmp_path)
    assert run.code == 2
    assert "hydra.callbacks.mine._target_: names code" in run.errors


def test_hydra_in_yaml_may_say_all_that_is_no_code(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [reviews_apa]\nhydra:\n  sweep:\n    dir: somewhere\n  verbose: true\n")
    compose_train([f"config={file}", "output_dir=x"])
