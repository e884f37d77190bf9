"""Checkpoints: safetensors and JSON in one folder, written whole or not at all."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from flowmlx.training import TrainState

FORMAT = 1


def save(folder: str | Path, state: TrainState, *, keep: int | None = None) -> Path:
    """Write `state` to `folder`/<step> and return that path.

    The files are written beside it, flushed to disk and moved into place in one rename: a
    checkpoint is complete or it is not there. With `keep`, only the newest `keep` checkpoints stay.
    One process at a time may write to a folder.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}; expected at least 1, or None to keep all")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".writing-*"):  # from a process that was killed
        shutil.rmtree(stale, ignore_errors=True)
    final = folder / f"{state.step:08d}"
    writing = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    trees = {
        "model": state.model.parameters(),
        "ema": state.ema,
        "optimizer": _without_settings(state.optimizer.state),
    }
    for name, tree in trees.items():
        mx.save_safetensors(str(writing / f"{name}.safetensors"), dict(tree_flatten(tree)))
    (writing / "state.json").write_text(json.dumps({"format": FORMAT, "step": state.step}) + "\n")
    for path in [*writing.iterdir(), writing]:
        _flush(path)
    if final.exists():
        _remove(final)
    writing.rename(final)
    _flush(folder)
    if keep is not None:
        for old in steps_saved(folder)[:-keep]:
            _remove(folder / f"{old:08d}")
    return final


def load(folder: str | Path, state: TrainState, *, step: int | None = None) -> TrainState:
    """Fill `state` from the checkpoint at `step` (default: the newest) in `folder`.

    The state must be built with the settings of the run that saved it; those, and the keys of
    `fit`, are not in the checkpoint. Raises ValueError where there is no such checkpoint, it is
    damaged, or its weights do not fit.
    """
    path = _find(folder, step)
    model, optimizer = state.model, state.optimizer
    model.update(_load_like(path / "model.safetensors", model.parameters()))
    state.ema.update(_load_ema(path, model))
    optimizer.state.update(
        _load_like(path / "optimizer.safetensors", _without_settings(optimizer.state))
    )
    state.step = _read_state(path)["step"]
    mx.eval(state.arrays)
    return state


def load_ema(folder: str | Path, model: nn.Module, *, step: int | None = None) -> int:
    """Give `model` the averages of a checkpoint (default: the newest); return its step.

    These are its `TrainState.ema`, with frozen weights as they were. The model is in eval mode
    then; `fit` trains it in training mode nonetheless. Raises ValueError as `load` does.
    """
    path = _find(folder, step)
    model.update(_load_ema(path, model))
    mx.eval(model.eval().state)
    return _read_state(path)["step"]


def _load_ema(path: Path, model: nn.Module) -> dict:
    """The averages of a checkpoint, for all arrays of `model`.

    In older checkpoints only trained weights have one; all else is as the model had it then.
    """
    newest = _read_arrays(path / "model.safetensors")
    trained = {name for name, _ in tree_flatten(model.trainable_parameters())}
    untrained = {name: array for name, array in newest.items() if name not in trained}
    return _load_like(path / "ema.safetensors", model.parameters(), otherwise=untrained)


def _without_settings(optimizer_state: dict) -> dict:
    """The state without the learning rate, which the run's settings give anew."""
    return {name: value for name, value in optimizer_state.items() if name != "learning_rate"}


def steps_saved(folder: str | Path) -> list[int]:
    """Steps of the checkpoints in `folder`, oldest first."""
    names = os.listdir(folder) if Path(folder).is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def _find(folder: str | Path, step: int | None) -> Path:
    saved = steps_saved(folder)
    if not saved or (step is not None and step not in saved):
        have = ", ".join(map(str, saved)) or "none"
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ValueError(f"{wanted} in {folder}; there: {have}")
    return Path(folder) / f"{saved[-1] if step is None else step:08d}"


def _read_state(path: Path) -> dict:
    try:
        state = json.loads((path / "state.json").read_text())
        if state["format"] != FORMAT:
            raise ValueError(f"{path} has format {state['format']}; this version reads {FORMAT}")
        return {"step": int(state["step"])}
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path / 'state.json'} is damaged: {error!r}") from error


def _load_like(path: Path, tree, *, otherwise: dict[str, mx.array] | None = None):
    """Load a tree and hold it against `tree`: same names, same shapes.

    `otherwise`: arrays that stand for those that the file does not have.
    """
    arrays = {**(otherwise or {}), **_read_arrays(path)}
    flat = tree_flatten(tree)
    have = {name: array.shape for name, array in arrays.items()}
    want = {name: array.shape for name, array in cast(list[tuple[str, mx.array]], flat)}
    if wrong := sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k)):
        differences = [
            f"{name} is {have.get(name, 'missing')} in the file and {want.get(name, 'missing')} in "
            "the model"
            for name in wrong[:3]
        ]
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{path} does not fit this model: {', '.join(differences)}{more}; build the model "
            "with the run's settings"
        )
    return tree_unflatten(list(arrays.items()))


def _read_arrays(path: Path) -> dict[str, mx.array]:
    try:
        return cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}") from error


def _remove(path: Path) -> None:
    """Remove a checkpoint: first its name, so that half of one is never found."""
    gone = path.with_name(f".writing-{path.name}")
    path.rename(gone)
    shutil.rmtree(gone)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
