"""Small models in Hugging Face format, built on the spot for tests: random weights, a BPE tokenizer on given text.

At the end, what a run is made of without the command: a configuration, a rollout, an iteration.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForSequenceClassification,
    PreTrainedTokenizerFast,
)

from apa_cli.checkpoints.store import CheckpointStore
from apa_cli.config.checks import check_config
from apa_cli.config.schema import CheckpointConfig, DataConfig, PolicyConfig, TrainConfig
from apa_cli.data.prompts import Prompt, PromptBatch, PromptStream, collate
from apa_cli.models.device import Runtime
from apa_cli.models.roles import Models
from apa_cli.rewards.scorers import load_scorers
from apa_cli.rollouts.attendant import Attendant
from apa_cli.rollouts.sources import Sampled
from apa_cli.rollouts.trajectory import Trajectory
from apa_cli.training import iteration
from apa_cli.training.iteration import Learner
from apa_cli.training.state import TrainingState, objective_of

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HEADERS = (
    "{{ '<|begin|>' }}{% for message in messages %}<|header|>{{ message.role }}<|end_header|>\n\n"
    "{{ message.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|end_header|>\n\n{% endif %}"
)
NO_SYSTEM = (
    "<bos>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# In the manner of Qwen, Llama 3 and Gemma: (template, its special tokens, the one that ends a turn).
CHAT_FAMILIES = {
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "headers": (HEADERS, ("<|begin|>", "<|header|>", "<|end_header|>", "<|eot|>"), "<|eot|>"),
    "no_system": (NO_SYSTEM, ("<bos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
}
TEXTS = ["the quick brown fox jumps over the lazy dog", "Human: hello there. Assistant: good day to you!"]


def make_tokenizer(
    texts: Iterable[str] = TEXTS,
    *,
    vocabulary: int = 300,
    pad: bool = True,
    chat: bool = False,
    specials: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `<eos>`, and `<pad>` unless `pad` is False."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special_tokens = ["<eos>", *(["<pad>"] if pad else []), *specials]
    if chat:
        special_tokens += ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special_tokens,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>" if pad else None, model_max_length=1024
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_chat_tokenizer(family: str, *, bos: bool = False) -> PreTrainedTokenizerFast:
    """With a template of CHAT_FAMILIES, whose end of turn is not EOS; `bos` puts a BOS in front of every plain text."""
    template, specials, _ = CHAT_FAMILIES[family]
    tokenizer = make_tokenizer(specials=specials, vocabulary=320)
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{specials[0]} $A", special_tokens=[(specials[0], tokenizer.convert_tokens_to_ids(specials[0]))]
        )
    tokenizer.chat_template = template
    return tokenizer


def _sizes(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": hidden * 2,
        "max_position_embeddings": 1024,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }


FAMILIES = ("gpt_neox", "llama", "gpt2", "qwen2", "gemma2", "bloom", "opt")


OWN: dict[str, dict[str, Any]] = {  # settings of one family alone
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 1},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 2.0},
}
DROPOUTS = {
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "opt": ("dropout", "attention_dropout", "layerdrop"),
    **dict.fromkeys(("gpt_neox", "bloom"), ("hidden_dropout", "attention_dropout")),
}


def _causal_lm(kind: str, sizes: dict[str, int], dropout: float) -> Any:
    settings = {"initializer_range": 0.2, **OWN.get(kind, {}), **dict.fromkeys(DROPOUTS.get(kind, ()), dropout)}
    if kind == "bloom":  # reads as much as there is
        sizes = {name: size for name, size in sizes.items() if name != "max_position_embeddings"}
    if kind == "opt":
        hidden = sizes["hidden_size"]
        settings |= {"init_std": 0.2, "ffn_dim": hidden * 2, "word_embed_proj_dim": hidden, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **settings))


def save_policy(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    kind: str = "gpt_neox",
    hidden: int = 16,
    layers: int = 2,
    seed: int = 0,
    dropout: float = 0.0,
    eos_logit: float | None = None,
    likely: str | None = None,
    generation: dict[str, Any] | None = None,
) -> Path:
    """A causal LM with weights wide enough that its distributions differ from uniform.

    `eos_logit` (gpt_neox) makes EOS, or the token `likely`, about e^eos_logit times as likely as another;
    `generation` is written to generation_config.json as it stands.
    """
    torch.manual_seed(seed)
    model = _causal_lm(kind, _sizes(tokenizer, hidden, layers), dropout)
    if eos_logit is not None:
        end = tokenizer.convert_tokens_to_ids(likely or tokenizer.eos_token)
        with torch.no_grad():
            model.get_output_embeddings().weight[end] = 0
            model.get_output_embeddings().weight[end, 0] = eos_logit
            model.base_model.final_layer_norm.bias[0] = 1.0
            model.base_model.final_layer_norm.weight[0] = 0.1
    model.save_pretrained(folder)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    tokenizer.save_pretrained(folder)
    return folder


def save_reward(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    labels: int = 1,
    hidden: int = 16,
    layers: int = 1,
    seed: int = 1,
) -> Path:
    """A sequence classifier whose scores differ from text to text."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        **_sizes(tokenizer, hidden, layers),
        num_labels=labels,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    GPTNeoXForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_encoder_reward(folder: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int = 2) -> Path:
    """A BERT classifier with one output, which pools its first token."""
    torch.manual_seed(seed)
    sizes = {**_sizes(tokenizer, 16, 1), "max_position_embeddings": 64, "pad_token_id": tokenizer.pad_token_id}
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    config = BertConfig(**sizes, **dropout, num_labels=1, initializer_range=0.2)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, *, seed: int = 3, scale: float = 0.3) -> Path:
    """A LoRA adapter on `base` that is not the identity, as training would leave it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * scale
    model.save_pretrained(folder)
    return folder


eight_bit = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes: apa-cli[8bit]")
CPU = Runtime(device=torch.device("cpu"), bf16=False)


def vowels(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that a run may name: tiny_models:vowels."""
    return [float(sum(c in "aeiou" for c in response)) - 0.1 * len(response) for response in responses]


