"""Tokenizers made on the spot: byte-level, so that any text has tokens and every byte is one of them."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from apa_cli.config.schema import DataConfig

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('tools are not for this model') }}{% endif %}"
    "[{{ message.role }}]{{ message.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_tokenizer(*, bos=False, eos=False, template=None):
    """One token a byte: id 0 is <s>, 1 is </s>, and ASCII character c has an id of its own above these."""
    vocabulary = {"<s>": 0, "</s>": 1}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    if bos or eos:
        single = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", model_max_length=8)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """Adds nothing, and has neither a pad token nor a chat template."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def wrapping_tokenizer():
    """Puts BOS in front and EOS behind."""
    return make_tokenizer(bos=True, eos=True)


@pytest.fixture(scope="session")
def chat_tokenizer():
    return make_tokenizer(bos=True, template=TEMPLATE)


@pytest.fixture(scope="session")
def with_template():
    """with_template(text): a tokenizer with this chat template, and no BOS of its own."""
    return lambda template: make_tokenizer(template=template)


@pytest.fixture
def config():
    """A DataConfig with a path and whatever else a test sets."""

    def make(path, **settings):
        return DataConfig(path=str(path), **settings)

    return make
