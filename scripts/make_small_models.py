"""Make a small policy and reward model from a file of HH dialogues, to try apa-train on real text without a download.

    python scripts/make_small_models.py --data harmless-base/test.jsonl.gz --output small

trains a byte-level BPE tokenizer on the text, a GPT-NeoX policy on the chosen dialogues, and a GPT-NeoX reward model on
chosen against rejected (Bradley-Terry). A few minutes on two cores with the defaults; --sft-steps 0 --reward-steps 0
leaves the weights random. --chat writes the dialogues in a chat template (ChatML, as Qwen has it), which the tokenizer
then carries: for data=hh_chat. The results are plumbing for examples and tests, not models to use.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, GPTNeoXForSequenceClassification, PreTrainedTokenizerFast

from apa_cli.data.messages import hh_messages

LONGEST = 256
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """(chosen, rejected) dialogues of a .jsonl or .jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    return [(row["chosen"], row["rejected"]) for row in rows]


def train_tokenizer(texts: list[str], vocabulary: int, *, chat: bool = False) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|pad|>", *(["<|im_start|>", "<|im_end|>"] if chat else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>", model_max_length=1024
    )
    if chat:
        tokenizer.chat_template = CHATML
    return tokenizer


def padded(rows: list[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """Ids and mask, (rows, longest), right-padded."""
    longest = max(map(len, rows))
    ids = [row + [pad] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def train(name: str, model: Any, loss_of: Callable[[list[int]], torch.Tensor], rows: int, steps: int) -> None:
    """Each step on 16 random rows, by number."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in track(range(steps), name, transient=True):
        loss = loss_of(random.sample(range(rows), min(16, rows)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if steps:
        print(f"{name}: loss {loss.item():.2f} after {steps} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="HH dialogues, .jsonl or .jsonl.gz")
    add("--output", type=Path, required=True, help="folder for policy/ and reward/")
    sizes = {"vocabulary": 8192, "hidden": 128, "layers": 2, "sft-steps": 300, "reward-steps": 150, "seed": 0}
    for name, value in sizes.items():
        add(f"--{name}", type=int, default=value, help="(default: %(default)s)")
    add("--chat", action="store_true", help="dialogues in a chat template")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    pairs = read_pairs(options.data)
    tokenizer = train_tokenizer([text for pair in pairs for text in pair], options.vocabulary, chat=options.chat)
    if options.chat:
        pairs = [tuple(tokenizer.apply_chat_template(hh_messages(text), tokenize=False) for text in p) for p in pairs]
    chosen, rejected = (
        [[*ids, tokenizer.eos_token_id][-LONGEST:] for ids in tokenizer(list(texts))["input_ids"]]
        for texts in zip(*pairs, strict=True)
    )
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    shape = {"vocab_size": len(tokenizer), "hidden_size": options.hidden, "num_hidden_layers": options.layers}
    shape |= {"num_attention_heads": max(1, options.hidden // 32), "intermediate_size": options.hidden * 4}
    shape |= {"max_position_embeddings": 1024, "bos_token_id": end, "eos_token_id": end, "pad_token_id": pad}
    policy = GPTNeoXForCausalLM(GPTNeoXConfig(**shape))
    reward = GPTNeoXForSequenceClassification(GPTNeoXConfig(**shape, num_labels=1))

    def cross_entropy(rows: list[int]) -> torch.Tensor:
        """In nats a token."""
        inputs = padded([chosen[row] for row in rows], pad)
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        return policy(**inputs, labels=labels).loss

    def bradley_terry(rows: list[int]) -> torch.Tensor:
        better, worse = (reward(**padded([side[row] for row in rows], pad)).logits for side in (chosen, rejected))
        return F.softplus(worse - better).mean()

    train("policy", policy, cross_entropy, len(chosen), options.sft_steps)
    train("reward", reward, bradley_terry, len(chosen), options.reward_steps)
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(options.output / name)
        tokenizer.save_pretrained(options.output / name)
    print(f"{len(pairs):,} pairs, vocabulary {len(tokenizer):,}; wrote policy/ and reward/ in {options.output}")


if __name__ == "__main__":
    main()
