"""What is measured: the sizes of each job, who takes part, and the settings that all share. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

SEED = 0
LEARNING_RATE = 1e-6
KL_COEF = 0.05
GROUP = 8  # responses to one prompt, for GRPO and for an objective without a critic
LORA_RANK = 16


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder with random weights: speed and memory do not depend on what they are."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    family: str = "gpt_neox"  # or llama
    positions: int = 1024


@dataclass(frozen=True, kw_only=True)
class Job:
    name: str
    title: str
    shape: Shape
    prompts: str  # words: random words, all as long as the longest; ragged: from 1/8 of the longest up; hh: dialogues
    prompt_tokens: int  # the longest prompt
    response_tokens: int  # every response: ends of text are suppressed, so that all do the same work
    responses: int = 64
    passes: int = 2
    minibatch: int = 16
    precision: str = "fp32"
    cuda: bool = False  # measured on a GPU only
    lora: int = 0  # rank of the policy's adapter, for every contestant; 0 = all weights


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One process of a job. `kind`: ours, trl_ppo, trl_grpo or floor; the rest is for ours."""

    name: str
    kind: str
    objective: str = ""
    value: str = ""
    compile: bool = False

    @property
    def lesser(self) -> bool:
        """No target is about it: one round is enough."""
        return self.kind == "ours" and self.name.removesuffix("-compiled") not in (
            "ppo-separate",
            "apa-shared",
            "apa-group",
        )


SMALL = Shape(vocabulary=2048, hidden=256, layers=4, heads=8, intermediate=1024)
PYTHIA_410M = Shape(vocabulary=50304, hidden=1024, layers=24, heads=16, intermediate=4096, positions=2048)
PYTHIA_1B = Shape(vocabulary=50304, hidden=2048, layers=16, heads=8, intermediate=8192, positions=2048)
LLAMA_7B = Shape(vocabulary=32000, hidden=4096, layers=32, heads=32, intermediate=11008, family="llama", positions=2048)

JOBS = (
    Job(
        name="fixed-2k",
        title="64 + 64 tokens, vocabulary 2,048",
        shape=SMALL,
        prompts="words",
        prompt_tokens=64,
        response_tokens=64,
    ),
    Job(
        name="fixed-50k",
        title="64 + 64 tokens, vocabulary 50,304",
        shape=replace(SMALL, vocabulary=50304),
        prompts="words",
        prompt_tokens=64,
        response_tokens=64,
    ),
    Job(
        name="hh",
        title="HH prompts up to 384 + 64 tokens, vocabulary 8,192",
        shape=replace(SMALL, vocabulary=8192),
        prompts="hh",
        prompt_tokens=384,
        response_tokens=64,
    ),
    Job(
        name="pythia-410m",
        title="Pythia 410M shape, bf16, prompts up to 512 + 128 tokens",
        shape=PYTHIA_410M,
        prompts="ragged",
        prompt_tokens=512,
        response_tokens=128,
        precision="bf16",
        cuda=True,
    ),
    Job(
        name="pythia-1b",
        title="Pythia 1B shape, bf16, prompts up to 512 + 128 tokens",
        shape=PYTHIA_1B,
        prompts="ragged",
        prompt_tokens=512,
        response_tokens=128,
        precision="bf16",
        cuda=True,
    ),
    Job(
        name="llama-7b-lora",
        title="Llama 7B shape with LoRA, bf16, prompts up to 512 + 128 tokens",
        shape=LLAMA_7B,
        prompts="ragged",
        prompt_tokens=512,
        response_tokens=128,
        precision="bf16",
        cuda=True,
        lora=LORA_RANK,
    ),
)


def compiled(person: Contestant) -> Contestant:
    """The same with training.compile."""
    return replace(person, name=f"{person.name}-compiled", compile=True)


def contestants(job: Job, *, with_trl: bool, critics: Sequence[str], group: bool) -> list[Contestant]:
    """Who takes part, in the order of a round. `critics`: the kinds of value that the configuration knows."""
    kinds = [kind for kind in ("separate", "shared", "adapter") if kind in critics]
    if job.lora:
        kinds.remove("separate")  # a second network of that size, all of it trained, is what LoRA is chosen to avoid
    chosen = [
        Contestant(name=f"{objective}-{kind}", kind="ours", objective=objective, value=kind)
        for kind in kinds
        for objective in ("ppo", "apa")
    ]
    if group:
        chosen.append(Contestant(name="apa-group", kind="ours", objective="apa", value="group"))
    rivals = [Contestant(name="trl-grpo", kind="trl_grpo")]
    if not job.lora:  # TRL's critic is a whole network, trained in full
        rivals.insert(0, Contestant(name="trl-ppo", kind="trl_ppo"))
    floor = [] if job.lora else [Contestant(name="floor", kind="floor")]
    # rivals between ours, so that a machine that drifts drifts for all
    half = (len(chosen) + 1) // 2
    return [
        *(rivals[:1] if with_trl else []),
        *chosen[:half],
        *floor,
        *chosen[half:],
        *(rivals[1:] if with_trl else []),
    ]


def overrides(job: Job, contestant: Contestant, folder: str, data: str, device: str, run_dir: str) -> list[str]:
    """What `apa-train` would be told. What is not named here is measured at its default."""
    lora = job.lora or (LORA_RANK if contestant.value == "adapter" else 0)
    critic = (
        ["advantage.name=group", "value.kind=none", f"rollout.responses_per_prompt={GROUP}"]
        if contestant.value == "group"
        else [f"value.kind={contestant.value}"]
    )
    return [
        "config=own",
        f"policy.path={folder}/policy",
        f"reward.path={folder}/reward",
        f"data.path={data}",
        f"data.format={'hh' if job.prompts == 'hh' else 'text'}",
        f"data.max_prompt_tokens={job.prompt_tokens}",
        f"generation.max_new_tokens={job.response_tokens}",
        f"generation.min_new_tokens={job.response_tokens}",
        f"objective={contestant.objective}",
        *critic,
        *([f"policy.adapter.r={lora}"] if lora else []),
        *(["training.compile=true"] if contestant.compile else []),
        f"rollout.batch_size={job.responses}",
        "training.iterations=1000000",
        f"training.epochs_per_rollout={job.passes}",
        f"training.minibatch_size={job.minibatch}",
        f"optimizer.learning_rate={LEARNING_RATE}",
        "checkpoint.every=0",
        "evaluation.prompts=0",
        "tracking.wandb.mode=disabled",
        "tracking.console=plain",
        f"seed={SEED}",
        f"device={device}",
        f"precision={job.precision}",
        f"output_dir={run_dir}",
    ]


def quick(job: Job) -> Job:
    """The same job, small enough to see in seconds that everything runs. Its figures mean nothing."""
    shape = replace(job.shape, vocabulary=min(job.shape.vocabulary, 8192), hidden=64, layers=2, heads=2)
    return replace(
        job,
        shape=replace(shape, intermediate=128),
        prompt_tokens=job.prompt_tokens // 4,
        response_tokens=8,
        responses=16,
        minibatch=8,
    )
