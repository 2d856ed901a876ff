"""The peak memory of a rank before it runs: what DeepSpeed holds, and what a trace of a step adds.

What DeepSpeed 0.19.8 keeps and copies was read in its `runtime/` (`bf16_optimizer.py`,
`zero/stage_1_and_2.py`, `zero/stage3.py`, `fp16/unfused_optimizer.py`, `engine.py`); padding for alignment is
left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch._subclasses.fake_tensor import FakeTensorMode

from model import GPT, GPTConfig
from model.errors import UserError
from model.probe import probe_unless_ours

from ..config import DeepSpeedConfig
from ..engine.compilation import why_no_budget, why_uncompiled
from .shape import copy_of_bucket, largest_copy, largest_partition, shape_of
from .trace import Activations, Device, Gradients, trace

_BUCKET = 500_000_000
"""DeepSpeed's own bucket where ZeRO's is not used, in elements: `MEMORY_OPT_ALLREDUCE_SIZE`."""
_STATE_BYTES = {"adam": 8, "adamw": 8, "lamb": 8, "lion": 4, "adagrad": 4}
"""Optimizer states per parameter, in fp32; Muon has 4 for its matrices and Adam's 8 for the rest."""
_DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        weights: the model's own copy
        gradients: in the model's dtype, and what accumulates them; what lasts from micro-batch to micro-batch
        states: fp32 master weights and optimizer states, if on the GPU
        host: the same, if they are offloaded to the CPU
        activations: what forward and backward add at their peak: activations, the head's buffers, new
            gradients, temporary tensors
        buffers: DeepSpeed's reduction buckets, as far as they stand beside the activations
        phases: bytes in all at the peak of each phase of a step
    """

    weights: int
    gradients: int
    states: int
    host: int
    activations: int
    buffers: int
    phases: Mapping[str, int]

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment of a step."""
        return max(self.phases.values())


