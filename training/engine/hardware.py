"""What a GPU can do: peak rate, memory and bandwidth, by its name."""

from dataclasses import dataclass

GiB = 2**30


@dataclass(frozen=True)
class GPU:
    """One kind of GPU, as its maker's data sheet has it.

    Attributes:
        peak_flops: dense (no sparsity) bf16 FLOP/s with fp32 accumulation; fp16's for the V100, which has no
            bf16
        memory: bytes that a process can ask for, about what `torch.cuda.get_device_properties` reports
        intra_node: bytes/s one way between GPUs of a node, nominal: NVLink, or PCIe where there is none
        inter_node: bytes/s one way to other nodes, nominal, this GPU's share of the node's network: an
            assumption about the cluster, not a property of the GPU
        pattern: what identifies it in `torch.cuda.get_device_name()`, upper case
    """

    peak_flops: float
    memory: int
    intra_node: float
    inter_node: float
    pattern: str


GPUS = {
    "B200": GPU(2250e12, 178 * GiB, 900e9, 50e9, "B200"),
    "H200": GPU(989e12, 139 * GiB, 450e9, 50e9, "H200"),
    "GH200": GPU(989e12, 94 * GiB, 450e9, 50e9, "GH200"),
    "H100": GPU(989e12, 79 * GiB, 450e9, 50e9, "H100"),
    "H100-NVL": GPU(835e12, 93 * GiB, 300e9, 50e9, "H100 NVL"),
    "H100-PCIe": GPU(756e12, 79 * GiB, 64e9, 25e9, "H100 PCIE"),
    "A100": GPU(312e12, 79 * GiB, 300e9, 25e9, "A100"),
    "A100-40GB": GPU(312e12, 39 * GiB, 300e9, 25e9, "40GB"),
    "L40S": GPU(362e12, 44 * GiB, 32e9, 12.5e9, "L40S"),
    "RTX4090": GPU(165e12, 23 * GiB, 16e9, 3e9, "RTX 4090"),
    "V100": GPU(125e12, 31 * GiB, 150e9, 12.5e9, "V100"),
}
"""By the name that `--gpus` takes. Rates are the dense numbers of NVIDIA's data sheets (A100, H100, H200,
L40S, V100), of its Hopper, Ada and Blackwell architecture white papers (RTX 4090: 165.2 with fp32
accumulation, half of its number with fp16 accumulation; B200: 2250 in an HGX board); sheets that print sparse
numbers halved. Networks are those of NVIDIA's own nodes: per GPU a port of 400 Gb/s for Hopper and Blackwell,
of 200 Gb/s for A100 and of 100 Gb/s for V100; for L40S a share of 100 Gb/s and for RTX 4090 of 25 Gb/s. The
RTX 4090 has half of its PCIe rate, because it has no peer-to-peer transfers.
"""

NODE = 8
"""GPUs per node."""


def gpu_of_device(device_name: str) -> GPU | None:
    """The GPU that `torch.cuda.get_device_name()` calls so; None if it is not in `GPUS`, or a part of one."""
    name = device_name.upper()
    if "MIG" in name.split():
        return None
    if "A100" in name:
        return GPUS["A100-40GB" if "40GB" in name else "A100"]
    # The longest first: "H100 NVL" before "H100", "GH200" before "H200".
    for gpu in sorted(GPUS.values(), key=lambda gpu: -len(gpu.pattern)):
        if gpu.pattern in name:
            return gpu
    return None


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of the device that torch calls so, or None if it is unknown."""
    gpu = gpu_of_device(device_name)
    return gpu.peak_flops if gpu else None
