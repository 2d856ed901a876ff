"""One candidate, judged: checked, trained beside the baseline on paired seeds, evaluated, compared.

    python scripts/judge.py my_design.py [--recipe R.yaml] [--deepspeed_config DS.json] [--seeds 3]
        [--baseline vanilla] [--ranks N] [--runs runs] [--json verdict.json] [--section.key VALUE ...]

Given again, the same command goes on where it stopped, and reuses the runs that are there. docs/judge.md
describes the JSON verdict, the exit statuses and the ledger.
"""

import sys
from contextlib import suppress

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

from eval.judging.request import read_judge
from model.errors import UserError, print_error
from model.redaction import redact_output


def main(argv: list[str]) -> int:
    """Judge, print and write the verdict; returns the exit status."""
    json_file = named_file(argv)
    try:
        request = read_judge(argv)
    except (UserError, OSError) as error:
        return refuse(json_file, error)
    # Imported here: what is refused above is refused before the data's libraries are imported.
    from eval.judging.commands import Commands, Interrupted
    from eval.judging.judgment import judge, write_verdict

    try:
        content = judge(request, Commands(), say)
        write_verdict(json_file, content)
    except Interrupted:
        return 75
    except (UserError, OSError) as error:
        return refuse(json_file, error)
    if content["verdict"]:
        from eval.judging.verdict import describe

        print(describe(content))
        print(content["verdict"]["looks"])
    else:
        print(f"{content['status'].replace('_', ' ')}: {content['reason']}")
    return content["exit_status"]


def named_file(argv: list[str]) -> str | None:
    """Of --json, also where the rest of the command line cannot be read."""
    words = [
        word for given in argv for word in (given.split("=", 1) if given.startswith("--json=") else [given])
    ]
    place = words.index("--json") + 1 if "--json" in words else len(words)
    return words[place] if place < len(words) else None


def refuse(json_file: str | None, error: Exception) -> int:
    """Say what cannot be, there and in the JSON."""
    from eval.judging.judgment import refusal, write_verdict

    with suppress(OSError):  # which may be what is refused
        write_verdict(json_file, refusal(error))
    return print_error(error)


def say(sentence: str) -> None:
    """A line of progress."""
    print(f"judge: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
