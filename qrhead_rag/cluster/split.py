"""One actor in several processes, so that a model can be cut over the GPUs of its machine (tensor parallelism).

The first process is the actor's own. It tells the others what it does; they do the same, each with its part of the
model, and what they find is dropped: `tensor_parallel.py` has put it together in the first.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from qrhead_rag.cluster.pool import Pool
from qrhead_rag.cluster.run import Maker
from qrhead_rag.datasets.examples import RawRecord


def split(
    make: Callable[..., Maker], options: Mapping[str, Any], reading: Mapping[str, Any], pool: Pool
) -> tuple[Callable[..., Maker], dict[str, Any]]:
    """A maker and its options as they are, or in as many processes as the actor has GPUs where `tp_plan` asks for it.

    Raises:
        ValueError: `tp_plan` with fewer than two whole GPUs for each actor.
    """
    if reading.get("tp_plan") is None:
        return make, dict(options)
    if pool.gpus < 2 or pool.gpus != int(pool.gpus):
        raise ValueError(
            f"tp_plan={reading['tp_plan']!r} cuts a model over the GPUs of an actor, which has {pool.gpus:g}; expected "
            "2 or more (--gpus), or no tp_plan"
        )
    return SplitMaker, {"make": make, "options": dict(options), "processes": int(pool.gpus)}


class SplitMaker:
    """A maker in several processes of this machine."""

    def __init__(self, make: Callable[..., Maker], options: Mapping[str, Any], processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        self._others: list[Connection] = []
        for rank in range(1, processes):
            here, there = context.Pipe()
            place = (rank, processes, port, torch.get_num_threads())
            # A daemon ends with this process; one whose parent was killed finds its pipe closed.
            context.Process(target=_follow, args=(there, make, dict(options), *place), daemon=True).start()
            there.close()
            self._others.append(here)
        _join(0, processes, port)
        self._maker = make(**options)

    def begin(self) -> None:
        """As the maker's."""
        self._tell("begin")
        self._maker.begin()

    def add(self, file: str, records: Sequence[RawRecord]) -> tuple[list[str | None], int]:
        """As the maker's."""
        self._tell("add", file, list(records))
        return self._maker.add(file, records)

    def write(self, path: Path) -> None:
        """As the maker's, in this process alone."""
        self._maker.write(path)

    def _tell(self, *call: Any) -> None:
        for other in self._others:
            other.send(call)


def _follow(
    pipe: Connection,
    make: Callable[..., Maker],
    options: Mapping[str, Any],
    rank: int,
    processes: int,
    port: int,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    _join(rank, processes, port)
    maker = make(**options)
    while True:
        try:
            name, *arguments = pipe.recv()
        except EOFError:
            return
        getattr(maker, name)(*arguments)


def _join(rank: int, processes: int, port: int) -> None:
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