class MemoryModel:
    """Peak memory of a rank of `config` under a DeepSpeed JSON, for any number of ranks and micro-batch.

    Micro-batches between powers of two that the JSON does not name are taken as on a line between those.

    Args:
        config: the model.
        deepspeed: how it is trained.
        compiled: whether torch.compile has the blocks, as far as the JSON lets it.
        budget: see `train.activation_memory_budget`.
        document_mask: whether attention keeps to documents.
        device: `cuda` for what a GPU holds. `cpu` for what this machine's CPU does: another chunk and another
            operator for the loss, copies in fp32 where bf16 products are not in hardware, and buckets count
            as far as they are written, because that is when the kernel gives them memory.
    """

    def __init__(
        self,
        config: GPTConfig,
        deepspeed: DeepSpeedConfig,
        device: Device = "cuda",
        compiled: bool = False,
        budget: float = 1.0,
        document_mask: bool = False,
    ) -> None:
        self.compiled = compiled and why_uncompiled(deepspeed) is None
        self.budget = 1.0 if why_no_budget(compiled, deepspeed) else budget
        self.document_mask = document_mask
        self.config, self.deepspeed, self.device = config, deepspeed, device
        self.stage = deepspeed.stage
        self.weight = _DTYPE_BYTES[deepspeed.model_dtype]
        self.accumulate = _DTYPE_BYTES[deepspeed.accumulation_dtype]
        self.communicate = _DTYPE_BYTES[deepspeed.communication_dtype]
        self.offloaded = deepspeed.offloads_optimizer
        self.optimizer = deepspeed.optimizer
        if self.optimizer != "muon" and self.optimizer not in _STATE_BYTES:
            known = ", ".join(["muon", *_STATE_BYTES])
            raise UserError(
                f"optimizer.type {self.optimizer} has an unknown size of states: known are {known}"
            )
        treatment = probe_unless_ours(config)
        with FakeTensorMode():
            gpt = GPT(config)
            gpt.treat(treatment)
            self.shape = shape_of(gpt, deepspeed)
        self._traced: dict[tuple[int, Gradients], Activations] = {}

    def activations(self, micro_batch: int, gradients: Gradients) -> Activations:
        """What forward and backward of `micro_batch` sequences add."""
        low = 2 ** (micro_batch.bit_length() - 1)
        if micro_batch in (low, self.deepspeed.micro_batch):
            return self._trace(micro_batch, gradients)
        few, many = self._trace(low, gradients), self._trace(2 * low, gradients)
        between = [
            round(a + (b - a) * (micro_batch - low) / low)
            for a, b in ((few.forward, many.forward), (few.backward, many.backward))
        ]
        return Activations(*between)

    def _trace(self, micro_batch: int, gradients: Gradients) -> Activations:
        key = (micro_batch, gradients)
        if key not in self._traced:
            self._traced[key] = trace(
                self.config,
                micro_batch,
                self.deepspeed.precision,
                gradients,
                self.deepspeed.activation_checkpointing,
                self.device,
                self.compiled,
                self.budget,
                self.document_mask,
            )
        return self._traced[key]

    def of(self, ranks: int, micro_batch: int, accumulation: int) -> Memory:
        """The memory of one of `ranks` that accumulates gradients over `accumulation` micro-batches."""
        in_wrapper = {
            "torch": self._without_zero,
            "unfused": self._without_zero,
            "bf16": self._bf16_optimizer,
            "zero12": self._zero12,
            "zero3": self._zero3,
        }
        return in_wrapper[self.deepspeed.engine_optimizer](ranks, micro_batch, accumulation)

    def optimizer_bytes(self, ranks: int, master: bool = True) -> int:
        """Optimizer states, and the fp32 master weights they belong to, of one of `ranks`."""
        shape, copies = self.shape, 4 if master else 0
        if self.optimizer == "muon":
            states = 4 * shape.matrices + 8 * (shape.parameters - shape.matrices)
        else:
            states = _STATE_BYTES[self.optimizer] * shape.parameters
        return -(-(states + copies * shape.parameters) // ranks)

    def checkpoint_copy(self, ranks: int) -> int:
        """What rank 0 copies to the CPU's memory for a checkpoint, and keeps for the next, in bytes.

        The other ranks copy their states. With ZeRO-3 these are all that there is.
        """
        sharers, master = ranks, True
        if self.deepspeed.engine_optimizer in ("torch", "unfused"):
            sharers, master = 1, self.weight == 2
        weights = 0 if self.stage == 3 else self.weight * self.shape.parameters
        return weights + self.optimizer_bytes(sharers, master)

    def _bf16_optimizer(self, ranks: int, micro_batch: int, accumulation: int) -> Memory:
        """bf16 weights, accumulation in fp32, ZeRO-1: `BF16_Optimizer`. It keeps both kinds of gradients."""
        shape = self.shape
        weights = 2 * shape.parameters
        gradients = (4 if self.deepspeed.immediate_grad_update else 6) * shape.parameters
        states = self.optimizer_bytes(ranks)
        resident = weights + gradients + states
        step = self.activations(micro_batch, "freed" if self.deepspeed.immediate_grad_update else "kept")
        # The fp32 buffer of each group is one tensor; several in a bucket are copied together.
        copy = largest_copy([sum(group) for group in shape.groups], _BUCKET, 4, self.communicate)
        phases = {
            "forward": resident + step.forward,
            "backward": resident + step.backward,
            "accumulation": resident + 4 * shape.largest,
            "reduction": resident + copy,
            "optimizer": resident + self._muon_workspace(),
        }
        return self._memory(weights, gradients, states, step, 0, phases)

    def _without_zero(self, ranks: int, micro_batch: int, accumulation: int) -> Memory:
        """Stage 0: torch's optimizer in fp32; in bf16, fp32 copies of all (`FP16_UnfusedOptimizer`)."""
        shape, in_bf16 = self.shape, self.weight == 2
        weights = gradients = self.weight * shape.parameters
        states = self.optimizer_bytes(1, master=in_bf16)
        lasting = gradients if accumulation > 1 else 0
        step = self.activations(micro_batch, "kept" if lasting else "new")
        resident = weights + states
        sizes = [size for group in shape.groups for size in group]
        copy = largest_copy(sizes, _BUCKET, self.weight, self.communicate)
        phases = {
            "forward": resident + lasting + step.forward,
            "backward": resident + lasting + step.backward,
            "reduction": resident + gradients + copy,
            "optimizer": resident + gradients + (4 * shape.parameters if in_bf16 else 0),
        }
        return self._memory(weights, gradients, states, step, 0, phases)

    def _zero12(self, ranks: int, micro_batch: int, accumulation: int) -> Memory:
        """`DeepSpeedZeroOptimizer`: ZeRO-1 where weights and accumulation have one dtype, and ZeRO-2."""
        shape = self.shape
        share = -(-shape.parameters // ranks)
        weights = self.weight * shape.parameters
        separate = self.weight != self.accumulate
        states = self.optimizer_bytes(ranks)
        gpu_states, host = (0, states) if self.offloaded else (states, 0)
        resident = weights + gpu_states
        # Gradients in the weights' dtype stay in whole parameters, even where a part is another rank's.
        partition = 4 * share if separate else self.weight * largest_partition(shape.groups, ranks)
        if self.stage == 2:
            mode: Gradients = "freed"
            gradients = partition
        else:
            mode = "kept" if accumulation > 1 and not separate else "freed" if separate else "new"
            gradients = self.accumulate * shape.parameters
        before = gradients if accumulation > 1 or separate else 0
        step = self.activations(micro_batch, mode)

        element = self.accumulate if separate and self.stage == 1 else self.weight
        bucket = self.deepspeed.reduce_bucket_size
        sizes = self.sizes_by_reduction()
        if self.device == "cpu":  # written as backward goes on, when activations are freed
            in_backward, in_reduction = 0, element * sum(min(bucket, sum(size)) for size in sizes.values())
        else:
            in_reduction = bucket * element * (2 if self.deepspeed.overlaps_communication else 1) * len(sizes)
            in_backward = in_reduction
        lasting_buffers = in_backward if self.stage == 1 and accumulation > 1 else 0
        # A full bucket is copied once to be reduced, and once more if it travels in another dtype.
        copy = max(copy_of_bucket(size, bucket, element, to) for to, size in sizes.items())
        reduction = resident + in_reduction + copy + partition
        if self.stage == 2:
            reduction += 0 if separate else before  # the new sum, beside what was accumulated
        else:
            reduction += max(0, element * (shape.parameters - bucket))  # gradients that wait for the bucket
        largest_group = -(-max(map(sum, shape.groups)) // ranks)
        flat = 0 if separate else 4 * largest_group + (self.weight * largest_group if self.weight < 4 else 0)
        phases = {
            "forward": resident + before + lasting_buffers + step.forward,
            "backward": resident + before + in_backward + step.backward,
            "reduction": reduction,
            "optimizer": resident
            + partition
            + (0 if self.offloaded else flat)
            + (self.weight * -(-shape.matrices // ranks) if self.optimizer == "muon" else 0)
            + self._muon_workspace(),
        }
        return self._memory(weights, gradients, gpu_states, step, in_backward, phases, host)

    def _zero3(self, ranks: int, micro_batch: int, accumulation: int) -> Memory:
        """`DeepSpeedZeroOptimizer_Stage3`: weights are split too, and gathered while they are needed."""
        shape = self.shape
        share = -(-shape.parameters // ranks)
        weights, gradients = self.weight * share, self.accumulate * share
        states = self.optimizer_bytes(ranks)
        gpu_states, host = (0, states) if self.offloaded else (states, 0)
        gathered = 0
        if ranks > 1:
            gathered = self.weight * min(shape.parameters, self.deepspeed.max_live_parameters)
        bucket = self.deepspeed.reduce_bucket_size
        sizes = self.sizes_by_reduction()
        buffers = sum(
            to * (min(bucket, sum(size)) if self.device == "cpu" else bucket) for to, size in sizes.items()
        )
        copy = max(to * min(bucket, sum(size)) for to, size in sizes.items())
        step = self.activations(micro_batch, "freed")
        resident = weights + gpu_states + buffers + (0 if self.offloaded else gradients)
        sub_group = min(share, self.deepspeed.sub_group_size)
        phases = {
            "forward": resident + gathered + step.forward,
            "backward": resident + gathered + step.backward,
            "reduction": resident + gathered + copy,
            "optimizer": resident + (0 if self.offloaded else 4 * sub_group) + self._muon_workspace(),
        }
        return self._memory(weights + gathered, gradients, gpu_states, step, buffers, phases, host)

    def _memory(
        self,
        weights: int,
        gradients: int,
        states: int,
        step: Activations,
        buffers: int,
        phases: Mapping[str, int],
        host: int = 0,
    ) -> Memory:
        activations = max(step.forward, step.backward)
        return Memory(weights, gradients, states, host, activations, buffers, phases)

    def sizes_by_reduction(self) -> dict[int, list[int]]:
        """Bytes per element on the network -> sizes of the parameters whose gradients travel so, in order."""
        sizes = [size for group in self.shape.groups for size in group]
        if not self.deepspeed.reduces_linear_layers_in_half:
            return {self.communicate: sizes}
        return {2: [self.shape.linear], 4: [self.shape.parameters - self.shape.linear]}

    def _muon_workspace(self) -> int:
        """A matrix at a time: its gradient, momentum, and about four bf16 copies in the iteration."""
        return 16 * 4 * self.config.n_embd**2 if self.optimizer == "muon" else 0
