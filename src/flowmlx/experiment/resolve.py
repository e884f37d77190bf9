"""From names to objects: the one place where options are looked up in the tables of the library."""

import copy
from dataclasses import replace
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from flowmlx.bridges import TwoHeads, TwoNetworks, score_flow_loss
from flowmlx.couplings import Coupling, by_name
from flowmlx.experiment.dynamics import Dynamics
from flowmlx.experiment.options import JOINING_PATHS, NetOptions, Train
from flowmlx.experiment.own import Own, check_own
from flowmlx.experiment.rules import Resolved
from flowmlx.keys import fold_in
from flowmlx.kinds import KINDS
from flowmlx.losses import WEIGHTS, flow_matching_loss
from flowmlx.nets.mlp import MLP
from flowmlx.paths import PATHS, AffinePath, BrownianPath
from flowmlx.spaces.ends import MEMORY
from flowmlx.spaces.kind import Request
from flowmlx.spaces.space import Space
from flowmlx.times import TIME_SAMPLERS
from flowmlx.training import TrainState, learning_rate
from flowmlx.training.copies import copy_of_module
from flowmlx.training.diagnosis import named_arrays


def kind(resolved: Resolved):
    """The kind of data that a run is about."""
    return KINDS[resolved.kind]


def request(resolved: Resolved) -> Request:
    """What is asked of the kind."""
    options, own = resolved.command, resolved.own
    data = options.data
    names = () if data.condition is None else tuple(map(str.strip, data.condition.split(",")))
    return Request(
        data.target if own.target is None else own.target,
        resolved.source_name if own.source is None else own.source,
        data.holdout,
        names,
        data.time_column,
        data.leave_out,
        options.sampling.samples,
        options.run.seed,
    )


def dynamics(resolved: Resolved, space: Space) -> Dynamics:
    """The path, and what the network predicts on it."""
    bridge = KINDS[space.kind].bridge(space, resolved.leave_out)
    return Dynamics(resolved.path_object, resolved.prediction, resolved.named.score, bridge)


def network(resolved: Resolved, space: Space) -> nn.Module:
    """The network, with its initial weights."""
    if resolved.own.net is not None:
        return copy_of_module(resolved.own.net)  # training, and loading, leave the user's as it was
    scored, net = resolved.named.score, resolved.command.net
    mlp = MLP(
        space.dim,
        out_dim=2 * space.dim if scored else space.dim,
        cond_dim=space.conditioning.size,
        key=fold_in(mx.random.key(resolved.seed), "weights"),
        width=net.width,
        depth=net.depth,
        activation=net.activation,
        time_embedding=net.time_embedding,
    )
    return TwoHeads(mlp) if scored else mlp


def training_state(resolved: Resolved, space: Space) -> TrainState:
    """Network and optimizer before the first step."""
    training = resolved.command.training
    rate = learning_rate(
        training.lr,
        steps=training.steps,
        warmup_steps=training.warmup_steps,
        schedule=training.lr_schedule,
    )
    optimizer = copy.deepcopy(resolved.own.optimizer) or optim.AdamW(
        rate, weight_decay=training.weight_decay, bias_correction=True
    )
    return TrainState(network(resolved, space), optimizer)


def pair_loss(resolved: Resolved):
    """The loss of pairs (x0, x1), without conditions. Raises ValueError as `flow_matching_loss`."""
    if resolved.own.loss is not None:
        return resolved.own.loss
    flow, path, regress = resolved.command.flow, resolved.path_object, resolved.regress
    return flow_matching_loss(
        path,
        prediction=flow.prediction,
        regress=score_flow_loss(cast(BrownianPath, path)) if resolved.named.score else regress,
        time_sampler=TIME_SAMPLERS[flow.training_times],
        weight=WEIGHTS[flow.loss_weight],
    )


def coupling(resolved: Resolved, space: Space) -> Coupling:
    """The coupling, which respects the conditions of the data."""
    chosen = resolved.own.coupling or by_name(resolved.named.coupling, resolved.sigma)
    return space.conditioning.coupling(chosen, resolved.condition_cost, space.dim)


def named(
    net: nn.Module, path: AffinePath, source: Any, prediction: str, space: Space
) -> tuple[Train, Own]:
    """The options that name these objects, and the objects that none names."""
    options, own = Train(), Own(net=net, path=path)
    check_own(own)
    scored = isinstance(net, TwoHeads | TwoNetworks)
    flow = replace(options.flow, method="sf2m" if scored else "cfm", prediction=prediction)
    name = next((k for k, kind in JOINING_PATHS.items() if kind is type(path)), None)
    if name is not None and PATHS[name](sigma=path.sigma) == path:
        flow, own = replace(flow, path=name, sigma=path.sigma), own._replace(path=None)
    data = replace(options.data, target=MEMORY, source="normal")
    if isinstance(source, str):
        data = replace(data, source=source)
    else:
        own = own._replace(source=source)
    options = replace(options, flow=flow, data=data)
    mlp = net.net if isinstance(net, TwoHeads) else net
    if type(mlp) is MLP:
        said = replace(options, net=NetOptions(**mlp.options)), own._replace(net=None)
        if _shapes(network(Resolved(*said), space)) == _shapes(net):
            return said
    return options, own


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights by their names."""
    return {name: x.shape for name, x in named_arrays(net.parameters()).items()}
