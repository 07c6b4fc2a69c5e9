"""Fixtures that many tests share, and the reason that a test for a GPU is skipped with."""

from __future__ import annotations

import gc
import os

import leave_nothing
import pytest
import tiny_models
import torch
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)  # pytest --hypothesis-profile=default searches anew
settings.load_profile("repeatable")

torch.set_num_threads(1)  # tiny models are slower on more
os.fsync = lambda descriptor: None  # no test cuts the power, and a run of a few iterations waits for the disk 150 times


def pytest_configure(config):
    leave_nothing.listen(worker=hasattr(config, "workerinput"))


def pytest_make_parametrize_id(val, argname):
    """Bytes are named after their argument: compressed ones contain the time, and workers must collect equal ids."""
    return argname if isinstance(val, bytes | bytearray) else None


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False here")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


def pytest_collection_finish():
    gc.freeze()  # collections within tests need not look through what the libraries hold


@pytest.fixture(scope="session")
def plain_tokenizer():
    """Byte-level BPE with <eos> and a <pad> of its own."""
    return tiny_models.make_tokenizer()


@pytest.fixture(scope="session")
def padless_tokenizer():
    """Without a pad token, as GPT-2, Pythia and Llama have it."""
    return tiny_models.make_tokenizer(pad=False)


@pytest.fixture(scope="session")
def policy_dir(tmp_path_factory, plain_tokenizer, padless_tokenizer):
    """policy_dir(kind="llama", ...): the folder of a tiny causal LM, built once a session for the same settings."""
    made = {}

    def make(*, pad=True, **settings):
        key = (pad, repr(sorted(settings.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp("policy")
            made[key] = tiny_models.save_policy(folder, plain_tokenizer if pad else padless_tokenizer, **settings)
        return made[key]

    return make


@pytest.fixture(scope="session")
def adapter_dir(tmp_path_factory, policy_dir):
    """A trained LoRA adapter on policy_dir()."""
    return tiny_models.save_adapter(tmp_path_factory.mktemp("adapter"), policy_dir())


@pytest.fixture(scope="session")
def reward_dir(tmp_path_factory, plain_tokenizer):
    """A tiny reward model that shares its tokenizer with policy_dir()."""
    return tiny_models.save_reward(tmp_path_factory.mktemp("reward"), plain_tokenizer)
