"""Checkpoints: safetensors and JSON in one folder, written whole or not at all."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from flowmlx.files import reading, writing
from flowmlx.training.diagnosis import named_arrays
from flowmlx.training.state import EarlyStopping, TrainState

T = TypeVar("T")

FORMAT = 1
TREES = ("model", "ema", "optimizer")
# With early stopping, whose `ema` is the best: the moving average of the step.
AVERAGE = "average"


class About(NamedTuple):
    """What state.json says: the steps done, and the numbers of an `EarlyStopping`, if any."""

    step: int
    early_stopping: dict[str, Any] | None


def save(folder: str | Path, state: TrainState, *, keep: int | None = None) -> Path:
    """Write `state` to `folder`/<step> and return that path.

    The files are written beside it, flushed to disk and moved into place in one rename: a
    checkpoint is complete or it is not there. With `keep`, only the newest `keep` checkpoints stay.
    One process at a time may write to a folder. Raises OSError, which names the file, where the
    disk is full.
    """
    if keep is not None and keep < 1:
        raise ValueError(f"keep is {keep}; expected at least 1, or None to keep all")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale(folder)
    final = folder / f"{state.step:08d}"
    with writing.naming(final, folder / writing.PREFIX):
        unfinished = Path(tempfile.mkdtemp(prefix=writing.PREFIX, dir=folder))
        try:
            _write(unfinished, state)
            if final.exists():
                _remove(final)
            unfinished.rename(final)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    writing.flush_folder(folder)
    if keep is not None:
        for old in steps_saved(folder)[:-keep]:
            _remove(folder / f"{old:08d}")
    return final


def load(folder: str | Path, state: TrainState, *, step: int | None = None) -> TrainState:
    """Fill `state` from the checkpoint at `step` (default: the newest) in `folder`.

    The state must be built with the settings of the run that saved it; those, and the keys of
    `fit`, are not in the checkpoint. Raises ValueError where there is no such checkpoint, it is
    damaged, or its weights do not fit; `state` is then as it was.
    """
    trees = {
        "model": state.model.parameters(),
        "ema": state.ema,
        "optimizer": _without_settings(state.optimizer.state),
    }

    def read(path: Path) -> tuple[About, dict[str, dict]]:
        about = _read_about(path)
        own = {} if about.early_stopping is None else {AVERAGE: state.ema}
        return about, _load_like(path, {**trees, **own}, state.model)

    about, saved = _read(folder, step, read)
    state.model.update(saved["model"])
    state.ema.update(saved["ema"])
    state.optimizer.state.update(saved["optimizer"])
    state.step, state.early_stopping = about.step, None
    if about.early_stopping is not None:
        state.early_stopping = EarlyStopping(saved[AVERAGE], **about.early_stopping)
    return state


def load_ema(folder: str | Path, model: nn.Module, *, step: int | None = None) -> int:
    """Give `model` the averages of a checkpoint (default: the newest); return its step.

    These are its `TrainState.ema`, with frozen weights as they were. The model is in eval mode
    then; `fit` trains it in training mode nonetheless. Raises ValueError as `load` does.
    """
    trees = {"model": model.parameters(), "ema": model.parameters()}

    def read(path: Path) -> tuple[About, dict[str, dict]]:
        return _read_about(path), _load_like(path, trees, model)

    about, saved = _read(folder, step, read)
    model.update(saved["ema"])
    model.eval()
    return about.step


def steps_saved(folder: str | Path) -> list[int]:
    """Steps of the checkpoints in `folder`, oldest first."""
    names = os.listdir(folder) if Path(folder).is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch("[0-9]{8,}", name))


def remove_stale(folder: str | Path) -> None:
    """Remove what a killed process has left in `folder`, to which no other may be writing."""
    for stale in Path(folder).glob(f"{writing.PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)


def _without_settings(optimizer_state: dict) -> dict:
    """The state without the learning rate, which the run's settings give anew."""
    return {name: value for name, value in optimizer_state.items() if name != "learning_rate"}


def _write(folder: Path, state: TrainState) -> None:
    """Write the files of a checkpoint into `folder` and flush them."""
    trees = (state.model.parameters(), state.ema, _without_settings(state.optimizer.state))
    named: dict[str, Any] = dict(zip(TREES, trees, strict=True))
    about: dict[str, Any] = {"format": FORMAT, "step": state.step}
    if state.early_stopping is not None:
        numbers = dict(vars(state.early_stopping))
        named[AVERAGE], about["early_stopping"] = numbers.pop("average"), numbers
    for name, tree in named.items():
        with (folder / f"{name}.safetensors").open("wb") as file:
            mx.save_safetensors(file, dict(tree_flatten(tree)))
    (folder / "state.json").write_text(json.dumps(about) + "\n")
    folder.chmod(0o777 & ~writing.umask())  # mkdtemp makes private folders
    for path in [*folder.iterdir(), folder]:
        _flush(path)


