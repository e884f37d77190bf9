"""What goes with what: every rule about options, each once, in one table.

A rule is a condition and the message where it holds, both of the `Resolved` of a command's options.
They are walked once, before anything is read or made. What only the data can tell is refused where
the data is read.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

from flowmlx.couplings import SIGMA_COUPLINGS, independent
from flowmlx.couplings.semidiscrete import FITTED_COUPLINGS
from flowmlx.experiment.options import (
    METHODS,
    Method,
    Sample,
    Train,
    check_values,
    flatten,
    options_of,
)
from flowmlx.experiment.own import NO_OWN, Own, check_own, only_in_training
from flowmlx.kinds import KINDS, kind_of
from flowmlx.paths import PATHS, AffinePath, BrownianPath
from flowmlx.sampling import PATH_METHODS
from flowmlx.solvers import ADAPTIVE, SDE_METHODS
from flowmlx.solvers.exponential import check_direction
from flowmlx.spaces.ends import is_file

# All options, as they are for a command that does not have them.
OF_NO_COMMAND = dict.fromkeys([*options_of(Train), *options_of(Sample)])
BROWNIAN = [name for name, path in PATHS.items() if issubclass(path, BrownianPath)]


class Resolved:
    """What the options of a command, and objects of the user's own, come to.

    An option is an attribute, None where the command does not have it.
    """

    def __init__(self, command: Any, own: Own = NO_OWN):
        self.command, self.own = command, own
        self.__dict__.update({**OF_NO_COMMAND, **flatten(command)})

    def __getattr__(self, name: str) -> Any:  # for the type checker: all options are there
        raise AttributeError(name)

    @cached_property
    def named(self) -> Method:
        """Path, coupling and score by their names."""
        by_method = METHODS[self.method]
        path, coupling = self.path or by_method.path, self.coupling or by_method.coupling
        return Method(path, coupling, by_method.score)

    @cached_property
    def path_object(self) -> AffinePath:
        """The path itself."""
        return self.own.path or PATHS[self.named.path](sigma=self.sigma)

    @property
    def path_option(self) -> str:
        """The option that named the path."""
        return "--path" if self.path else f"--method {self.method}"

    @property
    def coupling_option(self) -> str:
        """The option that named the coupling."""
        return "--coupling" if self.coupling else f"--method {self.method}"

    @cached_property
    def has_rows(self) -> bool:
        """Whether the target is a table of rows, of a file or in memory."""
        return not KINDS[self.kind].drawn

    @cached_property
    def kind(self) -> str:
        """The kind of data."""
        if self.own.target is None:
            is_file(self.target)  # refuses a name that means nothing
        target = self.target if self.own.target is None else self.own.target
        return kind_of(target, self.time_column)

    @property
    def said_target(self) -> str:
        """The target in words."""
        own = self.own.target is not None
        return "a target that is a function" if own else f"--target {self.target}"

    def changed(self, *names: str) -> bool:
        """Whether one of the options `names` is not what it is by default."""
        known = options_of(Train)
        return any(getattr(self, name) != known[name].default for name in names)

    @cached_property
    def source_name(self) -> str:
        """The source, with `auto` decided."""
        if self.own.source is not None:
            return "a source of your own"
        if self.source != "auto":
            return self.source
        return "normal" if self.path_object.gaussian_source else KINDS[self.kind].source_name

    @property
    def noise_without_score(self) -> bool:
        """Whether a solver with noise has no score, nor a velocity that says it."""
        if self.solver not in SDE_METHODS or self.named.score:
            return False
        plain = (self.named.path, self.named.coupling, self.source_name)
        plain = plain == ("linear", "independent", "normal") and not self.own.of_the_flow
        return not plain or bool(self.sigma or self.time_column or self.reflow)

    @property
    def unknown_to_solver(self) -> bool:
        """Whether a solver that knows the path cannot know this one."""
        if self.solver not in PATH_METHODS:
            return False
        try:
            PATH_METHODS[self.solver](self.path_object)
        except ValueError:
            return True
        return False

    @property
    def stands_still(self) -> bool:
        """Whether the path stands still at t = 0, where a solver that knows it would start."""
        if self.solver not in PATH_METHODS:
            return False
        try:
            check_direction(PATH_METHODS[self.solver](self.path_object), [0.0, 1.0])
        except ValueError:
            return True
        return False


Rule = tuple[Callable[[Resolved], Any], str]

# Of every command that has the options.
RULES_OF_ALL: tuple[Rule, ...] = (
    (
        lambda f: f.rtol == f.atol == 0,
        "--rtol and --atol are both 0; expected one of them above 0",
    ),
    (
        lambda f: f.solver in SDE_METHODS and f.grid not in (None, "uniform"),
        "--solver {f.solver} takes equal steps; leave out --grid",
    ),
    (
        lambda f: f.solver in ADAPTIVE and f.grid not in (None, "uniform") and not f.step_size,
        "--solver {f.solver} chooses its steps, so --grid {f.grid} has no effect; give their "
        "number as well, such as --step-size 0.05",
    ),
    (
        lambda f: f.guidance is not None and not math.isfinite(f.guidance),
        "--guidance is {f.guidance}; expected a finite number, such as 2",
    ),
    (
        lambda f: f.guidance not in (None, 1.0) and f.condition is None,
        "--guidance strengthens a condition; give one with --condition VALUE",
    ),
)

RULES_OF_TRAINING: tuple[Rule, ...] = (
    # Objects of the user's own, in place of options.
    (
        lambda f: f.own.net is not None
        and f.changed("width", "depth", "activation", "time_embedding"),
        "net is a network of your own, on which --width, --depth, --activation and "
        "--time-embedding have no effect; leave them out",
    ),
    (
        lambda f: f.own.optimizer is not None
        and f.changed("lr", "lr_schedule", "warmup_steps", "weight_decay"),
        "optimizer is one of your own, on which --lr, --lr-schedule, --warmup-steps and "
        "--weight-decay have no effect; leave them out",
    ),
    (
        lambda f: f.own.loss is not None
        and f.changed("regress", "training_times", "loss_weight"),
        "loss is one of your own, on which --regress, --training-times and --loss-weight have no "
        "effect; leave them out",
    ),
    (
        lambda f: f.own.path is not None and f.sigma and f.named.coupling not in SIGMA_COUPLINGS,
        "path is one of your own, on which --sigma has no effect; leave it out",
    ),
    # Options that go with others only.
    (
        lambda f: f.resume and f.out,
        "--resume goes on in the run's own folder; leave out --out",
    ),
    (
        lambda f: f.reflow and f.time_column,
        "--reflow goes from one source to one target; leave out --time-column",
    ),
    (
        lambda f: f.leave_out is not None and not f.time_column,
        "--leave-out names a time; give the column of times with --time-column",
    ),
    (
        lambda f: f.reflow_pairs and not f.reflow,
        "--reflow-pairs is how many --reflow makes; give it a run with --reflow RUN",
    ),
    # The noise, of coupling and path.
    (
        lambda f: f.named.coupling in SIGMA_COUPLINGS and f.sigma == 0,
        "{f.coupling_option} takes the coupling {f.named.coupling}, which needs --sigma above 0, "
        "such as --sigma 1",
    ),
    (
        lambda f: f.own.path is None and f.named.path in BROWNIAN and f.sigma == 0,
        "{f.path_option} takes the path {f.named.path}, which has no noise at --sigma 0; give it "
        "some, such as --sigma 1",
    ),
    (
        lambda f: f.named.score and not isinstance(f.path_object, BrownianPath),
        f"--method {{f.method}} trains a score, which {{f.path_object}} has none of; leave out "
        f"--path, or take one of: {', '.join(BROWNIAN)}",
    ),
    # The solver and the path.
    (
        lambda f: f.unknown_to_solver,
        "--solver {f.solver} needs a path with a single noise, and {f.path_object} has noise of "
        "its own beside x0; take --solver dopri5",
    ),
    (
        lambda f: f.stands_still,
        "--solver {f.solver} cannot start on {f.path_object}, which stands still at t = 0; take "
        "--solver dopri5",
    ),
    (
        lambda f: f.noise_without_score,
        "--solver {f.solver} adds noise, which needs a score: train with --method sf2m, or from "
        "--source normal with --method cfm at --sigma 0 and no --reflow, whose velocity says the "
        "score",
    ),
    # The coupling.
    (
        lambda f: f.reflow and f.path_object.gaussian_source,
        "{f.path_object} starts from its own noise, so pairs have no effect on it; take --method "
        "cfm",
    ),
    (
        lambda f: f.named.coupling != "independent" and f.path_object.gaussian_source,
        "{f.path_object} starts from its own noise, so the coupling {f.named.coupling} has no "
        "effect on it; take --coupling independent, or --method otcfm",
    ),
    (
        lambda f: f.own.coupling not in (None, independent, only_in_training)
        and (f.reflow or f.path_object.gaussian_source),
        "coupling is one of your own, which has no effect on the pairs of --reflow, nor on a path "
        "that starts from its own noise; leave it out",
    ),
    (
        lambda f: f.plan_steps and f.named.coupling == "independent" and f.own.coupling is None,
        "--plan-steps {f.plan_steps} shares a transport plan between steps, and the coupling "
        "independent has none; leave it out, or take --coupling exact_ot",
    ),
    (
        lambda f: f.reflow and f.named.coupling != "independent",
        "--reflow brings pairs of its own, which the coupling {f.named.coupling} would part; take "
        "--coupling independent",
    ),
    (
        lambda f: f.named.coupling in FITTED_COUPLINGS and not f.has_rows,
        "the coupling {f.named.coupling} is fitted to the rows of a file, and {f.said_target} "
        "has none; take --coupling exact_ot",
    ),
    (
        lambda f: f.named.coupling in FITTED_COUPLINGS and f.time_column,
        "the coupling {f.named.coupling} goes from one source to one set of rows, and "
        "--time-column has several; take --coupling exact_ot",
    ),
    (
        lambda f: f.named.coupling in FITTED_COUPLINGS and f.plan_steps,
        "the coupling {f.named.coupling} plans for all rows at once, so --plan-steps "
        "{f.plan_steps} has no effect on it; leave it out",
    ),
    # The loss.
    (
        lambda f: f.named.score
        and (f.prediction, f.regress, f.loss_weight) != ("velocity", "velocity", "unweighted"),
        "--method {f.method} regresses a velocity and a score, as they are; leave out "
        "--prediction, --regress and --loss-weight",
    ),
    (
        lambda f: f.patience and (f.reflow or f.named.coupling in FITTED_COUPLINGS),
        "--patience waits for the loss on held-out rows, which the pairs of --reflow and of the "
        "coupling semidiscrete do not have; leave it out",
    ),
    # The data.
    (
        lambda f: f.time_column
        and not (f.has_rows and f.source == "auto" and f.own.source is None),
        "--time-column needs a file as --target and no --source: the flow starts from the file's "
        "first snapshot",
    ),
    (
        lambda f: f.condition is not None and not f.has_rows,
        "--condition names columns of a file; {f.said_target} has none",
    ),
    (
        lambda f: f.path_object.gaussian_source and f.source_name != "normal",
        "{f.path_object} starts from its own Gaussian noise, so --source {f.source_name} has no "
        "effect on it; use --source normal, or --method cfm",
    ),
    # Snapshots.
    (
        lambda f: f.time_column and f.path_object.gaussian_source,
        "{f.path_object} starts from its own Gaussian noise, and with --time-column the flow "
        "starts from the first snapshot; use --method cfm or otcfm",
    ),
    (
        lambda f: f.time_column and f.condition_cost is not None,
        "with --time-column the rows of one time meet those of the next within their class; leave "
        "out --condition-cost",
    ),
    (
        lambda f: f.time_column and f.prediction != "velocity",
        "with --time-column a path joins each two snapshots, so only a velocity has a meaning for "
        "all: leave out --prediction {f.prediction}",
    ),
    (
        lambda f: f.time_column and f.solver in PATH_METHODS,
        "with --time-column a path joins each two snapshots, so only a velocity has a meaning for "
        "all: leave out --solver {f.solver}, which knows a path",
    ),
)  # fmt: skip


def check(command: Any, own: Own = NO_OWN) -> Resolved:
    """What options come to; refuses those that no run can use together.

    Nothing is read or written. Raises ValueError for names and numbers out of range, and for what a
    rule says.
    """
    check_own(own)
    resolved = Resolved(command, own)
    check_values(command)
    training = resolved.method is not None
    for holds, message in (*RULES_OF_ALL, *(RULES_OF_TRAINING if training else ())):
        if holds(resolved):
            raise ValueError(message.format(f=resolved))
    return resolved
