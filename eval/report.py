"""The report page about a set of runs or a study: one HTML file, or a page that follows them.

python -m eval.report runs/vanilla_s1 runs/rmsnorm_s1 --out report.html
python -m eval.report runs/studies/sample --serve
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model.errors import UserError, print_error
from model.files import write_text
from model.redaction import redact, redact_output

from .page.live.server import HOST, PORT, PageServer, serve
from .page.live.sources import Reading, Sources


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    try:
        port = _port(options)
        sources = Sources(options.folders)
        if sources.study is not None and options.baseline is not None:
            raise UserError(f"{sources.study} names its baseline itself: leave out --baseline")
        if port is not None:
            return _serve(sources, options, port)
        reading = sources.read(strictly=True)
        write_text(options.out, draw(reading, options.baseline))
    except (UserError, OSError) as error:
        return print_error(error)
    print(f"wrote {options.out}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.report", description="A page about runs, or about a study: as a file, or served."
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        type=Path,
        help="runs, or a study (runs/studies/NAME)",
    )
    parser.add_argument("--out", metavar="FILE.html", help="where the page goes", type=Path)
    parser.add_argument(
        "--serve",
        nargs="?",
        const=str(PORT),
        metavar="PORT",
        help=f"show the page at a port of this machine (default: {PORT}) and follow the runs until Ctrl-C",
    )
    parser.add_argument("--host", metavar="ADDRESS", help=f"where --serve listens (default: {HOST})")
    parser.add_argument("--baseline", metavar="NAME", help="variant to compare with (default: vanilla)")
    return parser.parse_args(arguments)


def draw(reading: Reading, baseline: str | None, follows_server: bool = False) -> str:
    """The page about what was read. Raises UserError where no run is of the baseline."""
    # Imported here: what is wrong with the folders is said before pandas is there.
    from .page.page import render
    from .page.study.contents import contents_of

    contents = contents_of(reading, baseline)
    return redact(render(contents.sections, contents.headline, contents.summary, follows_server))


def _serve(sources: Sources, options: argparse.Namespace, port: int) -> int:
    from .page.live.follower import Follower

    def write(reading: Reading) -> None:
        write_text(options.out, draw(reading, options.baseline))

    with PageServer(options.host or HOST, port) as server:
        try:
            follower = Follower(
                sources,
                lambda reading: draw(reading, options.baseline, follows_server=True),
                write if options.out else None,
            )
            print(f"{server.url} follows {', '.join(map(str, sources.folders))}; Ctrl-C ends it", flush=True)
            serve(server, follower)
        except KeyboardInterrupt:
            print("stopped")
    return 0


def _port(options: argparse.Namespace) -> int | None:
    """The port that is to be served at; None for a file alone. Raises UserError."""
    if options.serve is None:
        if options.host is not None:
            raise UserError("--host says where --serve listens: add --serve")
        if options.out is None:
            raise UserError("say where the page goes: --out report.html, or --serve to see it in a browser")
        return None
    if not options.serve.isdecimal() or int(options.serve) > 65535:
        raise UserError(
            f"--serve is '{options.serve}', but a port is a number up to 65535: give the folders first, or "
            f"--serve={PORT}"
        )
    return int(options.serve)


if __name__ == "__main__":
    redact_output()
    sys.exit(main(sys.argv[1:]))
