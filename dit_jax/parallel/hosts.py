"""Several processes that are one run: how they find each other, agree, and end together.

Every process runs the same program on its own devices. Where one of them alone may act or know
(a file is written, a file cannot be read), the others are told here.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import urllib.request
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dit_jax.errors import DitJaxError, InputError, TrainingError

# A process that is not heard of for so long is dead, and JAX ends all the others.
HEARTBEAT_SECONDS = 30
# Machines of a cluster do not start at the same moment.
START_SECONDS = 300
# Processes that fail alike do so within moments of each other.
_LEAVE_SECONDS = 5

_BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def start() -> None:
    """Joins the processes of a run; does nothing for a process that is alone.

    To be called before anything asks for devices. `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`
    and `JAX_PROCESS_ID` say who takes part; without them JAX asks the cluster, if this is one:
    Cloud TPU, GKE, Kubernetes, SLURM or Open MPI.

    Raises:
      InputError: the variables do not fit together, or the processes do not find each other.
    """
    given = _by_hand()
    if given is None:
        if not _in_cluster():
            return
        given = {}
    elif given["num_processes"] == 1:
        return
    # A request to stop is agreed on in the training loop (training/stop.py), which also counts one
    # that comes before the first step; JAX's service would take the signal and forget that one.
    jax.config.update("jax_enable_preemption_service", False)
    # When its own time is up, JAX aborts with a stack trace.
    patience = threading.Timer(START_SECONDS, _give_up)
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=2 * START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the processes of this run cannot find each other ({str(error).splitlines()[0]}): "
            f"set {', '.join(_BY_HAND)} for each of them, or JAX_NUM_PROCESSES=1 for one alone"
        ) from error
    finally:
        patience.cancel()
    # Gloo, which joins CPUs, waits 30 seconds for all to come to their first exchange and then as
    # long as it takes: so it is now, before each compiles at its own pace.
    anywhere(False).block_until_ready()


def alone() -> bool:
    """Whether this process is the whole run. Asks for no devices where `start` did nothing."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_main() -> bool:
    """Whether this is the process that logs and writes what is written once."""
    return alone() or jax.process_index() == 0


def on_main(function: Callable[[], Any]) -> Any:
    """Runs a function on the main process; all get what it returned, or raise what it raised.

    All processes must call it, and wait for it.

    Args:
      function: returns what JSON can hold.

    Raises:
      DitJaxError: the function raised one.
    """
    if alone():
        return function()
    outcome = None
    if is_main():
        try:
            outcome = {"value": function()}
        except DitJaxError as error:
            outcome = {"error": str(error), "input": isinstance(error, InputError)}
    outcome = _broadcast(outcome)
    if "error" in outcome:
        raise (InputError if outcome["input"] else TrainingError)(outcome["error"])
    return outcome["value"]


def gather(array: np.ndarray) -> np.ndarray:
    """Stacks the arrays of all processes: [P, ...], the same on all, bit for bit.

    All processes must call it with arrays of one shape and dtype, and wait for it.
    """
    if alone():
        return array[None]
    # As bytes, for JAX would round float64.
    sent = np.frombuffer(array.tobytes(), np.uint8)
    everyone = np.asarray(multihost_utils.process_allgather(sent))
    return everyone.view(array.dtype).reshape(-1, *array.shape)


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """Joins the rows [n, ...] of all processes in their order; each has its own number n.

    All processes must call it, and wait for it.
    """
    counts = gather(np.array(len(rows)))
    padded = np.pad(rows, [(0, counts.max() - len(rows))] + [(0, 0)] * (rows.ndim - 1))
    return np.concatenate([part[:n] for part, n in zip(gather(padded), counts)])


def anywhere(flag: bool) -> jax.Array:
    """Whether the flag is set on any process: the same bool scalar on all, once it is read.

    All processes must call it. It takes its turn on the devices and does not wait.
    """
    flags, anyone = _flags()
    shape = (flags.mesh.size,)
    return anyone(jax.make_array_from_callback(shape, flags, lambda _: np.full(1, flag)))


def fail_together() -> None:
    """Ends with an error the barrier at which the others wait for this process, in Orbax say.

    To be called by a process that will not come there, for they would wait for long. Where several
    fail they meet here.
    """
    if not alone():
        with contextlib.suppress(AssertionError):  # What all get whose barriers differ in name.
            multihost_utils.sync_global_devices("failed")


def leave(status: int) -> NoReturn:
    """Ends this process because of an error.

    Where all fail alike they end together, each with its own status. Else the others wait for this
    one, perhaps within a computation, and end when they miss it: it must not wait for them.
    """
    if alone():
        raise SystemExit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    together = threading.Thread(target=_shut_down, daemon=True)
    together.start()
    together.join(_LEAVE_SECONDS)
    os._exit(status)


def _shut_down() -> None:
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


def _give_up() -> None:
    print(
        f"error: not all processes of this run came within {START_SECONDS} seconds: see that each "
        f"was started, and that all reach the first one (JAX_COORDINATOR_ADDRESS, if it was given)",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _by_hand() -> dict[str, Any] | None:
    """Reads the three variables; None if none is set."""
    address, count, index = values = [os.environ.get(name) for name in _BY_HAND]
    if not any(values):
        return None
    missing = [name for name, value in zip(_BY_HAND, values) if not value]
    if missing:
        raise InputError(f"{missing[0]} is not set: set all of {', '.join(_BY_HAND)}, or none")
    if not address.rpartition(":")[2].isdigit():
        raise InputError(f"JAX_COORDINATOR_ADDRESS is '{address}': give it as host:port")
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise InputError(
            f"JAX_PROCESS_ID is '{index}' and JAX_NUM_PROCESSES '{count}': number the processes "
            f"from 0 to one less than how many there are"
        )
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",
    }


def _in_cluster() -> bool:
    """Whether a cluster has started this process with others, so that JAX is to ask it.

    JAX could always be asked, but it asks too much of a machine that is none: a notebook's
    container in Kubernetes has no rights there, and a shell of SLURM is a job of one.
    """
    given = os.environ.get
    workers = given("TPU_PROCESS_ADDRESSES", given("TPU_WORKER_HOSTNAMES"))  # GKE
    if workers is not None:
        return "," in workers or int(given("MEGASCALE_NUM_SLICES") or 1) > 1
    if int(given("SLURM_STEP_NUM_TASKS") or 1) > 1 or int(given("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return True
    if given("KUBERNETES_SERVICE_HOST") and given("JOB_COMPLETION_INDEX"):
        return True
    # JAX sets this variable where it finds no TPU.
    return "TPU_SKIP_MDS_QUERY" not in os.environ and _many_tpu_vms()


def _many_tpu_vms() -> bool:
    """Whether Google's metadata server knows of other machines of this TPU."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")

    def attribute(name: str) -> str:
        url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        try:
            return urllib.request.urlopen(request, timeout=5).read().decode()
        except OSError:
            return ""

    endpoints = attribute("worker-network-endpoints")
    return "," in endpoints or (bool(endpoints) and "MEGASCALE_NUM_SLICES" in attribute("tpu-env"))


def _broadcast(value: Any) -> Any:
    """Sends the main process's JSON value to all."""
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    sent = data if is_main() else np.zeros(size, np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(sent).tobytes())


@functools.cache
def _flags() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Where a flag for each device lies, and the program that says whether any is set."""
    mesh = Mesh(np.array(jax.devices()), ("device",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    any_set = jax.jit(lambda flags: flags.any(), out_shardings=everywhere)
    return NamedSharding(mesh, PartitionSpec("device")), any_set
