"""A pool of Ray Data actors that runs tasks, on this machine or on a cluster. Needs the extra `ray`."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Self, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from qrhead_rag.extras import require_extra

_STORE_BYTES = 100 * 2**20  # only tasks and reports pass through Ray's object store


class Pool(BaseModel):
    """Where tasks are run.

    Attributes:
        address: of a Ray cluster ("auto", "ray://head:10001"); None starts Ray on this machine, for this run.
        concurrency: fewest and most actors that work at once; each holds a model.
        gpus: GPUs of each actor; a model on several needs device_map="auto".
        cpus: CPUs, and threads, of each actor; None divides this machine's among them, and is 1 on a cluster.

    Raises:
        ValueError: an option out of range; the message names it.

    >>> Pool(concurrency=(1, 8), gpus=1).concurrency
    (1, 8)
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


Work: TypeAlias = Callable[[Any], Any]


def run_tasks(pool: Pool, make: Callable[..., Work], options: Mapping[str, Any], tasks: Sequence[Any]) -> Iterator[Any]:
    """Run tasks on a pool of actors and yield the report of each as it comes.

    Ray gives the task of an actor that died to another one.

    Args:
        pool: where.
        make: makes the work of an actor, once; the work takes a task and returns its report. A class or function that
            other processes can import.
        options: its arguments.
        tasks: JSON values, like the reports.

    Raises:
        Exception: what `make` or the work raised.
        ImportError: Ray is not installed.
    """
    if not tasks:
        return
    with _connected(pool) as ray:
        fewest, most = (min(count, len(tasks)) for count in pool.concurrency)
        cpus = _cpus_per_actor(ray, pool, fewest, most)
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
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
        try:
            for row in reports.iter_rows():
                yield json.loads(row["report"])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, _ActorError):
                raise error.cause.args[0] from error
            raise


class _ActorError(Exception):
    """Holds what an actor raised: Ray Data adds advice to the message of the exception that it sees."""


class _Worker:
    """What Ray makes one of per actor.

    An error of `make` waits for the first task, since Ray Data hides what a constructor raises.
    """

    def __init__(self, make: Callable[..., Work], options: Mapping[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._work: Work | None = None
        self._error: Exception | None = None
        try:
            self._work = make(**options)
        except Exception as error:
            self._error = error

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        if self._work is None:
            raise _ActorError(self._error)
        try:
            return {"report": [json.dumps(self._work(json.loads(task))) for task in batch["task"]]}
        except Exception as error:
            raise _ActorError(error) from error


@contextmanager
def _connected(pool: Pool) -> Iterator[ModuleType]:
    """Connect to the cluster that the pool names, unless this process is connected to one already."""
    address = pool.address or os.environ.get("RAY_ADDRESS") or "local"
    # Ray reads these when it is imported: report no usage and, on one machine, do not listen to others.
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


def _cpus_per_actor(ray: ModuleType, pool: Pool, fewest: int, most: int) -> int:
    """CPUs of each actor.

    Raises:
        ValueError: this machine lacks what the actors need, so the run would wait forever.
    """
    if pool.address is not None or os.environ.get("RAY_ADDRESS"):
        return pool.cpus or 1  # a cluster may grow
    resources = ray.cluster_resources()
    cpus = pool.cpus or max(1, int(resources.get("CPU", 1)) // most)
    for name, needed in (("CPU", cpus), ("GPU", pool.gpus)):
        if needed * fewest > resources.get(name, 0):
            raise ValueError(
                f"{fewest} actors of {needed:g} {name}s each are wanted, this machine has {resources.get(name, 0):g}; "
                "use fewer, or a cluster (--address)"
            )
    return cpus
