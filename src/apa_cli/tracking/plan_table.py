"""The plan for people: a table for a terminal, lines for a log."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from apa_cli.models.plan import Plan, gib


def plan_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Name, whose weights, number of parameters, of trained ones; bytes of weights, gradients, optimizer states."""
    return [
        (
            role.name,
            role.weights,
            *(f"{number:,}" if number else "–" for number in (role.parameters, role.trained)),
            *(gib(size) if size else "–" for size in (role.parameter_bytes, role.gradient_bytes, role.optimizer_bytes)),
        )
        for role in plan.roles
    ]


def plan_lines(plan: Plan) -> list[str]:
    """One line a role."""
    lines = []
    width = max(10, *(len(role.name) for role in plan.roles))
    for name, weights, parameters, trained, held, gradients, states in plan_rows(plan):
        sizes = [] if parameters == "–" else [f"{parameters} parameters", held]
        if trained != "–":
            sizes += [f"{trained} trained", f"gradients {gradients}", f"optimizer {states}"]
        lines.append(f"{name:<{width}} {', '.join([weights, *sizes])}")
    return lines


def memory_lines(plan: Plan) -> list[str]:
    """What is needed for a while, and the sum against what there is."""
    lines = [f"{estimate.name:<10} about {gib(estimate.bytes)}: {estimate.of}" for estimate in plan.estimates]
    free = "unknown" if plan.available_bytes is None else f"{gib(plan.available_bytes)} free"
    total = f"models {gib(plan.certain_bytes)}, at the most about {gib(plan.expected_bytes)}"
    return [*lines, f"{'memory':<10} {total}; {plan.device}: {free}"]


def print_plan(plan: Plan) -> None:
    """A table where somebody looks at it, lines where not."""
    console = Console(highlight=False, soft_wrap=True)
    if console.is_terminal:
        Console(highlight=False).print(plan_table(plan))
    for line in [*([] if console.is_terminal else plan_lines(plan)), *memory_lines(plan)]:
        console.print(line, markup=False)


def plan_table(plan: Plan) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("role", no_wrap=True)
    for title in ("parameters", "trained", "weights", "gradients", "optimizer"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("whose", overflow="fold", style="dim")
    for name, whose, *numbers in plan_rows(plan):
        table.add_row(name, *numbers, whose)
    return table
