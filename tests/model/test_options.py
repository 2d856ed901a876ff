"""A design's options: typed, checked, and set without changing how the design is built."""

from typing import Any, Literal

import pytest
from torch import nn

from model import GPT, GPTConfig
from model.errors import UserError
from model.options import options_of, with_options
from model.values import describe_type
from tests.tiny import TINY


class Norm(nn.Module):
    def __init__(
        self, ndim: int, bias: bool, *, eps: float = 1e-5, groups: int = 1,
        kind: Literal["a", "b"] = "a", affine: bool = True, cap: float | None = None, untyped=2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.given = {"ndim": ndim, "bias": bias, "eps": eps, "groups": groups, "kind": kind}
        self.given |= {"affine": affine, "cap": cap, "untyped": untyped}


def test_options_are_found_with_type_and_default() -> None:
    found = options_of(Norm, positional=2)
    assert found["eps"] == (float, 1e-5) and found["untyped"] == (int, 2)
    assert found["kind"] == (Literal["a", "b"], "a")
    assert list(found) == ["eps", "groups", "kind", "affine", "cap", "untyped"]


def test_texts_of_a_command_line_become_the_options_types() -> None:
    texts = {"eps": "1e-6", "groups": "4", "kind": "b", "affine": "false", "cap": "null", "untyped": "3"}
    design = with_options("model.norm_options", Norm, 2, texts)
    assert issubclass(design, Norm) and design.__name__ == "Norm"
    expected = {"eps": 1e-6, "groups": 4, "kind": "b", "affine": False, "cap": None, "untyped": 3}
    assert design(8, bias=True).given == {"ndim": 8, "bias": True} | expected
    assert with_options("model.norm_options", Norm, 2, {}) is Norm
    whole = with_options("model.norm_options", Norm, 2, {"eps": 1})(8, False).given["eps"]
    assert whole == 1.0 and isinstance(whole, float)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"esp": "1"}, r"norm_options.esp is no option of Norm .did you mean 'eps'\?.; its options are eps,"),
        ({"eps": "small"}, r"model.norm_options.eps is 'small', but it must be a number"),
        ({"eps": True}, r"eps is True, but it must be a number"),
        ({"groups": "1.5"}, r"groups is '1.5', but it must be an integer"),
        ({"kind": "c"}, r"kind is 'c', but it must be one of a, b"),
        ({"cap": "x"}, r"cap is 'x', but it must be a number or null"),
        ({"affine": 1}, r"affine is 1, but it must be true or false"),
    ],
)
def test_an_option_that_does_not_fit_gets_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        with_options("model.norm_options", Norm, 2, options)


def test_options_reach_every_norm_of_a_model() -> None:
    gpt = GPT(GPTConfig(**TINY, norm="rmsnorm", norm_options={"eps": 0.25, "gain": "none"}))
    norms = [module for module in gpt.modules() if hasattr(module, "eps")]
    assert [norm.eps for norm in norms] == [0.25] * 5 and all(norm.weight is None for norm in norms)
    with pytest.raises(
        ValueError, match=r"model.block_options.depth is no option of PreNormBlock; it has none"
    ):
        GPT(GPTConfig(**TINY, block_options={"depth": 3}))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (int, "an integer"),
        (float, "a number"),
        (str, "a text"),
        (bool, "true or false"),
        (Literal["a", "b"], "one of a, b"),
        (Literal["a", "b"] | None, "one of a, b or null"),
        (int | None, "an integer or null"),
        ((int, float), "an integer or a number"),
        (dict[str, Any], "a mapping such as {eps: 1.0e-6}"),
        (dict, "a mapping such as {eps: 1.0e-6}"),
        (tuple[int, ...], "a list such as [a, b]"),
        (list[str] | str, "a list such as [a, b] or a text"),
        (Norm, "Norm"),
    ],
)
def test_a_type_has_one_description(kind: Any, words: str) -> None:
    assert describe_type(kind) == words
