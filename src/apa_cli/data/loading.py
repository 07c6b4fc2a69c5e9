"""The data settings to two sets of prompts: one to train on, one held out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apa_cli.config.schema import DataConfig
from apa_cli.data.formats import parse_rows
from apa_cli.data.prompts import Prompt, PromptSet
from apa_cli.data.sources import read_source
from apa_cli.data.table import Draw, Findings, Progress, Table
from apa_cli.data.template import RENDERED
from apa_cli.data.tokenization import cut_left, encode, without_oldest_turns
from apa_cli.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """Every usable prompt of one source, before it is known who trains on it."""

    prompts: list[Prompt]
    cut: list[bool]  # of each prompt, whether it was cut
    dropped: int
    source: str
    commit: str | None
    drawn: str | None
    format: str
    findings: Findings

    def select(self, chosen: Sequence[int], *, dropped: int = 0, withheld: int = 0) -> PromptSet:
        return PromptSet(
            prompts=[self.prompts[index] for index in chosen],
            cut=sum(self.cut[index] for index in chosen),
            dropped=dropped,
            all=len(self.prompts),
            source=self.source,
            withheld=withheld,
            commit=self.commit,
            drawn=self.drawn,
            format=self.format,
            warnings=tuple(self.findings.lines()),
            rendered=2 * self.findings.count(RENDERED) > len(self.prompts),
        )


def load_prompts(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    evaluation_prompts: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[PromptSet, PromptSet]:
    """Training prompts and held-out prompts, which never have one in common.

    Held out are `evaluation_prompts` rows of data.eval_path (all, when it has fewer), otherwise as many distinct
    prompts of data.path, either drawn by `seed`. 0 means none. A training row with a held-out prompt is left out.
    Of a data set larger than data.max_rows, so many rows are read, chosen by `seed`.
    Both sets keep the order of their file. Raises UserError for anything wrong with the data.
    """
    pool = _read(config, tokenizer, evaluation=False, seed=seed, progress=progress)
    if evaluation_prompts == 0:
        held_out = PromptSet(prompts=[], cut=0, dropped=0, source="")
    elif config.eval_path is not None:
        other = _read(config, tokenizer, evaluation=True, seed=seed, progress=progress)
        chosen: Sequence[int] = range(len(other.prompts))
        if evaluation_prompts < len(chosen):  # a file may be sorted
            chosen = sorted(random.Random(f"evaluation/{seed}").sample(chosen, evaluation_prompts))
        held_out = other.select(chosen, dropped=other.dropped)
    else:
        held_out = pool.select(_set_aside(pool, evaluation_prompts, seed))
    texts = {prompt.text for prompt in held_out.prompts}
    ids = {prompt.token_ids for prompt in held_out.prompts}
    kept = [
        index for index, prompt in enumerate(pool.prompts) if prompt.text not in texts and prompt.token_ids not in ids
    ]
    if not kept:
        problem = f"every prompt of {pool.source} is also held out"
        raise UserError("data.eval_path", problem, "use other held-out prompts, or lower evaluation.prompts")
    return pool.select(kept, dropped=pool.dropped, withheld=len(pool.prompts) - len(kept)), held_out


def read_tables(config: DataConfig, seed: int) -> list[Table]:
    """The rows as they are stored: those to train on and, where they have a place of their own, the held-out ones."""
    return [
        _table(config, evaluation=place, seed=seed)
        for place in (False, True)
        if not place or config.eval_path is not None
    ]


def _table(config: DataConfig, *, evaluation: bool, seed: int, progress: Progress | None = None) -> Table:
    key, split_key = ("data.eval_path", "data.eval_split") if evaluation else ("data.path", "data.split")
    return read_source(
        (config.eval_path or "") if evaluation else config.path,
        key=key,
        subset=config.subset,
        split=config.eval_split if evaluation else config.split,
        split_key=split_key,
        prompt_column=config.prompt_column,
        revision=config.revision if not evaluation or config.eval_path == config.path else None,
        draw=Draw(most=config.max_rows, seed=seed, progress=progress),
    )


def _read(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    evaluation: bool,
    seed: int,
    progress: Progress | None,
) -> _Pool:
    table = _table(config, evaluation=evaluation, seed=seed, progress=progress)
    system_prompt = config.system_prompt
    arguments = config.arguments
    findings = Findings()
    format, rows = parse_rows(
        table,
        format=config.format,
        prompt_column=config.prompt_column,
        system_prompt=system_prompt,
        prompt_template=config.prompt_template,
        dropped=findings if config.empty == "drop" else None,
    )
    chat = format in ("chat", "hh_chat")
    if arguments and not chat:
        problem = f"set, but {table.source} holds no messages, and data.format={format} uses no template"
        raise UserError("data.template_arguments", problem, "add data.format=chat, or unset it")
    limit = config.max_prompt_tokens
    prompts: list[Prompt] = []
    cut: list[bool] = []
    every = encode(
        rows, tokenizer, arguments=arguments, system_prompt=system_prompt, findings=findings, progress=progress
    )
    for row, row_ids in zip(rows, every, strict=True):
        overlong = len(row_ids) > limit
        if overlong and config.overlong == "drop":
            continue
        if overlong and chat:  # never in the middle of a turn: its markers would be torn
            shortened = without_oldest_turns(row, limit, tokenizer, arguments=arguments)
            if shortened is None:
                continue
            row, kept = shortened
        else:
            kept = cut_left(row_ids, limit, tokenizer.bos_token_id)
        text = row.text
        if overlong and not chat:
            text = str(tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        prompts.append(
            Prompt(
                token_ids=tuple(kept),
                text=text,
                messages=row.messages,
                columns=row.columns,
                place=row.place,
                answer=row.answer,
                torn=overlong and not chat,
            )
        )
        cut.append(overlong)
    if not prompts:
        problem = f"every prompt of {table.source} is longer than {limit} tokens"
        if chat and config.overlong == "cut":
            problem += ", its oldest turns left out"
        remedy = "raise it" if chat else "raise it, or set data.overlong=cut"
        raise UserError("data.max_prompt_tokens", problem, remedy)
    return _Pool(
        prompts=prompts,
        cut=cut,
        dropped=len(rows) - len(prompts),
        source=table.source,
        commit=table.commit,
        drawn=f"{len(table.rows):,} of {table.count:,} rows were read (data.max_rows)" if table.count else None,
        format=format,
        findings=findings,
    )


def _set_aside(pool: _Pool, count: int, seed: int) -> list[int]:
    """Indices of `count` prompts, no two alike, leaving at least one other prompt to train on."""
    order = list(range(len(pool.prompts)))
    random.Random(f"held-out/{seed}").shuffle(order)
    seen: set[str | tuple[int, ...]] = set()
    distinct = []
    for index in order:
        prompt = pool.prompts[index]
        if prompt.text not in seen and prompt.token_ids not in seen:
            distinct.append(index)
        seen.update((prompt.text, prompt.token_ids))
    if len(distinct) <= count:
        problem = f"{count} prompts are to be held out, and {pool.source} has {len(distinct)} different ones in all"
        raise UserError("evaluation.prompts", problem, "lower it, add prompts, or set data.eval_path")
    return sorted(distinct[:count])
