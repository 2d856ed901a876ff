"""What the first step needs, imported at once and kept out of garbage collection."""

import gc
import importlib
import os
import threading

_background: list[threading.Thread] = []


def load_libraries(compiled: bool) -> None:
    """Import torch, DeepSpeed and, where blocks are compiled, dynamo and inductor. All ranks call it.

    They all do so before rank 0 checks the design. Otherwise the check would import a part of it, and the
    other ranks would import that part only after they have waited for the check.

    Args:
        compiled: whether torch.compile will be used.
    """
    set_allocators()
    # Modules are objects that stay: to look through half a million of them again and again takes a quarter of
    # the time of the imports, and as much of DeepSpeed's start, which collects garbage six times.
    gc.disable()
    try:
        importlib.import_module(".build", __package__)
        if compiled:
            importlib.import_module("torch._inductor.compile_fx")
            _look_at_the_cpu()
        gc.freeze()
    finally:
        gc.enable()


def set_allocators() -> None:
    """Tell torch's allocators how to lie in memory, before they are used, where the environment does not."""
    if not os.environ.get("PYTORCH_CUDA_ALLOC_CONF"):  # the older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # a GPU's: in one piece
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # a CPU's: in pages of 2 MB


def _look_at_the_cpu() -> None:
    """Have inductor find out in the background which vector instructions the CPU and its compiler have.

    It starts processes for that and waits for them, a second in all, as soon as it needs to know, which is in
    the first step. Its answer is kept for this process.
    """
    import torch
    from torch._inductor.cpu_vec_isa import valid_vec_isa_list

    if not torch.cuda.is_available():
        thread = threading.Thread(target=valid_vec_isa_list, daemon=True)
        thread.start()
        _background.append(thread)


def freeze_objects() -> None:
    """Have the garbage collector look in what comes alone: what is there when training begins stays."""
    gc.collect()
    gc.freeze()


def finish_loading() -> None:
    """Wait for what `load_libraries` has begun in the background.

    To be called before anything is forked: a lock that a thread holds then is never released in the child.
    """
    while _background:
        _background.pop().join()