def _read(folder: str | Path, step: int | None, load: Callable[[Path], T]) -> T:
    """What `load` makes of a checkpoint (None: the newest)."""
    while True:
        path = _find(folder, step)
        try:
            return load(path)
        except reading.Damaged as error:
            # Of a run that is being trained, newer ones take the place of older ones meanwhile.
            if step is not None or path.exists():
                raise ValueError(f"{error}; {_others(path)}") from error


def _find(folder: str | Path, step: int | None) -> Path:
    saved = steps_saved(folder)
    if not saved or (step is not None and step not in saved):
        have = ", ".join(map(str, saved)) or "none"
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise ValueError(f"{wanted} in {folder}; there: {have}")
    return Path(folder) / f"{saved[-1] if step is None else step:08d}"


def _read_about(path: Path) -> About:
    file = path / "state.json"
    with reading.checked(file):
        about = reading.json_object(file)
        reading.check_format(file, about, FORMAT)
        step = reading.whole_number(about["step"], "step")
        if step != int(path.name):
            raise ValueError(f"it is of step {step}, in the folder of another")
        early = _early_stopping(about.get("early_stopping"))
    reading.warn_of_unknown(file, about, ("format", "step", "early_stopping"))
    return About(step, early)


def _early_stopping(found: Any) -> dict[str, Any] | None:
    """The numbers of an `EarlyStopping`. Raises an error of any kind where they are none."""
    if found is None:
        return None
    counts = {name: reading.whole_number(found[name], name) for name in ("step", "waited")}
    loss = found["test_loss"]
    return {**counts, "test_loss": None if loss is None else float(loss)}


def _load_like(path: Path, trees: dict[str, dict], model: nn.Module) -> dict[str, dict]:
    """Load the files of a checkpoint and hold them against `trees`: same names, shapes, types.

    In older checkpoints only trained weights have an average; all else is as `model` had it then.
    """
    trained, found = named_arrays(model.trainable_parameters()), {}
    for name, tree in trees.items():
        file = path / f"{name}.safetensors"
        with reading.checked(file):
            arrays, _ = reading.arrays_of_mlx(file)
        if name == "ema":
            untrained = {k: x for k, x in found["model"].items() if k not in trained}
            arrays = {**untrained, **arrays}
        _check_like(file, arrays, named_arrays(tree))
        found[name] = arrays
    return {name: tree_unflatten(list(arrays.items())) for name, arrays in found.items()}


def _check_like(path: Path, found: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    have, want = ({k: (v.shape, v.dtype) for k, v in x.items()} for x in (found, expected))
    wrong = sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k))
    if not wrong:
        return
    differences = []
    for name in wrong[:3]:
        ours, theirs = (x.get(name, ("missing", "missing")) for x in (have, want))
        differs = int(ours[0] == theirs[0])  # the type, where the shapes are alike
        differences.append(
            f"{name} is {ours[differs]} in the file and {theirs[differs]} in the model"
        )
    more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise ValueError(
        f"{path} does not fit this model: {', '.join(differences)}{more}; build the model with the "
        "run's settings"
    )


def _others(path: Path) -> str:
    """Say which checkpoints are whole beside the one at `path`, and how to take one."""
    whole = [k for k in steps_saved(path.parent) if k != int(path.name) and _is_whole(path, k)]
    if not whole:
        return f"no other checkpoint in {path.parent} is whole: restore a copy, or train anew"
    return (
        f"whole ones are there of step {', '.join(map(str, whole))}: name one as the step (sample "
        f"--step {whole[-1]}), or remove {path} to go on from step {whole[-1]}"
    )


def _is_whole(beside: Path, step: int) -> bool:
    path = beside.with_name(f"{step:08d}")
    try:
        about = _read_about(path)
        for name in (*TREES, *([] if about.early_stopping is None else [AVERAGE])):
            reading.check_header(path / f"{name}.safetensors")
        return True
    except Exception:  # whatever is wrong with it, it is not offered
        return False


def _remove(path: Path) -> None:
    """Remove a checkpoint: first its name, so that half of one is never found."""
    gone = path.with_name(f"{writing.PREFIX}{path.name}")
    path.rename(gone)
    shutil.rmtree(gone)


def _flush(path: Path) -> None:
    writing.flush(path)
