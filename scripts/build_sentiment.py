"""Two sentiment classifiers and prompts from movie reviews, for the recipe sentiment_smollm2_lora_apa.

    make smollm2
    python scripts/build_sentiment.py --data sentences.jsonl.gz     into models/sentiment, once; about 20 CPU minutes

--data has a sentence and its label a line: {"text": "…", "label": 1}, 1 for positive. Meant is the movie-review
polarity data set v1.0 (Pang and Lee, ACL 2005), on the Hub as cornell-movie-review-data/rotten_tomatoes. A
classifier is the first layers of SmolLM2 with a new head, and learns from one half of the sentences: `reward` for
training, and `evaluator`, which judges, from the other half. A tenth of each half measures its accuracy. Prompts
are the first four to six words of the reward's sentences, and held-out prompts those of the evaluator's tenth.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
FOLDER = ROOT / "models" / "sentiment"
DATA = ROOT.parent / "shared" / "data" / "movie-reviews" / "sentences.jsonl.gz"
LAYERS, EPOCHS, BATCH, RATE = 12, 2, 32, 1e-4
LEAST, MOST = 8, 48  # tokens of a text: it is cut to a random length, as responses are
HELD_OUT = 10  # one in so many
SHORTEST, LONGEST = 4, 6  # words of a prompt
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=DATA if DATA.exists() else None,
        help=".jsonl or .jsonl.gz",
        required=not DATA.exists(),
    )
    add("--model", type=Path, default=MODEL, help=f"folder of SmolLM2 (default: {MODEL})")
    add("--output", type=Path, default=FOLDER, help=f"folder to write (default: {FOLDER})")
    add("--rows", type=int, help="no more sentences than that, to see that it runs")
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").is_file():
        parser.error(f"no model in {arguments.model}: make smollm2")
    if arguments.output.exists() and any(arguments.output.iterdir()):
        parser.error(f"{arguments.output} is not empty; choose another --output, or remove it")
    try:
        rows = read(arguments.data)[: arguments.rows]
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{arguments.data} cannot be read as lines of text and label: {error}")
    random.Random(0).shuffle(rows)
    halves = {"reward": rows[::2], "evaluator": rows[1::2]}
    folder: Path = arguments.output
    for seed, (name, half) in enumerate(halves.items()):
        held_out, own = half[: len(half) // HELD_OUT], half[len(half) // HELD_OUT :]
        accuracy = train(arguments.model, own, held_out, folder / name, seed)
        print(f"{name}: right on {accuracy:.3f} of {len(held_out)} sentences that it has not seen", flush=True)
    prompts = {"prompts": halves["reward"], "eval_prompts": halves["evaluator"][: len(halves["evaluator"]) // HELD_OUT]}
    for name, sentences in prompts.items():
        long = (row["text"] for row in sentences if len(row["text"].split()) > LONGEST)
        lines = dict.fromkeys(opening(text, random.Random(text)) for text in long)
        text = "".join(json.dumps({"prompt": line}, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    print(f"wrote {folder}")
    return 0


def read(file: Path) -> list[Row]:
    """Raises OSError, ValueError and KeyError."""
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return [{"text": plain(row["text"]), "label": int(row["label"])} for row in rows]


def plain(text: str) -> str:
    """As people write it: the file puts spaces before marks and begins in lower case."""
    text = re.sub(r"\s+([.,;:!?)\]'%]|n't\b)", r"\1", text.strip())
    text = re.sub(r"([(\[$])\s+", r"\1", text)
    return text[:1].upper() + text[1:]


def opening(text: str, chance: random.Random) -> str:
    return " ".join(text.split()[: chance.randint(SHORTEST, LONGEST)])


def train(base: Path, rows: Sequence[Row], held_out: Sequence[Row], folder: Path, seed: int) -> float:
    """The fraction of `held_out` that the saved classifier has right."""
    import torch
    from tqdm import tqdm
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    chance = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=2, num_hidden_layers=LAYERS, dtype=torch.float32, **names
    )

    def logits(batch: Sequence[Row], lengths: Sequence[int]) -> torch.Tensor:
        ids = [tokenizer(row["text"])["input_ids"][:length] for row, length in zip(batch, lengths, strict=True)]
        inputs = tokenizer.pad({"input_ids": ids}, padding_side="right", return_tensors="pt")
        found: torch.Tensor = model(**inputs).logits
        return found

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    steps = EPOCHS * (len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
    )
    order = [row for _ in range(EPOCHS) for row in chance.sample(list(rows), len(rows))]
    model.train()
    for step in tqdm(range(steps), desc=folder.name, disable=None):
        batch = order[step * BATCH : (step + 1) * BATCH]
        found = logits(batch, [chance.randint(LEAST, MOST) for _ in batch])
        torch.nn.functional.cross_entropy(found, torch.tensor([row["label"] for row in batch])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    right = 0
    with torch.no_grad():
        for start in range(0, len(held_out), BATCH):
            batch = held_out[start : start + BATCH]
            found = logits(batch, [MOST] * len(batch)).argmax(dim=1).tolist()
            right += sum(label == row["label"] for label, row in zip(found, batch, strict=True))
    return right / max(1, len(held_out))


if __name__ == "__main__":
    sys.exit(main())
