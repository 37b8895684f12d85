"""A pool of Ray Data actors that does tasks, on this machine or on a cluster, whoever dies meanwhile. Extra `ray`."""

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Self, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from qrhead_rag.extras import require_extra

_STORE_BYTES = 100 * 2**20  # tasks and reports are all that passes through Ray's object store


class Pool(BaseModel):
    """Where tasks are done.

    Attributes:
        address: of a Ray cluster ("auto", "ray://head:10001"); None starts one on this machine, for this run.
        concurrency: actors that work at once, at least and at most; each holds a model.
        gpus: GPUs of each actor; a model on several needs device_map="auto".
        cpus: CPUs, and threads, of each actor; None shares out this machine's, and is 1 on a cluster.

    Raises:
        ValueError: an option out of range; the message names it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str | None = None
    concurrency: tuple[int, int] = (1, 1)
    gpus: float = Field(default=0, ge=0)
    cpus: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check_concurrency(self) -> Self:
        fewest, most = self.concurrency
        if not 1 <= fewest <= most:
            raise ValueError(f"concurrency={fewest}-{most}; expected 1 or more, the smaller number first")
        return self


Work: TypeAlias = Callable[[Any], Iterator[Any]]


def run(pool: Pool, make: Callable[..., Work], options: Mapping[str, Any], tasks: Sequence[Any]) -> Iterator[Any]:
    """Do tasks on a pool of actors and hand on what they report, as it comes.

    A task of an actor that died is done again by another, from its beginning; what was reported before is not reported
    again. So a task has to report equally often each time.

    Args:
        pool: where.
        make: makes the work of an actor, once; the work takes a task and yields its reports. A class or function that
            other processes can import.
        options: its arguments.
        tasks: JSON values, like the reports.

    Raises:
        ValueError, TypeError, OSError, ImportError, FloatingPointError: as the work raised it.
        RuntimeError: the work raised something else; the message holds its traceback.
        ImportError: Ray is not installed.
    """
    if not tasks:
        return
    with _connected(pool) as ray:
        fewest, most = (min(count, len(tasks)) for count in pool.concurrency)
        cpus = _cpus(ray, pool, fewest, most)
        context = ray.data.DataContext.get_current().copy()
        context.target_max_block_size = 1  # bytes: a report is handed on as soon as it is made
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        with ray.data.DataContext.current(context):
            rows = [{"task": json.dumps(task)} for task in tasks]
            reports = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Worker,
                fn_constructor_args=(make, dict(options), cpus),
                batch_size=1,
                num_cpus=cpus,
                num_gpus=pool.gpus or None,
                compute=ray.data.ActorPoolStrategy(min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=1),
            )
        for row in reports.iter_rows():
            yield said(json.loads(row["report"]))


def said(report: Mapping[str, Any]) -> Any:
    """What the work of an actor reported.

    Raises:
        Exception: what the work raised, as in `run`.
    """
    if "fault" not in report:
        return report["said"]
    if report["fault"] in _FAULTS:
        raise _FAULTS[report["fault"]](report["message"])
    raise RuntimeError(f"an actor failed; what is finished stays so\n{report['traceback']}")


_FAULTS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ImportError, OSError, FloatingPointError, TypeError, ValueError)
}


class _Worker:
    """What Ray makes one of per actor. It hands on what went wrong as a report, plainer than Ray's own errors."""

    def __init__(self, make: Callable[..., Work], options: Mapping[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._work: Work | None = None
        try:
            self._work = make(**options)
        except Exception as error:
            self._fault = _fault(error)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[str]]]:
        for task in batch["task"]:
            if self._work is None:
                yield self._fault
                continue
            try:
                for said in self._work(json.loads(task)):
                    yield _row({"said": said})
            except Exception as error:
                yield _fault(error)


def _fault(error: Exception) -> dict[str, list[str]]:
    kind = next((name for name, kind in _FAULTS.items() if isinstance(error, kind)), type(error).__name__)
    return _row({"fault": kind, "message": str(error), "traceback": "".join(traceback.format_exception(error))})


def _row(report: Mapping[str, Any]) -> dict[str, list[str]]:
    return {"report": [json.dumps(report)]}


@contextmanager
def _connected(pool: Pool) -> Iterator[ModuleType]:
    """Ray, connected to what the pool names, or to what this process is connected to already."""
    address = pool.address or os.environ.get("RAY_ADDRESS") or "local"
    # Read by Ray when it is imported: report nothing to anybody and, on one machine, listen to no other.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = require_extra("ray", "ray")
    require_extra("ray.data", "ray")
    if ray.is_initialized():
        yield ray
        return
    local = {"include_dashboard": False, "object_store_memory": _STORE_BYTES} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except ConnectionError as error:
        raise ConnectionError(f"no Ray cluster at {address!r}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _cpus(ray: ModuleType, pool: Pool, fewest: int, most: int) -> int:
    """CPUs of each actor.

    Raises:
        ValueError: this machine has not what the actors need, so that the run would wait for ever.
    """
    there = ray.cluster_resources()
    if pool.address is not None or os.environ.get("RAY_ADDRESS"):
        return pool.cpus or 1  # a cluster may grow
    cpus = pool.cpus or max(1, int(there.get("CPU", 1)) // most)
    for name, wanted in (("CPU", cpus), ("GPU", pool.gpus)):
        if wanted * fewest > there.get(name, 0):
            raise ValueError(
                f"{fewest} actors of {wanted:g} {name}s each are wanted, this machine has {there.get(name, 0):g}; use "
                "fewer, or a cluster (--address)"
            )
    return cpus
