"""Folders that hold no model that can be used in the role they are given."""

from __future__ import annotations

from pathlib import Path

from bad_input.damage import Change, drop_json, folder, halve, put, set_json, spoilt, without
from bad_input.harness import Make, Parts, Row

WEIGHTS = "model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def policy(name: str, line: str, *changes: Change) -> Row:
    return Row(name=name, command="apa-train config=base.yaml policy.path=policy", make=spoilt("policy", *changes),
               line=line, begun=True)  # fmt: skip


def reward(name: str, line: str, *changes: Change, overrides: str = "") -> Row:
    command = f"apa-train config=base.yaml reward.path=reward {overrides}".strip()
    return Row(name=name, command=command, make=spoilt("reward", *changes), line=line, begun=True)


def any_of(name: str, overrides: str, line: str, make: Make = lambda folder, parts: None) -> Row:
    return Row(name=name, command=f"apa-train config=base.yaml {overrides}", make=make, line=line, begun=True)


def wrong_shape(folder: Path) -> None:
    """One tensor has a column less than config.json says."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in sorted(tensors) if name.endswith("dense_h_to_4h.weight"))
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def not_finite(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    for tensor in tensors.values():
        tensor.fill_(float("nan"))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def encoder_decoder(place: Path, parts: Parts) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=300, decoder_start_token_id=0, pad_token_id=1, **sizes)
    T5ForConditionalGeneration(config).save_pretrained(place / "t5")
    for file in parts.policy.glob("*token*"):
        (place / "t5" / file.name).write_bytes(file.read_bytes())


def masked(place: Path, parts: Parts) -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=300, **sizes)).save_pretrained(place / "bert")
    for file in parts.policy.glob("*token*"):
        (place / "bert" / file.name).write_bytes(file.read_bytes())


def two_labels(place: Path, parts: Parts) -> None:
    import tiny_models

    tiny_models.save_reward(place / "reward", tiny_models.make_tokenizer(), labels=2)


def small_vocabulary(part: str) -> Make:
    """A copy with fewer rows in its embeddings than its own tokenizer has ids."""

    def cut(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / WEIGHTS)
        for name in tensors:
            if "embed_in" in name or "embed_out" in name:
                tensors[name] = tensors[name][:100].contiguous()
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return spoilt(part, set_json("config.json", "vocab_size", 100), cut)


ROWS = [
    # the policy
    any_of("no such folder", "policy.path=./nowhere", "policy.path: no folder ./nowhere; give a folder that holds config.json, or a Hub id"),
    any_of("a name that the Hub has to be asked for", "policy.path=someone/model", "policy.path: cannot load someone/model (We couldn't connect …); check the name, your network and, for gated models, `hf auth login`"),
    any_of("an empty folder", "policy.path=empty", "policy.path: empty has no config.json; give a folder in Hugging Face format", folder("empty")),
    policy("no config.json", "policy.path: policy has no config.json; give a folder in Hugging Face format", without("config.json")),
    policy("fewer layers than weights", "policy.path: policy has weights of more layers than its config.json (1 more, first layers.1); give …", set_json("config.json", "num_hidden_layers", 1)),
    policy("config.json that is not JSON", "policy.path: cannot load policy (…", put("config.json", "{'model_type':")),
    policy("config.json with an unknown model_type", "policy.path: cannot load policy (…`nonesuch`…); save the model again, copy it again, or update transformers", set_json("config.json", "model_type", "nonesuch")),
    policy("config.json without model_type", "policy.path: cannot load policy (…`model_type`…); save the model again, copy it again, or update transformers", drop_json("config.json", "model_type")),
    policy("config.json with text for a size", "policy.path: cannot load policy (…'hidden_size'…); save the model again, copy it again, or update transformers", set_json("config.json", "hidden_size", "wide")),
    policy("config.json with heads that do not divide", "policy.path: cannot load policy (…heads…); save the model again, copy it again, or update transformers", set_json("config.json", "num_attention_heads", 3)),
    policy("100,000 layers", "policy.path: policy says num_hidden_layers=100,000 in its config.json, and 1,000 are the most; save the model again, or copy it again", set_json("config.json", "num_hidden_layers", 100_000)),
    policy("no layers", "policy.path: policy says num_hidden_layers=0 in its config.json; …", set_json("config.json", "num_hidden_layers", 0)),
    policy("a negative width", "policy.path: policy says hidden_size=-16 in its config.json; …", set_json("config.json", "hidden_size", -16)),
    policy("no words", "policy.path: policy says vocab_size=0 in its config.json; …", set_json("config.json", "vocab_size", 0)),
    policy("an architecture that is a number", "policy.path: policy says architectures=3 in its config.json, which is no list; …", set_json("config.json", "architectures", 3)),
    policy("an unknown kind of rotary position", "policy.path: cannot load policy (transformers finds no 'nope', which its config.json names or lacks); …", set_json("config.json", "rope_parameters", {"rope_type": "nope"})),
    policy("an unknown activation", "policy.path: cannot load policy (transformers finds no 'nope', which its config.json names or lacks); …", set_json("config.json", "hidden_act", "nope")),
    policy("a classifier in place of a policy", "policy.path: policy is a GPTNeoXForSequenceClassification, which writes no text; give a causal language model", set_json("config.json", "architectures", ["GPTNeoXForSequenceClassification"])),
    policy("a critic in place of a policy", "policy.path: policy is a critic (value_head.safetensors lies in it), which writes no text; …", put("value_head.safetensors", "")),
    policy("no weights", "policy.path: policy has no safetensors weights; convert it once with model.save_pretrained(folder)", without(WEIGHTS)),
    policy("weights cut short", "policy.path: cannot load policy (Error while deserializing header: …); save the model again, copy it again, or update transformers", halve(WEIGHTS)),
    policy("weights left in git-lfs", "policy.path: cannot load policy (Error while deserializing header: …); save the model again, copy it again, or update transformers", put(WEIGHTS, LFS)),
    policy("weights of another shape", "policy.path: policy has weights that do not fit its config.json: …dense_h_to_4h.weight is 32×15 and should be 32×16; give a folder saved in one piece", wrong_shape),
    policy("weights that are not numbers", "policy.path: policy holds numbers that are not finite, in …; give another copy of it", not_finite),
    policy("pickled weights", "policy.path: policy holds pickled weights only (pytorch_model.bin), which can run code when loaded; …", pickled),
    policy("no tokenizer", "policy.path: policy holds no tokenizer; save one beside the model with tokenizer.save_pretrained", no_tokenizer),
    policy("a damaged tokenizer", "policy.path: no tokenizer could be loaded from policy (…); save one beside the model …", halve("tokenizer.json")),
    any_of("a tokenizer with more ids than the model", "policy.path=policy",
           "policy.path: the tokenizer in policy has 300 ids, and its model 100; give a folder whose tokenizer is the model's own", small_vocabulary("policy")),
    any_of("an encoder-decoder", "policy.path=t5", "policy.path: t5 is an encoder-decoder; give a causal language model", encoder_decoder),
    any_of("a masked language model", "policy.path=bert", "policy.path: bert is a masked language model, which reads what follows; give a causal language model", masked),
    any_of("an adapter in place of a model", "policy.path={adapter}",
           "policy.path: …/adapter holds a PEFT adapter, not a model; set policy.adapter.path to it and the path to its base model"),
    any_of("attention that is not installed", "policy.attn_implementation=flash_attention_2 precision=bf16", "policy.attn_implementation: flash_attention_2 cannot be used here (…); install what it needs, or leave it null"),
    any_of("layers that the model lacks", "policy.adapter.r=2 policy.adapter.target_modules=[nope]",
           "policy.adapter.target_modules: …nope…; name layers of this model, …"),
    any_of("code that the folder brings", "policy.path=policy", "policy.path: policy carries its own Python code; set policy.trust_remote_code=true if you trust its authors",
           spoilt("policy", set_json("config.json", "auto_map", {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}),
                  set_json("config.json", "model_type", "own"), put("own.py", "open('owned', 'w')\n"))),
    # an adapter
    any_of("a model in place of an adapter", "policy.adapter.path={policy}", "policy.adapter.path: … has no adapter_config.json; give a PEFT adapter's folder"),
    any_of("an adapter of another base", "policy.path={other} policy.adapter.path={adapter}", "policy.adapter.path: the adapter in …/adapter was trained on …/policy, not on …/other; set policy…"),
    any_of("a damaged adapter", "policy.adapter.path=adapter", "policy.adapter.path: Error while deserializing header: …; give an adapter trained on this base", spoilt("adapter", halve("adapter_model.safetensors"))),
    any_of("a pickled adapter", "policy.adapter.path=adapter", "policy.adapter.path: adapter has no adapter_model.safetensors, only pickled weights, which can run code when loaded; save the adapter with save_pretrained, …",
           spoilt("adapter", lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"))),
    any_of("an adapter whose settings are not JSON", "policy.adapter.path=adapter", "policy.adapter.path: adapter/adapter_config.json cannot be read (Expecting property name…); save the adapter again", spoilt("adapter", put("adapter_config.json", "{"))),
    any_of("an adapter of no kind that is known", "policy.adapter.path=adapter", "policy.adapter.path: no 'NOPE'; give an adapter trained on this base", spoilt("adapter", set_json("adapter_config.json", "peft_type", "NOPE"))),
    # the reference and the critic
    any_of("a reference of another vocabulary", "reference.path={other}", "reference.path: …/other has another vocabulary than the policy; the two must share a tokenizer"),
    any_of("a masked language model as the reference", "reference.path=bert", "reference.path: bert is a masked language model, which reads what follows; give a causal language model", masked),
    any_of("a masked language model as the critic", "value.path=bert", "value.path: bert is a masked language model, which reads what follows; give a causal language model", masked),
    any_of("a critic of a smaller vocabulary", "value.path={other}", "value.path: …/other has a smaller vocabulary than the policy; the two must share a tokenizer"),
    # the reward model
    any_of("a reward with two outputs", "reward.path=reward", "reward.label: reward has 2 outputs; say which is the score, reward.label=0 …", two_labels),
    any_of("a label that the reward lacks", "reward.path=reward reward.label=2", "reward.label: reward has 2 outputs; give one from 0 to 1", two_labels),
    any_of("a policy in place of a reward", "reward.path={policy}", "reward.path: …/policy lacks weights of this model (1 missing, first score.weight); …"),
    reward("a reward without a tokenizer", "reward.path: reward holds no tokenizer; save one beside the model …", no_tokenizer),
    reward("a reward that was damaged", "reward.path: cannot load reward (Error while deserializing header: …); save the model again, copy it again, or update transformers", halve(WEIGHTS)),
    reward("a chat template that the reward lacks", "reward.format: reward has no chat template; use reward.format=text", overrides="reward.format=chat"),
    any_of("a reward of a smaller vocabulary than its tokenizer", "reward.path=reward",
           "reward.path: the tokenizer in reward has 300 ids, and its model 100; give a folder whose tokenizer is the model's own", small_vocabulary("reward")),
]  # fmt: skip
