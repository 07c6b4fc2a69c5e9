"""The cache of reference log-probs: used where nothing changed, made again where anything did."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny_models
import torch
from torch.testing import assert_close

from apa_cli.config.schema import AdapterConfig, PolicyConfig, ReferenceConfig
from apa_cli.data.prompts import LoggedResponse, Prompt
from apa_cli.models.policy_loading import load_policy
from apa_cli.models.reference import load_reference, reference_fingerprint
from apa_cli.rollouts.reference_logprobs import cache_key, reference_logprobs


def rows(*responses: tuple[int, ...], prompt: tuple[int, ...] = (5, 6)) -> list[Prompt]:
    return [
        Prompt(
            token_ids=prompt,
            text="",
            messages=None,
            columns={},
            logged=LoggedResponse(index=i, token_ids=ids, ended=True, score=None),
        )
        for i, ids in enumerate(responses)
    ]


DATA = rows((1, 2, 3), (4,), (5, 6))
KEY = cache_key("model", DATA, temperature=1.0)


class Cache:
    """Calls what is tested, and counts how often log-probs had to be made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made, self.warnings = folder, 0, list[str]()

    def __call__(self, data=DATA, key=KEY):
        def compute(data):
            self.made += 1
            return [torch.tensor([float(-i) for i in row.logged.token_ids]) for row in data]

        return reference_logprobs(
            data, key, self.folder, compute, note=lambda line: None, warn=self.warnings.append
        )  # fmt: skip

    @property
    def file(self) -> Path:
        (file,) = self.folder.iterdir()
        return file


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def test_the_second_time_it_is_read(cache):
    first, second = cache(), cache()
    assert (cache.made, cache.warnings) == (1, [])
    for found in (first, second):
        assert_close(found.of(0), torch.tensor([-1.0, -2.0, -3.0]))
        assert_close(found.of(1), torch.tensor([-4.0]))
        assert_close(found.of(2), torch.tensor([-5.0, -6.0]))


def spoil_a_number(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [spoil_a_number, lambda file: file.write_bytes(file.read_bytes()[:-4])])
def test_a_damaged_file_is_named_and_made_again(cache, damage):
    cache()
    damage(cache.file)
    assert_close(cache().of(2), torch.tensor([-5.0, -6.0]))
    assert cache.made == 2
    assert str(cache.file) in cache.warnings[0]
    assert "and is made again" in cache.warnings[0]
    cache()
    assert cache.made == 2


def test_a_file_under_a_name_that_is_not_its_own_is_not_believed(cache):
    cache()
    other = cache_key("another model", DATA, temperature=1.0)
    shutil.move(cache.file, cache.file.with_name(f"reference_{other[:32]}.safetensors"))
    cache(key=other)
    assert cache.made == 2
    assert "it is of other data" in cache.warnings[0]


def test_a_folder_that_takes_nothing_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache")
    assert_close(cache().of(1), torch.tensor([-4.0]))
    assert "could not be kept" in cache.warnings[0]


def test_the_key_notices_everything():
    keys = [
        KEY,
        cache_key("another model", DATA, temperature=1.0),
        cache_key("model", DATA, temperature=0.5),
        cache_key("model", DATA[::-1], temperature=1.0),
        cache_key("model", DATA[:2], temperature=1.0),
        cache_key("model", rows((1, 2, 3), (4,), (5, 7)), temperature=1.0),
        cache_key("model", rows((1, 2), (3, 4), (5, 6)), temperature=1.0),
        cache_key("model", rows((1, 2, 3), (4,), (5, 6), prompt=(5, 6, 7)), temperature=1.0),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key("model", rows((1, 2, 3), (4,), (5, 6)), temperature=1.0) == KEY


def fingerprint(place: Path, **adapter) -> str:
    config = PolicyConfig(path=str(place), adapter=AdapterConfig(**adapter))
    policy = load_policy(config, tiny_models.CPU)
    return reference_fingerprint(load_reference(ReferenceConfig(), config, policy, tiny_models.CPU))


def test_the_fingerprint_is_of_the_weights_not_of_the_place(policy_dir, tmp_path):
    policy = policy_dir()
    copy = Path(shutil.copytree(policy, tmp_path / "copy"))
    assert fingerprint(copy) == fingerprint(policy)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        next(model.parameters())[3, 3] += 1e-3  # one number of all
    model.save_pretrained(copy)
    assert fingerprint(copy) != fingerprint(policy)


def test_the_fingerprint_is_of_the_reference_not_of_what_is_trained(policy_dir, adapter_dir):
    """With an adapter the reference is the base: training it changes nothing. A trained start does."""
    policy = policy_dir()
    config = PolicyConfig(path=str(policy), adapter=AdapterConfig(r=2))
    loaded = load_policy(config, tiny_models.CPU)
    reference = load_reference(ReferenceConfig(), config, loaded, tiny_models.CPU)
    before = reference_fingerprint(reference)
    for parameter in loaded.trainable_parameters():
        parameter.data += 1.0
    assert reference_fingerprint(reference) == before
    assert fingerprint(policy, path=str(adapter_dir), r=0) != before
