"""`python -m model.catalogue`: the table, a part of it, or one variant with its classes and options."""

import inspect

import pytest

from model.catalogue import VARIANTS
from model.catalogue.__main__ import entry, filtered, main
from model.designs import REGISTERED


@pytest.mark.parametrize("name", VARIANTS)
def test_an_entry_holds_classes_formulas_and_every_option(name: str) -> None:
    variant, text = VARIANTS[name], entry(name)
    assert text.startswith(f"{name}: ") and variant.source[:20] in text
    for plug in ("norm", "block", "topology"):
        design = REGISTERED[plug][getattr(variant, plug)]  # type: ignore[index]
        assert f"{design.__name__} in model/" in text
        assert (inspect.getdoc(design) or "").splitlines()[0] in text
        for option, value in getattr(variant, f"{plug}_options").items():
            assert f"--model.{plug}_options.{option}: {value} here, else " in text


def test_an_option_is_shown_with_what_the_variant_sets() -> None:
    lines = entry("rmsnorm_one_plus").splitlines()
    assert "  --model.norm_options.gain: one_plus here, else gain" in lines
    assert "  --model.norm_options.eps: 1e-05" in lines
    assert "sets model.norm = rmsnorm, model.norm_options = {'gain': 'one_plus'}" in lines


def test_a_filter_is_a_plug_point_or_a_text_in_any_case() -> None:
    assert "rmsnorm" in filtered(VARIANTS, "norm") and "parallel" not in filtered(VARIANTS, "norm")
    assert set(filtered(VARIANTS, "topology")) == {
        name for name, variant in VARIANTS.items() if variant.topology != "chain" or variant.topology_options
    }
    found = filtered(VARIANTS, "GEMMA")
    assert "rmsnorm_one_plus" in found and len(found) < 5
    assert set(filtered(VARIANTS, "arXiv:1910.07467")) >= {"rmsnorm", "prmsnorm"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rmsnrm"], "there is no variant 'rmsnrm' (did you mean 'rmsnorm'?); known are vanilla, "),
        (["--filter", "no such thing"], "no variant's entry holds 'no such thing'"),
        (["rmsnorm", "--filter", "norm"], "give one of them"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed, errors = capsys.readouterr()
    assert printed == "" and errors.startswith("error: ") and errors.count("\n") == 1 and sentence in errors


@pytest.mark.parametrize("words", [[], ["--filter", "norm"], ["mudd"]])
def test_what_is_there_is_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert ("vanilla" if not words else "mudd" if words == ["mudd"] else "rmsnorm") in capsys.readouterr()[0]
