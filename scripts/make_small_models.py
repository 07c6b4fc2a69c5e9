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
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    PreTrainedTokenizerFast,
)

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


def in_template(tokenizer: PreTrainedTokenizerFast, dialogue: str) -> str:
    return str(tokenizer.apply_chat_template(hh_messages(dialogue), tokenize=False))


def batches(
    rows: list[list[int]], size: int, steps: int, pad: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """`steps` random batches: row numbers, ids and mask, (size, longest), right-padded."""
    for _ in range(steps):
        chosen = random.sample(range(len(rows)), min(size, len(rows)))
        yield chosen, *padded([rows[row] for row in chosen], pad)


def padded(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def train_policy(model: GPTNeoXForCausalLM, rows: list[list[int]], steps: int, pad: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _, ids, mask in track(batches(rows, 16, steps, pad), "policy", total=steps, transient=True):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if steps:
        print(f"policy: cross-entropy {loss.item():.2f} nats a token after {steps} steps")


def train_reward(
    model: GPTNeoXForSequenceClassification, chosen: list[list[int]], rejected: list[list[int]], steps: int, pad: int
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for rows, ids, mask in track(batches(chosen, 16, steps, pad), "reward", total=steps, transient=True):
        other_ids, other_mask = padded([rejected[row] for row in rows], pad)
        margin = (
            model(input_ids=ids, attention_mask=mask).logits
            - model(input_ids=other_ids, attention_mask=other_mask).logits
        )
        F.softplus(-margin).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    if steps:
        print(f"reward: {(margin > 0).float().mean():.0%} of the last batch's pairs in order after {steps} steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="HH dialogues, .jsonl or .jsonl.gz")
    parser.add_argument("--output", type=Path, required=True, help="folder for policy/ and reward/")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--sft-steps", type=int, default=300)
    parser.add_argument("--reward-steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chat", action="store_true", help="dialogues in a chat template")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    pairs = read_pairs(options.data)
    tokenizer = train_tokenizer([text for pair in pairs for text in pair], options.vocabulary, chat=options.chat)
    if options.chat:
        pairs = [(in_template(tokenizer, one), in_template(tokenizer, other)) for one, other in pairs]
    chosen, rejected = (
        [[*ids, tokenizer.eos_token_id][-LONGEST:] for ids in tokenizer(list(texts))["input_ids"]]
        for texts in zip(*pairs, strict=True)
    )
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": max(1, options.hidden // 32),
        "intermediate_size": options.hidden * 4,
        "max_position_embeddings": 1024,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    policy = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))
    reward = GPTNeoXForSequenceClassification(GPTNeoXConfig(**sizes, num_labels=1))
    train_policy(policy, chosen, options.sft_steps, tokenizer.pad_token_id)
    train_reward(reward, chosen, rejected, options.reward_steps, tokenizer.pad_token_id)
    for name, model in (("policy", policy), ("reward", reward)):
        model.save_pretrained(options.output / name)
        tokenizer.save_pretrained(options.output / name)
    print(f"{len(pairs):,} pairs, vocabulary {len(tokenizer):,}; wrote policy/ and reward/ in {options.output}")


if __name__ == "__main__":
    main()
