"""What every contestant of a job starts from: model folders with random weights, a tokenizer, and the same prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from benchmark.jobs import SEED, Job, Shape

WORDS = 2048  # different words in prompts, when the vocabulary has as many
ROWS = 4096  # prompts of random words


def build(job: Job, folder: Path, data: Path, *, iterations: int) -> Path:
    """Write policy/, reward/ and batches.json into `folder`; returns the prompts' file, which apa-train reads."""
    import torch
    import transformers
    from make_small_models import read_pairs, train_tokenizer

    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    if job.prompts == "hh":
        texts = [text for pair in read_pairs(data) for text in pair]
        tokenizer, prompts = train_tokenizer(texts, job.shape.vocabulary), data
    else:
        tokenizer, prompts = _word_tokenizer(job.shape.vocabulary), folder / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in _word_prompts(job)), encoding="utf-8")
    torch.manual_seed(SEED)
    config = _config(job.shape, tokenizer)
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    autos = {"policy": transformers.AutoModelForCausalLM, "reward": transformers.AutoModelForSequenceClassification}
    for name, auto in autos.items():
        if name == "reward":
            config.num_labels = 1
        auto.from_config(config, dtype=dtype).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    batches = _batches(job, prompts, tokenizer, iterations)
    (folder / "batches.json").write_text(json.dumps(batches), encoding="utf-8")
    return prompts


def _batches(job: Job, prompts: Path, tokenizer: Any, iterations: int) -> list[list[dict[str, Any]]]:
    """The prompts of each iteration, in the order in which apa-train meets them with this seed: ids and text."""
    from apa_cli.config.schema import DataConfig
    from apa_cli.data.loading import load_prompts
    from apa_cli.data.prompts import PromptStream

    config = DataConfig(
        path=str(prompts), format="hh" if job.prompts == "hh" else "text", max_prompt_tokens=job.prompt_tokens
    )
    train, _ = load_prompts(config, tokenizer, evaluation_prompts=0, seed=SEED)
    stream = PromptStream(train.prompts, batch_size=job.responses, seed=SEED, pad_token_id=tokenizer.pad_token_id)
    batches = []
    for _, batch in zip(range(iterations), stream, strict=False):
        rows = zip(batch.prompt_ids, batch.prompt_mask, batch.texts, strict=True)
        batches.append([{"ids": ids[mask].tolist(), "text": text} for ids, mask, text in rows])
    return batches


def _config(shape: Shape, tokenizer: Any) -> Any:
    from transformers import GPTNeoXConfig, LlamaConfig

    family = {"gpt_neox": GPTNeoXConfig, "llama": LlamaConfig}[shape.family]
    heads = {"num_key_value_heads": shape.kv_heads} if shape.kv_heads else {}
    return family(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=shape.intermediate, max_position_embeddings=shape.positions,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=shape.tied, **heads,
    )  # fmt: skip


def _word_tokenizer(vocabulary: int) -> Any:
    """A token a word: w2, w3, … A text of n words is n tokens, whatever stands between them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<|endoftext|>", "<|pad|>", *(f"w{number}" for number in range(2, vocabulary))]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<|pad|>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"w\d+"), behavior="removed", invert=True)
    backend.decoder = decoders.WordPiece(prefix="##")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>", model_max_length=2048
    )


def _word_prompts(job: Job) -> list[str]:
    draw = random.Random(SEED)
    shortest = job.prompt_tokens if job.prompts == "words" else max(1, job.prompt_tokens // 8)
    last = min(WORDS, job.shape.vocabulary) - 1
    return [
        " ".join(f"w{draw.randint(2, last)}" for _ in range(draw.randint(shortest, job.prompt_tokens)))
        for _ in range(ROWS)
    ]
