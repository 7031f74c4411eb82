"""config.pbtxt for a model that Triton's Python backend serves through triton_model.py."""

import re
from collections.abc import Sequence

from .detector import MAX_BATCH
from .runtime import EVALUATED_WITH

# For a first load and two batches in a child process; a model that takes longer is refused. With the load that follows
# it stays below what publishing waits for (triton.LOAD_S).
TRIAL_S = 60.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def config_pbtxt(
    name: str,
    *,
    version: int = 1,
    instances: int = 1,
    gpu: bool = False,
    threads: int = 1,
    trial_s: float = TRIAL_S,
    runtimes: Sequence[str] = (EVALUATED_WITH,),
) -> str:
    """The model configuration in protobuf's text form.

    `instances` processes with `threads` each: one instance with all cores answers soonest, one thread each serves most
    images a second. `gpu`: they compute on the server's first GPU. The version policy is `specific`: `latest` would
    pick up a left-over broken folder again. Requests are batched without waiting, so a lone one is never delayed.
    `trial_s`: for a first load in a child process. `runtimes`: of several, each instance measures and takes the
    fastest, so let there be one instance then.

    Raises ValueError if the name is no plain folder name or a number is below one.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a model name: letters, digits, '_', '-' and '.' only, at most 128")
    if min(version, instances, threads) < 1:
        raise ValueError("version, instances and threads start at 1")
    return f"""name: "{name}"
backend: "python"
max_batch_size: {MAX_BATCH}
input [ {{ name: "IMAGE", data_type: TYPE_STRING, dims: [ 1 ] }} ]
output [
  {{ name: "BOXES", data_type: TYPE_FP32, dims: [ -1, 4 ] }},
  {{ name: "SCORES", data_type: TYPE_FP32, dims: [ -1 ] }},
  {{ name: "LABELS", data_type: TYPE_INT32, dims: [ -1 ] }},
  {{ name: "COUNT", data_type: TYPE_INT32, dims: [ 1 ] }},
  {{ name: "REPORT", data_type: TYPE_STRING, dims: [ 1 ] }}
]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
instance_group [ {{ {"kind: KIND_GPU, gpus: [ 0 ]" if gpu else "kind: KIND_CPU"}, count: {instances} }} ]
version_policy {{ specific {{ versions: [ {version} ] }} }}
parameters {{ key: "threads", value: {{ string_value: "{threads}" }} }}
parameters {{ key: "runtimes", value: {{ string_value: "{",".join(runtimes)}" }} }}
parameters {{ key: "trial_s", value: {{ string_value: "{trial_s:g}" }} }}
"""
