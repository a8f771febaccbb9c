"""What Ray's errors mean for a run: which another try may mend, which end it, and what to do about those.

Ray's exceptions are handed in as a module, so that this one needs no Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gpudrift.engine.tasks import Failure
from gpudrift.errors import EngineError, GpudriftError


def refusal(error: BaseException, target: str, field: str) -> EngineError:
    """Why ``ray.init`` failed, in one error."""
    said = " ".join(str(error).split())
    if "Version mismatch" in said:
        return EngineError(
            "Ray or Python has another version here than in the cluster: " + said.partition("Version mismatch: ")[2],
            field=field,
            value=target,
            hint="install the same versions of Ray and Python everywhere",
        )
    if "No node info found" in said or "Can't find a" in said:
        return EngineError(
            "this machine is no node of the Ray cluster",
            field=field,
            value=target,
            hint="run the job on one of its machines (ray job submit ...), or make this one a node: "
            f"ray start --address={target}",
        )
    causes = " ".join(_chain(error))
    if "authentication token" in causes.lower() or "Unauthenticated" in causes:
        return EngineError(
            "the Ray cluster asks for a token, and has not been shown the right one",
            field=field,
            value=target,
            hint="set RAY_AUTH_MODE=token, and bring the head's ~/.ray/auth_token here (or RAY_AUTH_TOKEN_PATH, "
            "RAY_AUTH_TOKEN)",
        )
    return EngineError(f"Ray cannot be used: {said[:600]}", field=field, value=target)


def _chain(error: BaseException | None) -> Iterator[str]:
    """What an error and its causes say: ``ray.init`` keeps why it could not connect in a cause."""
    while error is not None:
        yield " ".join(str(error).split())
        error = error.__cause__


def failure_of(exceptions: Any, error: BaseException) -> Failure:
    """How an attempt ended that has no result. Raises nothing: what is fatal is so for the scheduler."""
    where = _where(error)
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
    if isinstance(cause, GpudriftError):
        return Failure("fatal", cause, where)
    if isinstance(cause, (exceptions.ObjectStoreFullError, exceptions.OutOfDiskError)):
        return Failure("fatal", full(cause, None, None), where)
    said = " ".join(str(error).split())
    if "No module named" in said and isinstance(cause, (exceptions.RayError, RuntimeError, ImportError)):
        missing = re.search(r"No module named '([^']+)'", said)
        return Failure("fatal", _missing(missing.group(1) if missing else "a module"), where)
    if isinstance(cause, exceptions.RuntimeEnvSetupError):
        return Failure(
            "fatal",
            EngineError(f"workers cannot be set up: {said[:600]}", field="engine.ship_code"),
            where,
        )
    if isinstance(cause, exceptions.RayError):
        return Failure("lost", cause, where)
    if cause is not error and cause is not None:
        cause.__cause__ = error  # with the worker's traceback
    return Failure("error", error if cause is None else cause, where)


def _where(error: BaseException) -> str:
    """The node, where an error tells."""
    address = getattr(error, "ip", None)
    if not isinstance(address, str):
        found = re.search(r"[Nn]ode IP: ([^\s,]+)|IP: ([\d.]+)", str(error))
        address = found and (found.group(1) or found.group(2))
    return f"node {address}" if address else ""


def _missing(name: str) -> EngineError:
    return EngineError(
        f"the workers of the Ray cluster have no module {name!r}",
        field="engine.ship_code",
        hint="send gpudrift's code along: engine.ship_code=true"
        if name.split(".")[0] == "gpudrift"
        else "install gpudrift's dependencies on every node",
    )


def full(error: BaseException, size: int | None, store: float | None) -> EngineError:
    """size: bytes of the value that found no room. store: of this node's store."""
    needs = "" if size is None else f" for {size:,} bytes"
    here = "" if store is None else f" (this node's has {store:,.0f})"
    what = "no room" + needs + " in Ray's object store" + here + ", and none on the disk it spills to"
    return EngineError(
        f"{what}: {str(error).strip().splitlines()[0]}",
        field="engine",
        hint="start the nodes with a larger --object-store-memory or an --object-spilling-directory with room, or set "
        "a smaller engine.block_rows",
    )
