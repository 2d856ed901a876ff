"""What the model's tests share."""

import pytest
import torch

from model import loss


@pytest.fixture(params=[False, True], ids=["fp32 products", "bf16 products"])
def bf16_products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both kinds of CPU, whichever this one is: without bf16 instructions, and with them, as on a GPU."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    monkeypatch.setattr(loss, "_compiled", lambda function: function, raising=False)
    return request.param
