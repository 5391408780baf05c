"""Where to compute and how precisely, and quiet libraries."""

from __future__ import annotations

import logging
import os
import resource
import threading
from datetime import timedelta

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import check_cuda_p2p_ib_support
from tqdm import tqdm

from hubctl.errors import InputError
from hubctl.settings import Place, export_defaults, place
from train.config import MixedPrecision

PATIENCE = timedelta(days=1)
"""How long processes wait for the first, which alone fetches, encodes, draws and looks: whoever started them
ends them when one of them is lost, so that no shorter limit is needed."""


def open_accelerator(mixed_precision: MixedPrecision) -> tuple[Accelerator, torch.dtype]:
    """An accelerator on this machine's device, and the precision of the frozen base on it.

    In half precision the frozen base is kept so too. A GPU takes it by itself, a CPU only when told to,
    since most have no faster half precision. Of several processes each has a GPU of its own; the
    first call waits until all of them have come so far.

    Raises:
        InputError: the device cannot compute in this precision, or there are too few GPUs.
    """
    # accelerate keeps one global state and refuses another precision later in the same process.
    AcceleratorState._reset_state()
    on_gpu = torch.cuda.is_available()
    chosen = mixed_precision
    if chosen == "auto":
        chosen = "no" if not on_gpu else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if chosen == "fp16" and not on_gpu:
        raise InputError(
            "fp16 needs a GPU, and this machine has none", hint="add --mixed-precision bf16 or no"
        )
    here = place()
    if here.count > 1:
        _meet(here, on_gpu=on_gpu)
    accelerator = Accelerator(mixed_precision=chosen, cpu=here.count > 1 and not on_gpu)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return accelerator, half.get(chosen, torch.float32)


def _meet(here: Place, *, on_gpu: bool) -> None:
    """Wait for the other processes of this training, and make a group of them; once."""
    if on_gpu:
        gpus = torch.cuda.device_count()
        if here.count_here > gpus:
            raise InputError(
                f"{here.count_here} processes want a GPU each, and this machine has {gpus}",
                hint=f"give --processes {gpus} or less",
            )
        if not check_cuda_p2p_ib_support():  # as `accelerate launch` does for cards that cannot
            export_defaults(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")
    state = PartialState(cpu=not on_gpu, timeout=PATIENCE)
    if not on_gpu:
        state.device = torch.device("cpu")  # not cpu:0, a name that safetensors does not know


def peak_memory_bytes(device: torch.device) -> tuple[int, int]:
    """Most memory taken so far, and how much there is: the GPU's, or this machine's for the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.mem_get_info(device)[1]
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return taken, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def quiet_libraries() -> None:
    """Training speaks through events; libraries that chat on stderr would tear the progress bar.

    To be called before peft is imported: most of the talk comes then.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Only now: importing diffusers makes transformers chat.
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    # peft imports torchao where it is installed, which tells of kernels that are not built for this torch.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its own lock is the system's. Processes that leave at once, as those of `train.processes`, would leave
    # it behind, and Python would say so.
    tqdm.set_lock(threading.RLock())