def make_config(policy: Path | str, **changes: Any) -> TrainConfig:
    """A small run's configuration; dots of keys are written as two underscores: objective__name="ppo"."""
    config = TrainConfig(output_dir="unused", policy=PolicyConfig(path=str(policy)), data=DataConfig(path="unused"))
    defaults = {
        "reward__kind": "function",
        "reward__function": "tiny_models:vowels",
        "generation__max_new_tokens": 6,
        "rollout__batch_size": 8,
        "training__minibatch_size": 4,
        "optimizer__learning_rate": 1e-2,
        "training__microbatch_tokens": 64,
        "device": "cpu",
    }
    for key, value in {**defaults, **changes}.items():
        *groups, name = key.split("__")
        node: Any = config
        for group in groups:
            node = getattr(node, group)
        assert hasattr(node, name), key
        setattr(node, name, value)
    check_config(config)
    config.objective.kl_lambda = config.objective.resolved.get(
        "kl_lambda", config.objective.kl_lambda
    )  # as compose does
    return config


def make_prompts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[Prompt]:
    return [
        Prompt(token_ids=tuple(tokenizer(text)["input_ids"]), text=text, messages=None, columns={}) for text in texts
    ]


UNEVEN = [
    "the",
    "the quick brown fox jumps over",
    "Human: hello",
    "fox",
    "lazy dog over the fox there",
    "you",
    "a b",
    "to",
]


def uneven_batch(policy: Any, rows: int = 8) -> PromptBatch:
    """Prompts of very different lengths, in one left-padded batch."""
    texts = [UNEVEN[i % len(UNEVEN)] for i in range(rows)]
    return collate(make_prompts(policy.tokenizer, texts), policy.pad_token_id)


def make_rollout(models: Models, config: TrainConfig, prompts: PromptBatch) -> Trajectory:
    """What the loop makes of a batch of prompts: sampled, with every pass the objective needs."""
    attendant = Attendant(config.training.microbatch_tokens)
    policy_pass = objective_of(config.objective).anchor == "rollout"
    return replace(Sampled(models, config, attendant, policy_pass=policy_pass).collect(prompts), texts=None)


class NoMetrics:
    def sync(self) -> bool:
        return True

    def copy_to(self, folder: Path) -> None:
        pass


def make_store(folder: Path, config: CheckpointConfig) -> CheckpointStore:
    """Checkpoints of a run that has no tracker; its warnings are errors."""

    def warn(message: str) -> None:
        raise AssertionError(message)

    return CheckpointStore(folder, config, warn=warn, metrics=NoMetrics())


def make_stream(models: Models, config: TrainConfig) -> PromptStream:
    texts = random.Random(7).sample([f"{a} {b}" for a in UNEVEN for b in UNEVEN], 20)
    return PromptStream(
        make_prompts(models.policy.tokenizer, texts),
        batch_size=config.rollout.prompts,
        copies=config.rollout.responses_per_prompt,
        seed=config.seed,
        pad_token_id=models.policy.pad_token_id,
    )


class Plain(Attendant):
    """Keeps what is under way, as the steward does, and nothing else."""

    def __init__(self, config: TrainConfig, state: TrainingState) -> None:
        super().__init__(config.training.microbatch_tokens)
        self.state = state

    def collect(self, work: Any) -> Any:
        self.state.work = self.state.work or work()
        return self.state.work


def iterate(config: TrainConfig, models: Models, state: TrainingState, *, packed: bool = False) -> dict[str, float]:
    """One iteration as the loop makes it, without tracking."""
    attendant = Plain(config, state)
    source = Sampled(models, config, attendant, policy_pass=state.objective.anchor == "rollout", packed=packed)
    scorers = load_scorers(config, models.policy, models.runtime)
    learner = Learner(config=config, models=models, source=source, scorers=scorers)
    metrics = iteration.iterate(learner, state, attendant)
    iteration.advance(state, steer=state.iteration >= config.value.warmup_iterations)
    return {**metrics, "knob": state.objective.knob.value}
