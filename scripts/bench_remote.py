"""Measure what reading from a web server costs: requests, bytes, seconds and memory.

    python scripts/bench_remote.py [--files 150] [--row_groups 1050] [--delay_ms 50] [--shards 200]

A server on this machine, which is late with every answer, has parquet files with FineWeb's columns: their
footers are as large as FineWeb's, their texts are not. Each start is a process of its own: the first finds no
footer on the disk, the second all of them.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from model.checkout import refuse_other_checkout

refuse_other_checkout(__file__)

LANES, BLOCK_SIZE, ROWS = 64, 1024, 1_000
LONGEST_TEXT = 3_500  # of the two in a row group that its statistics have: makes a footer of 9 MB


def table(group: int) -> pa.Table:
    """A row group with FineWeb's columns."""
    texts = [f"Row {row} of group {group} has a text of a few words." for row in range(ROWS)]
    texts[0], texts[1] = "A" * LONGEST_TEXT, "z" * LONGEST_TEXT
    urls = [f"https://host{row}.example/{group}/" + "path/" * 20 for row in range(ROWS)]
    return pa.table(
        {
            "text": texts,
            "id": [f"<urn:uuid:{group:08d}-{row:08d}>" for row in range(ROWS)],
            "dump": ["CC-MAIN-2024-10"] * ROWS,
            "url": urls,
            "date": ["2024-03-05T10:11:12Z"] * ROWS,
            "file_path": ["s3://commoncrawl/crawl-data/" + "segments/" * 12] * ROWS,
            "language": ["en"] * ROWS,
            "language_score": [0.9] * ROWS,
            "token_count": [12] * ROWS,
        }
    )


def make_file(path: Path, row_groups: int) -> None:
    with pq.ParquetWriter(path, table(0).schema, compression="zstd") as writer:
        for group in range(row_groups):
            writer.write_table(table(group))


def serve(path: Path, delay_s: float, ready: Any) -> None:
    """Serve one file under every name, with ranges, and say under /counts what was asked for since then."""
    content = memoryview(path.read_bytes())
    counts = {"requests": 0, "bytes": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if self.path == "/counts":
                self.answer(200, memoryview(json.dumps(counts).encode()))
                counts.update(requests=0, bytes=0)
                return
            time.sleep(delay_s)
            asked, part, status = self.headers.get("Range"), content, 200
            if asked:
                first, last = map(int, asked.removeprefix("bytes=").split("-"))
                part, status = content[first : last + 1], 206
            counts["requests"] += 1
            counts["bytes"] += len(part) if self.command == "GET" else 0
            self.answer(status, part)

        def answer(self, status: int, part: memoryview) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("ETag", self.path)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(part)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.put(server.server_port)
    server.serve_forever()


def counted(url: str) -> dict[str, int]:
    """Requests and bytes since this was asked before."""
    with urllib.request.urlopen(f"{url}/counts") as answer:
        return json.load(answer)


def memory_mb() -> float:
    """What this process and its workers have in memory, pages that they share counted once."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(process.memory_full_info().pss for process in processes) / 1e6


def read(url: str, files: int, shards: int) -> dict[str, float]:
    """One start in this process: until the first batch of all lanes, and then `shards` shards more."""
    from data import DataConfig, LaneLoader, gpt2_encoding, open_data

    for module in "aiohttp", "torch", "data.sources.parquet":  # what imports take is no reader's
        import_module(module)
    gpt2_encoding()
    before, highest = memory_mb(), peak_mb()
    config = DataConfig(
        source=url,
        files=f"part_{{{0:03d}..{files - 1:03d}}}.parquet",
        lanes=LANES,
        workers=0,
        validation_tokens=100_000,
    )
    counted(url)
    began, cpu = time.perf_counter(), time.process_time()
    corpus, _ = open_data(config)
    loader = LaneLoader(corpus, config, block_size=BLOCK_SIZE, micro_batch=LANES)
    next(loader)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    start = counted(url)
    for shard in islice(corpus.shards, 0, None, max(1, len(corpus.shards) // shards)):
        corpus.read(shard)
    further = counted(url)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "requests": start["requests"],
        "megabytes": start["bytes"] / 1e6,
        "further_shards": len(range(0, len(corpus.shards), max(1, len(corpus.shards) // shards))),
        "further_requests": further["requests"],
        "further_megabytes": further["bytes"] / 1e6,
        "memory_mb": memory_mb() - before,
        "peak_mb": peak_mb() - highest,
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=150)
    parser.add_argument("--row_groups", type=int, default=1050, help="of 1,000 rows, in each file")
    parser.add_argument("--delay_ms", type=float, default=50, help="before every answer of the server")
    parser.add_argument("--shards", type=int, default=200, help="to read after the start")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.url:
        print(json.dumps(read(arguments.url, arguments.files, arguments.shards)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.parquet")
        make_file(path, arguments.row_groups)
        metadata = pq.read_metadata(path)
        chunks = [metadata.row_group(group).column(0) for group in range(arguments.row_groups)]
        text_mb = sum(chunk.total_compressed_size for chunk in chunks) / arguments.row_groups / 1e6
        print(
            f"{arguments.files} files of {path.stat().st_size / 1e6:.0f} MB, footers of "
            f"{metadata.serialized_size / 1e6:.1f} MB, {text_mb * 1000:.0f} kB of text in a row group"
        )
        ready: Any = multiprocessing.Queue()
        delay_s = arguments.delay_ms / 1000
        server = multiprocessing.Process(target=serve, args=(path, delay_s, ready), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{ready.get()}"
        environment = os.environ | {"NORMLAB_FOOTERS_DIR": f"{folder}/footers"}
        command = [sys.executable, __file__, "--url", url, "--files", str(arguments.files)]
        command += ["--shards", str(arguments.shards)]
        columns = ["start", "first batch", "of CPU", "requests", "MB"]
        columns += ["per 100 shards: requests", "MB beyond text", "memory"]
        print(f"| {' | '.join(columns)} |")
        print("|---|---|---|---|---|---|---|---|")
        for name in ("first", "second"):
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            hundreds = found["further_shards"] / 100
            beyond = found["further_megabytes"] - found["further_shards"] * text_mb
            values = [name, f"{found['seconds']:.1f} s", f"{found['cpu_seconds']:.1f} s"]
            values += [f"{found['requests']}", f"{found['megabytes']:.0f}"]
            values += [f"{found['further_requests'] / hundreds:.0f}", f"{beyond / hundreds:.2f}"]
            values += [f"{found['memory_mb']:.0f} MB, at most {found['peak_mb']:.0f} MB"]
            print(f"| {' | '.join(values)} |")
        server.kill()


if __name__ == "__main__":
    main()
