"""The plan of a run's memory: printed alone, or said and checked before models are loaded."""

from __future__ import annotations

import sys
import warnings

from apa_cli.config.schema import TrainConfig
from apa_cli.errors import UserError
from apa_cli.models.device import Runtime
from apa_cli.models.loading import first_line
from apa_cli.models.plan import check_fits
from apa_cli.models.plan_roles import make_plan, remedies
from apa_cli.rewards.preview import planned_readings
from apa_cli.secrets import redact_text
from apa_cli.tracking.plan_table import memory_lines, plan_lines, plan_table, print_plan
from apa_cli.tracking.tracker import Tracker


def show_plan(config: TrainConfig, runtime: Runtime) -> None:
    """`plan_only`: to the terminal, whether it fits or not, and where it does the first prompt as it is read."""
    with warnings.catch_warnings():  # of libraries about one another: a run sends them to run.log
        warnings.simplefilter("ignore")
        try:
            plan = make_plan(config, runtime)
        except UserError:
            raise
        except Exception as error:
            problem = f"the models cannot be planned ({type(error).__name__}: {error})"
            raise UserError("plan_only", " ".join(problem.split())[:300], "check their config.json files") from error
    print_plan(plan)
    doubt = check_fits(plan, remedies=remedies(config))
    if doubt:
        print(f"warning: {doubt}", file=sys.stderr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            lines = planned_readings(config, runtime)
        except UserError:
            raise
        except Exception as error:  # a model's own code may do anything without weights
            lines = [
                f"what the models read is not shown ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            ]
    print(redact_text("\n".join(lines)))


def announce_plan(config: TrainConfig, runtime: Runtime, tracker: Tracker) -> None:
    """Say what will be held where, and refuse what cannot be. A model that hides its sizes is not refused."""
    try:
        plan = make_plan(config, runtime)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # if it is the user's to mend, loading says so; a model's own code may do anything
        tracker.note(f"no plan of the memory ({type(error).__name__}: {first_line(error)})")
        return
    tracker.show(plan_table(plan), plan_lines(plan))
    for line in memory_lines(plan):
        tracker.note(line)
    doubt = check_fits(plan, remedies=remedies(config))
    if doubt:
        tracker.warn(doubt)
